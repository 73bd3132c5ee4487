package status_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/status"
	"github.com/stint-dev/stint/broker/task"
)

// ca is a small CA that publishes a bundle and an empty CRL.
type ca struct {
	cert []byte
	crl  []byte
	down atomic.Bool
}

var errDown = errors.New("no crl")

func (c *ca) Bundle() [][]byte {
	if c.down.Load() {
		return nil
	}
	return [][]byte{c.cert}
}

func (c *ca) CRL(context.Context) ([]byte, error) {
	if c.down.Load() {
		return nil, errDown
	}
	return c.crl, nil
}

// newCA makes a CA that expires in a day.
func newCA(t *testing.T, name string) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCRLSign, NotBefore: time.Now(), NotAfter: time.Now().Add(24 * time.Hour),
		SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Minute)}
	crl, err := x509.CreateRevocationList(rand.Reader, list, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert: der, crl: crl}
}

// server is a status server and the handle on what it reports.
func server(t *testing.T, mutate func(*status.Config)) http.Handler {
	t.Helper()
	cfg := status.Config{
		Metrics:  status.NewMetrics("1.2.3"),
		Snapshot: func(context.Context) (status.Snapshot, error) { return status.Snapshot{FreeDisk: -1}, nil },
		Logger:   zaptest.NewLogger(t),
	}
	mutate(&cfg)
	s, err := status.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s.Handler()
}

func get(t *testing.T, h http.Handler, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody))
	return w
}

// always is a list that stays the same.
func always[T any](all ...T) func() []T { return func() []T { return all } }

func part(name, backend string, err error) status.Part {
	return status.Part{Name: name, Backend: backend, Check: func(context.Context) error { return err }}
}

func TestReadiness(t *testing.T) {
	sealed := errors.New("vault/prod is sealed\n\x1b[2Junseal it")
	tests := map[string]struct {
		parts []status.Part
		code  int
		text  string
		want  status.Report
	}{
		"ready": {
			[]status.Part{part("ledger", "", nil), part("backend vault/prod", "vault/prod", nil)},
			200, "ready\n  ok  ledger\n",
			status.Report{State: status.Ready, Parts: []status.Result{
				{Name: "ledger", OK: true}, {Name: "backend vault/prod", Backend: "vault/prod", OK: true},
			}},
		},
		"a backend down": {
			[]status.Part{part("ledger", "", nil), part("backend vault/prod", "vault/prod", sealed)},
			200, "degraded\n",
			status.Report{State: status.Degraded, Parts: []status.Result{
				{Name: "ledger", OK: true},
				{Name: "backend vault/prod", Backend: "vault/prod", Reason: "vault/prod is sealed  [2Junseal it"},
			}},
		},
		"ledger down": {
			[]status.Part{part("ledger", "", errors.New("disk full")), part("b", "b", sealed)},
			503, "  FAIL  ledger: disk full\n",
			status.Report{State: status.NotReady, Parts: []status.Result{
				{Name: "ledger", Reason: "disk full"}, {Name: "b", Backend: "b", Reason: "vault/prod is sealed  [2Junseal it"},
			}},
		},
		"long reason": {
			[]status.Part{part("p", "", errors.New(strings.Repeat("é", 400)))},
			503, "not ready\n",
			status.Report{State: status.NotReady, Parts: []status.Result{{Name: "p", Reason: strings.Repeat("é", 256) + "…"}}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := server(t, func(c *status.Config) { c.Parts = always(test.parts...) })
			text := get(t, h, "/readyz")
			if text.Code != test.code || !strings.Contains(text.Body.String(), test.text) {
				t.Errorf("%d:\n%s", text.Code, text.Body)
			}
			answer := get(t, h, "/readyz?format=json")
			var got status.Report
			if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil || answer.Code != test.code {
				t.Fatalf("%d: %v", answer.Code, err)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreTypes(time.Time{})); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}

// However often strangers ask, the parts are asked once a second; and one that hangs is not waited for beyond its time.
func TestReadinessIsCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		h := server(t, func(c *status.Config) {
			c.Logger = zap.NewNop()
			c.Parts = always(status.Part{Name: "slow", Check: func(ctx context.Context) error {
				asked.Add(1)
				<-ctx.Done()
				return ctx.Err()
			}})
		})
		start := time.Now()
		done := make(chan int, 50)
		for range cap(done) {
			go func() { done <- get(t, h, "/readyz").Code }()
		}
		for range cap(done) {
			if code := <-done; code != http.StatusServiceUnavailable {
				t.Errorf("code %d", code)
			}
		}
		if n, took := asked.Load(), time.Since(start); n != 1 || took != 3*time.Second {
			t.Errorf("asked %d times in %s", n, took)
		}
	})
}

func TestLive(t *testing.T) {
	h := server(t, func(c *status.Config) { c.Parts = always(part("ledger", "", errDown)) })
	if w := get(t, h, "/livez"); w.Code != http.StatusOK || w.Body.String() != "ok\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/livez", http.NoBody))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	if w := get(t, h, "/debug/pprof/"); w.Code != http.StatusNotFound {
		t.Errorf("pprof: %d", w.Code)
	}
}

func TestTrust(t *testing.T) {
	first, second := newCA(t, "first"), newCA(t, "second")
	h := server(t, func(c *status.Config) {
		c.Publishers = always(status.Publisher{Name: "stepca/a", Publisher: first}, status.Publisher{Name: "stepca/b", Publisher: second})
	})
	block := func(target, kind string) []byte {
		w := get(t, h, target)
		b, rest := pem.Decode(w.Body.Bytes())
		if w.Code != http.StatusOK || b == nil || b.Type != kind || len(rest) != 0 {
			t.Fatalf("%s: %d %s", target, w.Code, w.Body)
		}
		return b.Bytes
	}
	for target, want := range map[string][]byte{
		"/bundle.pem": first.cert, "/bundle.pem?backend=stepca/a": first.cert, "/bundle.pem?backend=stepca/b": second.cert,
	} {
		if !bytes.Equal(block(target, "CERTIFICATE"), want) {
			t.Errorf("%s: another bundle", target)
		}
	}
	if !bytes.Equal(block("/crl.pem?backend=stepca/b", "X509 CRL"), second.crl) {
		t.Error("another crl")
	}
	der := get(t, h, "/crl.der")
	if !bytes.Equal(der.Body.Bytes(), first.crl) || der.Header().Get("Content-Type") != "application/pkix-crl" {
		t.Errorf("crl.der: %v", der.Header())
	}
	if w := get(t, h, "/crl.der?backend=vault/x"); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "stepca/a, stepca/b") {
		t.Errorf("unknown backend: %d %s", w.Code, w.Body)
	}
}

func TestTrustWithoutAnswer(t *testing.T) {
	first := newCA(t, "first")
	h := server(t, func(c *status.Config) { c.Publishers = always(status.Publisher{Name: "stepca/a", Publisher: first}) })
	first.down.Store(true)
	for _, target := range []string{"/bundle.pem", "/crl.pem", "/crl.der"} {
		if w := get(t, h, target); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), errDown.Error()) {
			t.Errorf("%s while down: %d %s", target, w.Code, w.Body)
		}
	}
	none := server(t, func(*status.Config) {})
	if w := get(t, none, "/crl.pem"); w.Code != http.StatusNotFound {
		t.Errorf("no publisher: %d", w.Code)
	}
}

func TestMetrics(t *testing.T) {
	metrics := status.NewMetrics("1.2.3")
	var fails error
	h := server(t, func(c *status.Config) {
		c.Metrics = metrics
		c.Parts = always(part("ledger", "", nil), part("backend vault/prod", "vault/prod", errDown))
		c.Publishers = always(status.Publisher{Name: "stepca/a", Publisher: newCA(t, "a")})
		c.Snapshot = func(context.Context) (status.Snapshot, error) {
			return status.Snapshot{
				Stats: ledger.Stats{
					TasksByState:  map[task.State]int{task.Active: 3},
					LeasesByState: map[lease.State]int{lease.Revoking: 2},
					Stuck:         1, Overdue: 2, OldestDue: time.Now().Add(-time.Hour),
				},
				AuditSize: 99, FreeDisk: 1 << 30, LanesHeld: 3, ClockJumps: 2, SVIDExpiry: time.Now().Add(time.Hour),
			}, fails
		}
	})
	metrics.Issued("vault/prod", "orders")
	metrics.Issued("vault/prod", "orders")
	metrics.Denied(fault.NoProfile)
	metrics.ObserveCommit(3 * time.Millisecond)
	metrics.ObserveRPC("/stint.v1.TaskService/GetTask", "OK", time.Millisecond)

	body := get(t, h, "/metrics").Body.String()
	for _, want := range []string{
		`stint_credentials_issued_total{backend="vault/prod",role="orders"} 2`,
		`stint_denied_total{reason="NO_PROFILE"} 1`,
		`stint_commit_seconds_bucket{le="0.004"} 1`,
		`stint_rpc_seconds_count{code="OK",method="/stint.v1.TaskService/GetTask"} 1`,
		`stint_tasks{state="ACTIVE"} 3`, `stint_tasks{state="CLOSING"} 0`,
		`stint_leases{state="REVOKING"} 2`, `stint_leases{state="INTENT"} 0`,
		"stint_leases_stuck 1", "stint_teardown_lanes_held 3", "stint_clock_jumps_total 2", "stint_teardown_backlog 2", "stint_teardown_oldest_seconds 36",
		`stint_backend_up{backend="vault/prod"} 0`, "stint_ready 1", "stint_audit_size 99",
		"stint_free_disk_bytes 1.073741824e+09", "stint_svid_expiry_seconds 3", `stint_ca_expiry_seconds{backend="stepca/a"} 86`,
		`stint_build_info{version="1.2.3"} 1`, "go_goroutines", "stint_ledger_readable 1",
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("missing: %s", want)
		}
	}

	fails = errors.New("ledger is locked")
	broken := get(t, h, "/metrics")
	if body := broken.Body.String(); broken.Code != http.StatusOK || !strings.Contains(body, "stint_ledger_readable 0") ||
		strings.Contains(body, "stint_audit_size 99") {
		t.Errorf("%d without a ledger:\n%s", broken.Code, body)
	}
}

// A backend that is gone is not measured any more: an alert on what was last found there would never end.
func TestMetricsOfRemovedBackends(t *testing.T) {
	t.Parallel()
	metrics := status.NewMetrics("v1")
	h := server(t, func(c *status.Config) { c.Metrics = metrics })
	for _, backend := range []string{"vault/prod", "vault/old"} {
		metrics.Reconciled(backend, reconcile.Counts{Unknown: 1}, time.Unix(1, 0))
	}
	metrics.Only([]string{"vault/prod"})
	body := get(t, h, "/metrics").Body.String()
	if !strings.Contains(body, `stint_reconcile_unknown{backend="vault/prod"} 1`) || strings.Contains(body, "vault/old") {
		t.Errorf("after vault/old was removed:\n%s", body)
	}
}

// Whoever counts need not know whether anybody listens.
func TestNilMetrics(t *testing.T) {
	var m *status.Metrics
	m.Issued("b", "r")
	m.Denied(fault.Internal)
	m.ObserveCommit(time.Second)
	m.ObserveRPC("m", "OK", time.Second)
	if _, err := status.New(status.Config{Metrics: m}); err == nil {
		t.Error("a server without metrics was made")
	}
}

func TestRun(t *testing.T) {
	s, err := status.New(status.Config{
		Metrics:  status.NewMetrics("x"),
		Snapshot: func(context.Context) (status.Snapshot, error) { return status.Snapshot{}, nil },
		Logger:   zaptest.NewLogger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/livez", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil || string(body) != "ok\n" || answer.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%q %v %v", body, answer.Header, err)
	}
	if err := answer.Body.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := s.Run(t.Context(), l); err == nil {
		t.Error("serving on a closed listener worked")
	}
}
