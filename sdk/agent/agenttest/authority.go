package agenttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// authority signs certificates and a CRL.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu      sync.Mutex // guards revoked
	revoked []x509.RevocationListEntry
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test tasks"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

func (a *authority) sign(der []byte, id [16]byte, task *stintv1.Task, end time.Time) (*stintv1.CertificateCredential, error) {
	csr, err := csrKey(der)
	if err != nil {
		return nil, err
	}
	uri := &url.URL{Scheme: "spiffe", Host: "tasks." + TrustDomain, Path: "/agent/" + TrustDomain + AgentPath + "/task/" +
		strings.TrimPrefix(task.GetName(), "tasks/")}
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:]), URIs: []*url.URL{uri}, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, csr.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return &stintv1.CertificateCredential{Chain: [][]byte{leaf}, Bundle: [][]byte{a.cert.Raw}, SpiffeId: uri.String()}, nil
}

func (a *authority) revoke(lease *stintv1.Lease) {
	raw, err := hex.DecodeString(strings.TrimPrefix(lease.GetName(), "leases/"))
	if err != nil || lease.GetBackend() != "stepca/internal" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = append(a.revoked, x509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(raw), RevocationTime: time.Now()})
}

func (a *authority) crl() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(int64(len(a.revoked)) + 1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Minute),
		RevokedCertificateEntries: a.revoked,
	}, a.cert, a.key)
}

// handler serves what the broker's port without authentication serves of a certificate authority.
func (a *authority) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bundle.pem", func(w http.ResponseWriter, _ *http.Request) {
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}) // the client sees a short answer
	})
	serve := func(write func(w http.ResponseWriter, der []byte)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			der, err := a.crl()
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			write(w, der)
		}
	}
	mux.HandleFunc("GET /crl.pem", serve(func(w http.ResponseWriter, der []byte) {
		_ = pem.Encode(w, &pem.Block{Type: "X509 CRL", Bytes: der}) // as above
	}))
	mux.HandleFunc("GET /crl.der", serve(func(w http.ResponseWriter, der []byte) { _, _ = w.Write(der) }))
	return mux
}
