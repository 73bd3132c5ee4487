package stepca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/plugins"
)

const (
	testDomain = "tasks.example.org"
	testAgent  = "spiffe://example.org/agent/invoice/eu1"
	testTask   = "019ab3c1-d2e4-7f0a-8b1c-2d3e4f506100"
	testURI    = "spiffe://tasks.example.org/agent/example.org/agent/invoice/eu1/task/" + testTask
	testCRLURL = "http://127.0.0.1:7847/crl.der"
	testRole   = `{"usages":["client_auth"],"common_name":"{{ .agent.name }}","dns_names":["a.example.org","*.jobs.example.org"]}`
)

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newCSR(tb testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func newLease(tb testing.TB) plugins.LeaseID {
	tb.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		tb.Fatal(err)
	}
	return plugins.LeaseID(id)
}

func newRequest(tb testing.TB) plugins.Request {
	tb.Helper()
	return plugins.Request{
		Lease: newLease(tb), TaskID: testTask, TaskName: "reconcile-7f3k", Agent: testAgent, ManifestHash: [32]byte{1, 2, 3},
		Role:     plugins.Role{Name: "ledger-api", Config: []byte(testRole), MaxTTL: time.Hour},
		NotAfter: time.Now().Add(5 * time.Minute),
		CSR:      newCSR(tb, newKey(tb), &x509.CertificateRequest{}),
	}
}

func embeddedConfig(dir string) Config {
	return Config{
		Instance: "stepca/internal", TaskTrustDomain: testDomain, CRLURL: testCRLURL, Embedded: EmbeddedConfig{DataDir: dir},
	}
}

func newEmbedded(tb testing.TB, dir string) *Backend {
	tb.Helper()
	b, err := New(embeddedConfig(dir), zaptest.NewLogger(tb, zaptest.Level(zap.WarnLevel)))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func issue(tb testing.TB, b *Backend, req plugins.Request) (plugins.Credential, *x509.Certificate) {
	tb.Helper()
	cred, err := b.Issue(context.WithoutCancel(tb.Context()), req)
	if err != nil {
		tb.Fatal(err)
	}
	return cred, parse(tb, cred.Chain[0])
}

func parse(tb testing.TB, der []byte) *x509.Certificate {
	tb.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func held(req plugins.Request, cred plugins.Credential) plugins.Held {
	return plugins.Held{Lease: req.Lease, Role: req.Role.Name, Handle: cred.Handle, NotAfter: cred.NotAfter}
}

// accepts is a relying service that checks the chain, the usage and the CRL that the backend publishes.
func accepts(tb testing.TB, b *Backend) func(context.Context, plugins.Credential) bool {
	tb.Helper()
	return func(ctx context.Context, cred plugins.Credential) bool {
		cert := parse(tb, cred.Chain[0])
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		issuers := make([]*x509.Certificate, 0, 3)
		for _, der := range cred.Bundle {
			roots.AddCert(parse(tb, der))
			issuers = append(issuers, parse(tb, der))
		}
		for _, der := range cred.Chain[1:] {
			between.AddCert(parse(tb, der))
			issuers = append(issuers, parse(tb, der))
		}
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			tb.Logf("verify: %v", err)
			return false
		}
		return !onCRL(ctx, tb, b, cert, issuers)
	}
}

func onCRL(ctx context.Context, tb testing.TB, b *Backend, cert *x509.Certificate, issuers []*x509.Certificate) bool {
	tb.Helper()
	der, err := b.CRL(ctx)
	if err != nil {
		tb.Logf("no CRL: %v", err)
		return true
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		tb.Errorf("CRL: %v", err)
		return true
	}
	if now := time.Now(); !signedByOne(list, issuers) || now.Before(list.ThisUpdate) || now.After(list.NextUpdate) {
		tb.Errorf("CRL is not signed by the issuer, or not current: %v to %v", list.ThisUpdate, list.NextUpdate)
		return true
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return true
		}
	}
	return false
}
