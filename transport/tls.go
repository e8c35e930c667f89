package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLSFiles are PEM files of a certificate, its key and the authorities to trust.
// They are looked at on every handshake and read again when they changed, so
// certificates are renewed without a restart. While what is on disk cannot be used
// (it is being replaced), what was read last stays in use.
type TLSFiles struct {
	Cert string // certificate and chain; needed to serve
	Key  string
	CA   string // authorities; empty: those of the system, and no client certificates
	// Mutual refuses clients without a certificate of CA. Without it a certificate is
	// verified when a client sends one.
	Mutual bool

	mu    sync.Mutex // guards what follows
	marks [3]fileMark
	cert  *tls.Certificate
	pool  *x509.CertPool
}

// fileMark tells whether a file has changed.
type fileMark struct {
	size int64
	at   time.Time
}

// Server is the configuration for Serve. The error is that of the first reading.
func (f *TLSFiles) Server() (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, errors.New("tls: serving needs a certificate and its key")
	}
	if f.Mutual && f.CA == "" {
		return nil, errors.New("tls: client certificates need an authority to verify them with")
	}
	if _, _, err := f.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, pool, err := f.load()
			if err != nil {
				return nil, err
			}
			c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}}
			switch {
			case f.Mutual:
				c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool
			case pool != nil:
				c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, pool
			}
			return c, nil
		},
	}, nil
}

// Client is the configuration for one Dial: ask for a new one each time.
func (f *TLSFiles) Client() (*tls.Config, error) {
	cert, pool, err := f.load()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c, nil
}

// load returns the newest certificate (nil without one) and pool (nil: the system's).
func (f *TLSFiles) load() (*tls.Certificate, *x509.CertPool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var marks [3]fileMark
	var err error
	for i, name := range [3]string{f.Cert, f.Key, f.CA} {
		if name == "" {
			continue
		}
		info, statErr := os.Stat(name)
		if statErr != nil {
			err = statErr
			break
		}
		marks[i] = fileMark{size: info.Size(), at: info.ModTime()}
	}
	fresh := f.cert == nil && f.pool == nil // nothing is in use yet
	if err == nil && !fresh && marks == f.marks {
		return f.cert, f.pool, nil
	}
	var cert *tls.Certificate
	var pool *x509.CertPool
	if err == nil {
		cert, pool, err = f.read()
	}
	if err != nil {
		if fresh {
			return nil, nil, fmt.Errorf("tls: %w", err)
		}
		return f.cert, f.pool, nil
	}
	f.cert, f.pool, f.marks = cert, pool, marks
	return cert, pool, nil
}

func (f *TLSFiles) read() (cert *tls.Certificate, pool *x509.CertPool, err error) {
	if f.Cert != "" || f.Key != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, nil, err
		}
		cert = &pair
	}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, nil, err
		}
		if pool = x509.NewCertPool(); !pool.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("%s has no certificate", f.CA)
		}
	}
	return cert, pool, nil
}
