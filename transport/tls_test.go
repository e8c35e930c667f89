package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// authority issues certificates for tests.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string
	last int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t), file: filepath.Join(t.TempDir(), name+".pem")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes a certificate for 127.0.0.1 and its key into dir, over what is there.
func (a *authority) issue(dir, name string) (cert, key string) {
	a.t.Helper()
	a.last++
	k := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(100 + a.last), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePEM(a.t, cert, "CERTIFICATE", der)
	writePEM(a.t, key, "EC PRIVATE KEY", keyDER)
	for i, f := range []string{cert, key} { // a change that any file system shows
		at := time.Now().Add(time.Duration(a.last)*time.Minute + time.Duration(i))
		if err := os.Chtimes(f, at, at); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

func (a *authority) files(dir, name string, mutual bool) *TLSFiles {
	cert, key := a.issue(dir, name)
	return &TLSFiles{Cert: cert, Key: key, CA: a.file, Mutual: mutual}
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	node, client, stranger := ca.files(t.TempDir(), "node", true), ca.files(t.TempDir(), "client", false), other.files(t.TempDir(), "stranger", false)
	stranger.CA = ca.file // it trusts the node; the node does not know it

	names := make(chan string, 1)
	addr := serveWith(t, func(c *Conn, _ *wire.Hello) (*wire.Hello, Handler, error) {
		names <- c.TLS().PeerCertificates[0].Subject.CommonName
		return serverHello, echo, nil
	}, Options{TLSFiles: node})
	c := dialTo(t, addr, nil, Options{TLSFiles: client})
	if name := await(t, "client", names); name != "client" {
		t.Errorf("the client is %q", name)
	}
	for i := range uint64(100) {
		if m, err := c.Call(t.Context(), &wire.Beat{Commit: i}); err != nil || m.(*wire.Enqueued).Base != wire.Offset(i) {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	for what, o := range map[string]Options{
		"without a certificate":      {TLSFiles: &TLSFiles{CA: ca.file}},
		"of another authority":       {TLSFiles: stranger},
		"that trusts somebody else":  {TLSFiles: &TLSFiles{Cert: client.Cert, Key: client.Key, CA: other.file}},
		"that does not encrypt":      {HelloTimeout: time.Second},
		"that calls it another name": {TLS: mustClient(t, client, "node.example")},
	} {
		if _, err := Dial(t.Context(), addr, clientHello, nil, o); err == nil {
			t.Errorf("a client %s got in", what)
		}
	}
}

func TestTLSWithoutClientCertificates(t *testing.T) {
	ca := newAuthority(t, "ca")
	addr := serve(t, echo, Options{TLSFiles: ca.files(t.TempDir(), "node", false)})
	c := dialTo(t, addr, nil, Options{TLSFiles: &TLSFiles{CA: ca.file}})
	records := wire.AppendRecord(nil, &wire.Record{Body: make([]byte, 1<<20)})
	m := &wire.Enqueue{Count: 1, Records: records, Checksum: wire.Checksum(records) + 1}
	if _, err := c.Call(t.Context(), m); !errors.Is(err, ErrClosed) || !errors.Is(c.Err(), ErrBadFrame) || errors.Is(err, wire.ErrBadRequest) {
		t.Errorf("damaged records: %v, closed with %v", err, c.Err())
	}
	if c := dialTo(t, addr, nil, Options{TLSFiles: &TLSFiles{CA: ca.file}}); c.TLS() == nil || len(c.TLS().PeerCertificates) == 0 {
		t.Error("no state of encryption")
	}
}

func TestCertificatesAreReadAgain(t *testing.T) {
	ca := newAuthority(t, "ca")
	dir := t.TempDir()
	addr := serve(t, echo, Options{TLSFiles: ca.files(dir, "first", false)})
	server := func() string {
		t.Helper()
		c := dialTo(t, addr, nil, Options{TLSFiles: &TLSFiles{CA: ca.file}})
		return c.TLS().PeerCertificates[0].Subject.CommonName
	}
	if name := server(); name != "first" {
		t.Errorf("the server is %q", name)
	}
	cert, _ := ca.issue(dir, "second")
	if name := server(); name != "second" {
		t.Errorf("after the change the server is %q", name)
	}
	if err := os.WriteFile(cert, []byte("half a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if name := server(); name != "second" {
		t.Errorf("with a bad file the server is %q", name)
	}
	ca.issue(dir, "third")
	if name := server(); name != "third" {
		t.Errorf("after the repair the server is %q", name)
	}
}

func TestTLSFilesThatCannotServe(t *testing.T) {
	for what, f := range map[string]*TLSFiles{
		"none":       {},
		"missing":    {Cert: "/nonexistent", Key: "/nonexistent"},
		"no CA":      {Cert: "c", Key: "k", Mutual: true},
		"CA missing": {CA: "/nonexistent", Cert: "c", Key: "k"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := Serve(t.Context(), l, nil, Options{TLSFiles: f}); err == nil {
			t.Errorf("%s: Serve runs", what)
		}
	}
}

func mustClient(t *testing.T, f *TLSFiles, serverName string) *tls.Config {
	t.Helper()
	c, err := f.Client()
	if err != nil {
		t.Fatal(err)
	}
	c.ServerName = serverName
	return c
}
