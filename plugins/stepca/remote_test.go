package stepca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
)

// TestOneTemplate holds the two copies of the template together.
func TestOneTemplate(t *testing.T) {
	if servertest.ProvisionerTemplate != ProvisionerTemplate {
		t.Error("servertest.ProvisionerTemplate differs from this package's")
	}
}

// startStepCA starts a real step-ca as an operator sets it up for Stint.
func startStepCA(t *testing.T) *servertest.StepCA {
	t.Helper()
	return servertest.StartStepCA(t, servertest.StepCAOptions{Template: ProvisionerTemplate})
}

func remoteConfig(t *testing.T, ca *servertest.StepCA) Config {
	t.Helper()
	key, err := json.Marshal(ca.ProvisionerKey)
	must(t, err)
	return Config{
		Instance: "stepca/remote", Mode: Remote, TaskTrustDomain: testDomain, CRLURL: testCRLURL, CRLValidity: time.Minute,
		Remote: RemoteConfig{URL: ca.URL, RootPEM: ca.RootPEM, Provisioner: ca.Provisioner, Key: secret.New(key), DataDir: t.TempDir()},
	}
}

// newRemoteBackend makes a backend that has fetched its first CRL.
func newRemoteBackend(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, err := New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
	must(t, err)
	ca, ok := b.ca.(*remote)
	if !ok {
		t.Fatal("not remote")
	}
	t.Cleanup(ca.client.http.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(t, ca.fetch(ctx))
	return b
}

func TestRemoteKeepsTheContract(t *testing.T) {
	ca := startStepCA(t)
	b := newRemoteBackend(t, remoteConfig(t, ca))
	h := suite(t, b)
	h.Break = func(tb testing.TB) { tb.Helper(); ca.Stop(tb) }
	h.Heal = func(tb testing.TB) { tb.Helper(); ca.Restart(tb) }
	plugintest.Run(t, h)
}

// TestRemoteIssuesTheSame compares what the two modes issue for one request.
func TestRemoteIssuesTheSame(t *testing.T) {
	ca := startStepCA(t)
	r, e := newRemoteBackend(t, remoteConfig(t, ca)), newEmbedded(t, t.TempDir())
	for _, role := range []string{`{}`, testRole, `{"usages":["client_auth","server_auth"],"dns_names":["a.example.org"]}`} {
		req := newRequest(t)
		req.Role.Config = []byte(role)
		cred, got := issue(t, r, req)
		checkCertificate(t, req, cred, got)
		_, want := issue(t, e, req)
		if got.Subject.String() != want.Subject.String() || !slices.Equal(got.DNSNames, want.DNSNames) || !slices.Equal(got.ExtKeyUsage, want.ExtKeyUsage) {
			t.Errorf("role %s: remote %v %v %v, embedded %v %v %v", role, got.Subject, got.DNSNames, got.ExtKeyUsage, want.Subject, want.DNSNames, want.ExtKeyUsage)
		}
		if g, w := extensions(got), extensions(want); !slices.Equal(g, w) {
			t.Errorf("role %s: extensions of remote %v, of embedded %v", role, g, w)
		}
	}
	d := r.Descriptor()
	if d.Horizon < tokenLeeway || !d.HandleIsLeaseID {
		t.Errorf("descriptor %+v", d)
	}
}

// extensions are a certificate's, marked where critical, without step-ca's own.
func extensions(cert *x509.Certificate) []string {
	var ids []string
	for _, ext := range cert.Extensions {
		id := ext.Id.String()
		if ext.Critical {
			id += " critical"
		}
		if !strings.HasPrefix(id, "1.3.6.1.4.1.37476.9000.64.") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// TestRemoteRevokeBeforeIssue checks that a serial that was revoked before its certificate came stays on the CRL.
func TestRemoteRevokeBeforeIssue(t *testing.T) {
	b := newRemoteBackend(t, remoteConfig(t, startStepCA(t)))
	req := newRequest(t)
	end, err := b.Revoke(t.Context(), plugins.Held{Lease: req.Lease, NotAfter: req.NotAfter, Uncertain: true})
	if err != nil || end.Proof != plugins.OnCRL {
		t.Fatalf("revoke: %+v, %v", end, err)
	}
	cred, err := b.Issue(t.Context(), req)
	if err == nil && accepts(t, b)(t.Context(), cred) {
		t.Error("a certificate that came late works")
	}
}

// TestRemoteOpenSSLAgrees has OpenSSL check a chain of three against step-ca's own CRL.
func TestRemoteOpenSSLAgrees(t *testing.T) {
	openssl := servertest.Program(t, "openssl")
	ca := startStepCA(t)
	cfg := remoteConfig(t, ca)
	b := newRemoteBackend(t, cfg)
	r, _ := b.ca.(*remote)
	cfg.CRLURL = r.current.Load().points[0]
	b = newRemoteBackend(t, cfg)
	req := newRequest(t)
	cred, leaf := issue(t, b, req)
	dir := t.TempDir()
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, text, 0o600))
		return path
	}
	verify := func() (string, error) {
		der, crlErr := b.CRL(t.Context())
		must(t, crlErr)
		crl := file("crl.der", der)
		out, outErr := exec.CommandContext(t.Context(), openssl, "verify", "-crl_check", "-CAfile", file("root.pem", ca.RootPEM), "-untrusted",
			file("chain.pem", encodeCertificate(parse(t, cred.Chain[1]))), "-CRLfile", crl, file("leaf.pem", encodeCertificate(leaf))).CombinedOutput()
		return string(out), outErr
	}
	if out, verifyErr := verify(); verifyErr != nil {
		t.Fatalf("openssl verify: %s", out)
	}
	_, err := b.Revoke(t.Context(), held(req, cred))
	must(t, err)
	if out, refused := verify(); refused == nil || !strings.Contains(out, "revoked") {
		t.Errorf("openssl accepts a revoked certificate: %s", out)
	}
}

// TestRemoteCheck expects a well-made step-ca to pass but for what is configured otherwise here.
func TestRemoteCheck(t *testing.T) {
	ca := startStepCA(t)
	cfg := remoteConfig(t, ca)
	r, _ := newRemoteBackend(t, cfg).ca.(*remote)
	cfg.CRLURL = r.current.Load().points[0]
	if found := newRemoteBackend(t, cfg).Check(t.Context(), []plugins.Role{newRequest(t).Role}); len(found) > 0 {
		t.Errorf("findings: %+v", found)
	}
	cfg.CRLURL, cfg.CRLValidity, cfg.Remote.Provisioner = testCRLURL, 30*time.Second, "other"
	role := plugins.Role{Name: "long", MaxTTL: 48 * time.Hour}
	var subjects []string
	for _, f := range newRemoteBackend(t, cfg).Check(t.Context(), []plugins.Role{role}) {
		subjects = append(subjects, string(f.Severity)+" "+f.Subject)
	}
	want := []string{"error provisioner other", "error provisioner stint", "error CRL", "warning CRL"}
	if !slices.Equal(subjects, want) {
		t.Errorf("findings %v, want %v", subjects, want)
	}
}

// TestRemoteWrongTemplate expects a certificate with a serial number of step-ca's own to be dropped and revoked.
func TestRemoteWrongTemplate(t *testing.T) {
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Template: `{"subject": {}, "sans": {{ toJson .SANs }}, "extKeyUsage": ["clientAuth"]}`})
	b := newRemoteBackend(t, remoteConfig(t, ca))
	before := len(ca.CRL(t).RevokedCertificateEntries)
	req := newRequest(t)
	_, err := b.Issue(t.Context(), req)
	if !errors.Is(err, plugins.ErrMisconfigured) || errors.Is(err, plugins.ErrNotIssued) || !strings.Contains(err.Error(), "template") {
		t.Errorf("issue said %v, want ErrMisconfigured that names the template", err)
	}
	if after := len(ca.CRL(t).RevokedCertificateEntries); after != before+1 {
		t.Errorf("%d entries on the CRL after %d: what was dropped was not revoked", after, before)
	}
}

// TestRemoteRefusesTheWrongKey has step-ca refuse the token: nothing is issued.
func TestRemoteRefusesTheWrongKey(t *testing.T) {
	ca := startStepCA(t)
	cfg := remoteConfig(t, ca)
	jwk := ca.ProvisionerKey
	jwk.Key = newKey(t)
	key, err := json.Marshal(jwk)
	must(t, err)
	cfg.Remote.Key = secret.New(key)
	b := newRemoteBackend(t, cfg)
	req := newRequest(t)
	if _, err := b.Issue(t.Context(), req); !errors.Is(err, plugins.ErrMisconfigured) || !errors.Is(err, plugins.ErrNotIssued) {
		t.Errorf("issue said %v, want ErrMisconfigured and ErrNotIssued", err)
	}
	if end, err := b.Revoke(t.Context(), plugins.Held{Lease: req.Lease}); !errors.Is(err, plugins.ErrNotProven) {
		t.Errorf("revoke said %+v, %v, want ErrNotProven", end, err)
	}
}

// TestRemoteStatuses maps answers of a server that is not well to what they promise.
func TestRemoteStatuses(t *testing.T) {
	for status, want := range map[int]struct {
		is        error
		notIssued bool
	}{
		http.StatusForbidden:           {plugins.ErrMisconfigured, true},
		http.StatusTooManyRequests:     {plugins.ErrUnavailable, true},
		http.StatusInternalServerError: {plugins.ErrUnavailable, false},
		http.StatusBadGateway:          {plugins.ErrUnavailable, false},
		http.StatusCreated:             {plugins.ErrUnavailable, false}, // without a certificate
		http.StatusFound:               {plugins.ErrUnavailable, false},
	} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			b := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = w.Write([]byte(`{"message":"hush"}`))
			})
			_, err := b.Issue(t.Context(), newRequest(t))
			if !errors.Is(err, want.is) || errors.Is(err, plugins.ErrNotIssued) != want.notIssued || strings.Contains(err.Error(), "hush") {
				t.Errorf("issue said %v, want %v and ErrNotIssued %t", err, want.is, want.notIssued)
			}
			if end, err := b.Revoke(t.Context(), plugins.Held{Lease: newLease(t)}); err == nil {
				t.Errorf("revoke claims %+v", end)
			}
		})
	}
}

// TestRemoteLostAnswer cuts the connection after the request: the outcome is not known.
func TestRemoteLostAnswer(t *testing.T) {
	b := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close() // the cut
	})
	_, err := b.Issue(t.Context(), newRequest(t))
	if !errors.Is(err, plugins.ErrUnavailable) || errors.Is(err, plugins.ErrNotIssued) {
		t.Errorf("issue said %v, want ErrUnavailable and not ErrNotIssued", err)
	}
	if all, faults := listed(t, b); len(all) != 1 || len(faults) != 2 {
		t.Errorf("listed are %v, and it ends with %v", all, faults)
	}
}

// TestRemoteJournalFirst asks step-ca for nothing that cannot be written down before.
func TestRemoteJournalFirst(t *testing.T) {
	b := fakeServer(t, func(http.ResponseWriter, *http.Request) { t.Error("step-ca was asked") })
	ca, _ := b.ca.(*remote)
	must(t, os.RemoveAll(ca.journal.dir))
	_, err := b.Issue(t.Context(), newRequest(t))
	if !errors.Is(err, plugins.ErrUnavailable) || !errors.Is(err, plugins.ErrNotIssued) {
		t.Errorf("issue said %v, want ErrUnavailable and ErrNotIssued", err)
	}
}

// fakeServer is a backend whose step-ca is the handler.
func fakeServer(t *testing.T, handler http.HandlerFunc) *Backend {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	b, err := New(Config{
		Mode: Remote, TaskTrustDomain: testDomain,
		Remote: RemoteConfig{URL: server.URL, RootPEM: encodeCertificate(server.Certificate()), Provisioner: "stint", Key: secret.New(newJWK(t)), DataDir: t.TempDir()},
	}, zap.NewNop())
	must(t, err)
	return b
}
