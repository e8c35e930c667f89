package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// newTLS writes an authority and a certificate for 127.0.0.1.
func newTLS(t *testing.T) TLS {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, leaf, authority, &key.PublicKey, key)
	must(err)
	private, err := x509.MarshalECPrivateKey(key)
	must(err)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	return TLS{Cert: write("cert.pem", "CERTIFICATE", cert), Key: write("key.pem", "EC PRIVATE KEY", private), CA: write("ca.pem", "CERTIFICATE", ca)}
}

func TestTLS(t *testing.T) {
	files, others := newTLS(t), newTLS(t)
	a := newShell(t, func(c *Config, _ *fake) { c.TLS = files })
	b := newShell(t, func(c *Config, _ *fake) { c.TLS = files })
	a.do(core.Peers{Members: []ring.Member{{ID: b.ID(), Address: b.Addr()}}})
	if up := next[core.PeerUp](a); up.Node != b.ID() {
		t.Errorf("peer up: %+v", up)
	}
	if opened := next[core.ConnOpened](b); opened.Node != a.ID() {
		t.Errorf("opened: %+v", opened)
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for name, o := range map[string]transport.Options{
		"no TLS":                      {},
		"no certificate":              {TLSFiles: &transport.TLSFiles{CA: files.CA}},
		"of another authority":        {TLSFiles: &transport.TLSFiles{CA: files.CA, Cert: others.Cert, Key: others.Key}},
		"that trusts another's nodes": {TLSFiles: &transport.TLSFiles{CA: others.CA, Cert: files.Cert, Key: files.Key}},
	} {
		c, err := transport.Dial(ctx, a.Addr(), &wire.Hello{Name: name}, nil, o)
		if err == nil {
			_ = c.Close()
			<-c.Done()
			t.Errorf("a client with %s is let in", name)
		}
	}
	if clients, _ := a.door.count(); clients != 0 {
		t.Errorf("%d clients are in", clients)
	}
	c, err := transport.Dial(ctx, a.Addr(), &wire.Hello{}, nil, transport.Options{
		TLSFiles: &transport.TLSFiles{CA: files.CA, Cert: files.Cert, Key: files.Key},
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	<-c.Done()
}
