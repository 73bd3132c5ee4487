package main

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/sdk/agent"
)

// verifier accepts certificates as a service does that reads a CRL (RFC 5280 section 6.3).
type verifier struct {
	fetch func(testing.TB) *x509.RevocationList
	// keeps makes it the worst that a service may be: it goes on with the CRL that suits the certificate best for as long as
	// that one is valid.
	keeps bool
	kept  *x509.RevocationList
}

// accepts reports whether the certificate is accepted now.
func (v *verifier) accepts(tb testing.TB, c certified) bool {
	tb.Helper()
	if !c.valid() {
		return false
	}
	fresh := v.fetch(tb)
	if !lists(fresh, c.chain[0]) {
		v.kept = fresh
		return time.Now().Before(fresh.NextUpdate)
	}
	return v.keeps && v.kept != nil && time.Now().Before(v.kept.NextUpdate)
}

func lists(list *x509.RevocationList, cert *x509.Certificate) bool {
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

// parseCRL reads one in DER.
func parseCRL(tb testing.TB, der []byte) *x509.RevocationList {
	tb.Helper()
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		tb.Fatal(err)
	}
	return list
}

// embeddedCRL fetches the CRL of the embedded CA from the status port.
func (x exposed) embeddedCRL(tb testing.TB) *x509.RevocationList {
	tb.Helper()
	return parseCRL(tb, x.get(tb, "/crl.der?backend=stepca/internal"))
}

// vaultCRL fetches the CRL of Vault's pki engine.
func (x exposed) vaultCRL(tb testing.TB) *x509.RevocationList {
	tb.Helper()
	der, err := download(tb.Context(), x.vault.Server.Addr+"/v1/pki/crl")
	if err != nil {
		tb.Fatal(err)
	}
	return parseCRL(tb, der)
}

func (x exposed) embedded(t *testing.T) {
	t.Helper()
	x.certificate(t, certRole, verifier{fetch: x.embeddedCRL})
}

func (x exposed) remote(t *testing.T) {
	t.Helper()
	x.certificate(t, remoteRole, verifier{fetch: x.ca.CRL})
}

// certificate shows certificates of a role to a service that fetches the CRL each time, and to the worst one. Others are
// revoked all the time, so that CRLs are signed between the call and the revocation.
func (x exposed) certificate(t *testing.T, role string, service verifier) {
	t.Helper()
	stop := x.others(t, role)
	defer stop()
	task := declare(t, x.agent(t, agentPath), 5*time.Minute, role)
	x.accepted(t, task, issue(t, task, role), service)
}

// others issues certificates of a role and ends them, until it is stopped.
func (x exposed) others(t *testing.T, role string) (stop func()) {
	t.Helper()
	client := x.agent(t, agentPath)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			task, err := client.Declare(t.Context(), declaration(time.Minute, role))
			if err == nil {
				_, err = task.Issue(t.Context(), role, agent.IssueOptions{})
			}
			if err == nil {
				_, err = task.Complete(t.Context(), 10*time.Second)
			}
			if err != nil {
				t.Errorf("the others: %v", err)
				return
			}
		}
	}()
	return func() { close(over); <-done }
}

// certified is a certificate and what it is verified against.
type certified struct {
	chain []*x509.Certificate
	roots *x509.CertPool
}

// certificateOf returns what was issued: by a CA, or by Vault's pki engine.
func certificateOf(tb testing.TB, cred *agent.Credential) certified {
	tb.Helper()
	if c := cred.Certificate; c != nil {
		return certified{c.Chain, c.Roots()}
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsePEM(tb, cred.Fields["issuing_ca"].Expose()))
	return certified{[]*x509.Certificate{parsePEM(tb, cred.Fields["certificate"].Expose())}, roots}
}

func parsePEM(tb testing.TB, text []byte) *x509.Certificate {
	tb.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		tb.Fatal("no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// valid is what a service finds that reads no CRL.
func (c certified) valid() bool {
	above := x509.NewCertPool()
	for _, cert := range c.chain[1:] {
		above.AddCert(cert)
	}
	_, err := c.chain[0].Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: above, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// accepted measures both services at once.
func (x exposed) accepted(t *testing.T, task *agent.Task, cred *agent.Credential, service verifier) {
	t.Helper()
	c := certificateOf(t, cred)
	stated := x.stated(t, cred)
	asked, last := time.Now(), time.Time{}
	worst := service
	worst.keeps = true
	busy := ending{what: "the certificate, for a service that keeps the CRL,", task: task, stated: stated.GetMax(), works: func() bool {
		if service.accepts(t, c) {
			last = time.Now()
		}
		return worst.accepts(t, c)
	}}.measure(t)
	took := last.Sub(asked)
	t.Logf("for a service that fetches the CRL each time it worked for %s", took.Round(time.Millisecond))
	if took > atMost(plugins.EndingTime)+busy {
		t.Error("it was not on the CRL by then")
	}
}

// pki shows a certificate of Vault's pki engine to a service that fetches Vault's CRL each time, and to the worst one, which
// accepts it until it expires: Vault's CRLs are valid for days.
func (x exposed) pki(t *testing.T) {
	t.Helper()
	task := declare(t, x.agent(t, agentPath), 5*time.Minute, pkiRole)
	cred, err := task.Issue(t.Context(), pkiRole, agent.IssueOptions{TTL: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	x.accepted(t, task, cred, verifier{fetch: x.vaultCRL})
}
