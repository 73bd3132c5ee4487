package stepca

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
	"github.com/stint-dev/stint/plugins/servertest"
)

func suite(tb testing.TB, b *Backend) plugintest.Harness {
	tb.Helper()
	role := func(config string) plugins.Role { return plugins.Role{Name: "bad", Config: []byte(config)} }
	return plugintest.Harness{
		Backend: b, Role: newRequest(tb).Role, Works: accepts(tb, b),
		Request: func(tb testing.TB) plugins.Request {
			tb.Helper()
			return newRequest(tb)
		},
		BadRoles: map[string]plugins.Role{
			"usage":       role(`{"usages":["code_signing"]}`),
			"usage twice": role(`{"usages":["client_auth","client_auth"]}`),
			"name":        role(`{"common_name":"{{ .agent.nam }}"}`),
			"syntax":      role(`{"common_name":"{{ .agent.name"}`),
			"long name":   role(`{"common_name":"` + strings.Repeat("x", 65) + `"}`),
			"huge name":   role(`{"common_name":"{{ printf \"%1000000d\" 1 }}"}`),
			"empty name":  role(`{"common_name":"{{ if false }}x{{ end }}"}`),
			"control":     role(`{"common_name":"a\u0007b"}`),
			"dns":         role(`{"dns_names":["a b"]}`),
			"two stars":   role(`{"dns_names":["*.*.example.org"]}`),
			"trailing":    role(`{} {}`),
			"ttl":         {Name: "bad", Config: []byte(`{}`), MaxTTL: 48 * time.Hour},
		},
	}
}

func TestEmbeddedKeepsTheContract(t *testing.T) {
	plugintest.Run(t, suite(t, newEmbedded(t, t.TempDir())))
}

func TestDescriptorOfEmbedded(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	want := plugins.Descriptor{Type: "stepca", Section: "certificate", HandleIsLeaseID: true}
	if got := b.Descriptor(); got != want {
		t.Errorf("descriptor %+v, want %+v", got, want)
	}
	if _, ok := any(b).(plugins.Preparer); ok {
		t.Error("the backend prepares; its handle is known before")
	}
}

// TestCertificate reads every part of what is issued.
func TestCertificate(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	for _, c := range []struct {
		name, role, commonName string
		asked, dns             []string
		usages                 []x509.ExtKeyUsage
	}{
		{"client", `{}`, "", nil, nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		{"named", testRole, "eu1", []string{"x.jobs.example.org"}, []string{"x.jobs.example.org"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		{"default names", testRole, "eu1", nil, []string{"a.example.org"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		{
			"server", `{"usages":["client_auth","server_auth"],"common_name":"{{ .task.name }}"}`, "reconcile-7f3k", nil, nil,
			[]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := newRequest(t)
			req.Role.Config = []byte(c.role)
			req.CSR = newCSR(t, newKey(t), &x509.CertificateRequest{DNSNames: c.asked})
			cred, cert := issue(t, b, req)
			checkCertificate(t, req, cred, cert)
			if cert.Subject.CommonName != c.commonName || !slices.Equal(cert.DNSNames, c.dns) || !slices.Equal(cert.ExtKeyUsage, c.usages) {
				t.Errorf("subject %q, DNS %v, usages %v", cert.Subject, cert.DNSNames, cert.ExtKeyUsage)
			}
			for _, ext := range cert.Extensions {
				if san := ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}); san && ext.Critical != (c.commonName == "") {
					t.Errorf("alternative names critical: %t, with common name %q", ext.Critical, c.commonName)
				}
			}
		})
	}
}

// checkCertificate checks what is the same for all roles and both modes.
func checkCertificate(t *testing.T, req plugins.Request, cred plugins.Credential, cert *x509.Certificate) {
	t.Helper()
	if cert.SerialNumber.Cmp(serial(req.Lease)) != 0 || string(cred.Handle) != req.Lease.String() {
		t.Errorf("serial %X, handle %s, want the lease ID %s", cert.SerialNumber, cred.Handle, req.Lease)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != testURI {
		t.Errorf("URIs %v, want %s", cert.URIs, testURI)
	}
	if len(cert.EmailAddresses)+len(cert.IPAddresses) > 0 || cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("certificate with email %v, IP %v, CA %t, key usage %d", cert.EmailAddresses, cert.IPAddresses, cert.IsCA, cert.KeyUsage)
	}
	if !slices.Equal(cert.CRLDistributionPoints, []string{testCRLURL}) {
		t.Errorf("CRL at %v", cert.CRLDistributionPoints)
	}
	if want := req.NotAfter.Truncate(time.Second); !cert.NotAfter.Equal(want) || !cred.NotAfter.Equal(want) {
		t.Errorf("not after %v, said %v, want %v", cert.NotAfter, cred.NotAfter, want)
	}
	if back := time.Since(cert.NotBefore); back < backdate || back > backdate+10*time.Second {
		t.Errorf("not before lies %s back, want a minute", back)
	}
	info, err := TaskInfoOf(cert, "")
	if want := (TaskInfo{1, testTask, req.ManifestHash, req.Role.Name}); err != nil || info != want {
		t.Errorf("task extension %+v, %v, want %+v", info, err, want)
	}
}

// TestOpenSSLAgrees has OpenSSL verify, print the serial, and refuse after the revocation.
func TestOpenSSLAgrees(t *testing.T) {
	openssl := servertest.Program(t, "openssl")
	dir := t.TempDir()
	b := newEmbedded(t, filepath.Join(dir, "ca"))
	req := newRequest(t)
	cred, _ := issue(t, b, req)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	cert, root := write("cert.pem", pemCertificate, cred.Chain[0]), write("root.pem", pemCertificate, cred.Bundle[0])
	verify := func() (string, error) {
		der, crlErr := b.CRL(t.Context())
		must(t, crlErr)
		crl := write("crl.pem", "X509 CRL", der)
		out, outErr := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-crl_check_all", "-CAfile", root, "-CRLfile", crl, cert).CombinedOutput()
		return string(out), outErr
	}
	if out, verifyErr := verify(); verifyErr != nil {
		t.Fatalf("openssl verify: %s", out)
	}
	out, err := exec.CommandContext(t.Context(), openssl, "x509", "-noout", "-serial", "-in", cert).Output()
	if err != nil || strings.TrimSpace(string(out)) != "serial="+req.Lease.String() {
		t.Errorf("openssl prints %s, want the lease ID %s", out, req.Lease)
	}
	if _, err := b.Revoke(t.Context(), held(req, cred)); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(); err == nil || !strings.Contains(out, "revoked") {
		t.Errorf("openssl accepts a revoked certificate: %s", out)
	}
}

// TestRevokeByLeaseIDAlone is what a broker does that lost the answer.
func TestRevokeByLeaseIDAlone(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	req := newRequest(t)
	cred, _ := issue(t, b, req)
	end, err := b.Revoke(t.Context(), plugins.Held{Lease: req.Lease, Uncertain: true})
	if err != nil || end.Proof != plugins.OnCRL || !strings.HasPrefix(end.Detail, "CRL ") {
		t.Fatalf("revoke: %+v, %v", end, err)
	}
	if end.UncheckedUntil.Before(cred.NotAfter) || end.UsableUntil.After(end.At.Add(DefaultCRLValidity)) {
		t.Errorf("usable until %v, unchecked until %v, certificate ends %v", end.UsableUntil, end.UncheckedUntil, cred.NotAfter)
	}
	if accepts(t, b)(t.Context(), cred) {
		t.Error("it still works")
	}
	if _, err := b.Issue(t.Context(), req); !errors.Is(err, plugins.ErrNotIssued) {
		t.Errorf("issue of a lease that is on the CRL: %v, want ErrNotIssued", err)
	}
}

// TestRefusedRequests lists what an operator, not the caller, must mend.
func TestRefusedRequests(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	for name, change := range map[string]func(*plugins.Request){
		"too long":        func(r *plugins.Request) { r.NotAfter = time.Now().Add(25 * time.Hour) },
		"past":            func(r *plugins.Request) { r.NotAfter = time.Now() },
		"no lease":        func(r *plugins.Request) { r.Lease = plugins.LeaseID{} },
		"negative serial": func(r *plugins.Request) { r.Lease[0] |= 0x80 },
		"agent":           func(r *plugins.Request) { r.Agent = "https://example.org" },
		"task":            func(r *plugins.Request) { r.TaskID = "task-1" },
		"long URI":        func(r *plugins.Request) { r.Agent += "/" + strings.Repeat("x", 2000) },
		"role":            func(r *plugins.Request) { r.Role.Config = []byte(`{"x":1}`) },
		"long name": func(r *plugins.Request) {
			r.Role.Config = []byte(`{"common_name":"{{ .agent.id }}"}`)
			r.Agent += "/" + strings.Repeat("x", 64)
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := newRequest(t)
			change(&req)
			_, err := b.Issue(t.Context(), req)
			if !errors.Is(err, plugins.ErrMisconfigured) || !errors.Is(err, plugins.ErrNotIssued) {
				t.Errorf("issue said %v, want ErrMisconfigured and ErrNotIssued", err)
			}
		})
	}
}

// TestRevokeManyAtOnce checks that concurrent revocations share signatures.
func TestRevokeManyAtOnce(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	const n = 100
	before := b.current(t).number.Int64()
	var wg sync.WaitGroup
	for range n {
		lease := newLease(t)
		wg.Go(func() {
			end, err := b.Revoke(context.Background(), plugins.Held{Lease: lease, NotAfter: time.Now().Add(time.Minute)})
			if err != nil || !b.current(t).holds(lease) {
				t.Errorf("revoke: %+v, %v", end, err)
			}
		})
	}
	wg.Wait()
	if signed := b.current(t).number.Int64() - before; signed > n/2 || len(b.current(t).entries) != n {
		t.Errorf("%d CRLs signed for %d revocations, %d entries", signed, n, len(b.current(t).entries))
	}
}

// TestRevokeWithoutDisk expects that nothing is claimed that was not written.
func TestRevokeWithoutDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	b := newEmbedded(t, dir)
	req := newRequest(t)
	cred, _ := issue(t, b, req)
	must(t, os.Rename(dir, dir+".gone"))
	if _, err := b.Revoke(t.Context(), held(req, cred)); !errors.Is(err, plugins.ErrUnavailable) {
		t.Errorf("revoke without a disk: %v, want ErrUnavailable", err)
	}
	if b.current(t).holds(req.Lease) {
		t.Error("a CRL is served that was not written")
	}
	must(t, os.Rename(dir+".gone", dir))
	if _, err := b.Revoke(t.Context(), held(req, cred)); err != nil || !b.current(t).holds(req.Lease) {
		t.Errorf("revoke with the disk back: %v", err)
	}
}

// TestNoCRLNoCertificate lets the CRL run out without Run: it is signed before the next certificate, or none is made.
func TestNoCRLNoCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "ca")
		b := newEmbedded(t, dir)
		<-time.After(2 * DefaultCRLValidity)
		if err := b.Healthy(t.Context()); !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("healthy with a CRL that ran out: %v, want ErrUnavailable", err)
		}
		must(t, os.Rename(dir, dir+".gone"))
		if _, err := b.Issue(t.Context(), newRequest(t)); !errors.Is(err, plugins.ErrUnavailable) || !errors.Is(err, plugins.ErrNotIssued) {
			t.Errorf("issue without a CRL: %v, want ErrUnavailable and ErrNotIssued", err)
		}
		must(t, os.Rename(dir+".gone", dir))
		if cred, _ := issue(t, b, newRequest(t)); !accepts(t, b)(t.Context(), cred) {
			t.Error("it does not work with the CRL signed again")
		}
	})
}

// TestRunSignsAgainAndPrunes lets two hours pass: the CRL is never older than a third of its validity, entries leave
// it after their certificates' end, and an expired certificate needs no CRL.
func TestRunSignsAgainAndPrunes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newEmbedded(t, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		known, unknown := newRequest(t), newLease(t)
		cred, _ := issue(t, b, known)
		_, err := b.Revoke(t.Context(), held(known, cred))
		must(t, err)
		_, err = b.Revoke(t.Context(), plugins.Held{Lease: unknown})
		must(t, err)
		for range 60 {
			<-time.After(2*time.Minute + time.Second)
			if left := time.Until(b.current(t).nextUpdate); left < 38*time.Second {
				t.Fatalf("the CRL has only %s left", left)
			}
		}
		if c := b.current(t); c.holds(known.Lease) || !c.holds(unknown) {
			t.Errorf("after two hours the expired is on it: %t, the unknown: %t", c.holds(known.Lease), c.holds(unknown))
		}
		end, err := b.Revoke(t.Context(), held(known, cred))
		if err != nil || end.Proof != plugins.Lapsed || !end.UsableUntil.Equal(cred.NotAfter) {
			t.Errorf("revoke of an expired one: %+v, %v", end, err)
		}
		cancel()
		must(t, <-done)
	})
}

// TestExpiredIsRevokedAllTheSame: where this machine's clock may be ahead, a certificate that seems to be over is put on the
// CRL, and stays there, so that services whose clocks are right refuse it.
func TestExpiredIsRevokedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newEmbedded(t, t.TempDir())
		req := newRequest(t)
		cred, _ := issue(t, b, req)
		<-time.After(time.Until(cred.NotAfter) + keepExpired - time.Minute)
		end, err := b.Revoke(t.Context(), held(req, cred))
		if err != nil || end.Proof != plugins.OnCRL || !end.UsableUntil.Equal(cred.NotAfter) {
			t.Errorf("revoke of one that seems to be over: %+v, %v", end, err)
		}
		if !b.current(t).holds(req.Lease) {
			t.Error("it is not on the CRL")
		}
	})
}
