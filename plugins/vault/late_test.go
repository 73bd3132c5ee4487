package vault_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// late is a backend whose calls that issue reach Vault seconds late.
func late(t *testing.T, f *vaulttest.Fixture, by time.Duration) *vault.Backend {
	t.Helper()
	target, err := url.Parse(f.Server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/pki/issue") || strings.Contains(r.URL.Path, "/database/creds") {
			<-time.After(by)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	cfg := f.Config()
	cfg.Address = s.URL
	return backend(t, cfg)
}

// TestLateAnswers: Vault counts a TTL from when it gets to a call. What it makes late is cut where it can be, and where it cannot,
// the record says until when it works.
func TestLateAnswers(t *testing.T) {
	t.Parallel()
	const by = 6 * time.Second
	f, pg := shared(t), servers.Postgres(t)
	b := late(t, f, by)

	cred, held := issue(t, b, request(f.PKI(t), time.Minute, nil))
	end := certificateEnd(t, cred)
	if end.Before(cred.NotAfter.Add(by - time.Second)) {
		t.Errorf("the certificate ends at %s, and was not made late", end)
	}
	if cred.UsableUntil.Before(end) {
		t.Errorf("the certificate ends at %s, and is said to be usable until %s", end, cred.UsableUntil)
	}
	if ending := revoke(t, b, held, plugins.ReadBack); ending.UncheckedUntil.Before(end) || ending.UsableUntil.Before(end) {
		t.Errorf("its end says %+v, and it is accepted until %s", ending, end)
	}

	f.Database(t, pg)
	role := vaulttest.Role("orders-db-read", map[string]any{"path": ordersPath, "policy": "stint-orders-db-read", "engine_end": "lease"})
	role.MaxTTL = 2 * time.Hour
	req := request(role, role.MaxTTL, nil) // more than Vault gives, so that nothing has to be cut to fit
	cred, _ = issue(t, b, req)
	var until time.Time
	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))
	if err := super.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", cred.PublicRef).Scan(&until); err != nil {
		t.Fatal(err)
	}
	if cred.UsableUntil.Before(until) {
		t.Errorf("VALID UNTIL is %s, and the user is said to be usable until %s", until, cred.UsableUntil)
	}

	exact := request(role, time.Hour+2*time.Second, nil) // what Vault gives by itself fits, if it is not late
	cred, _ = issue(t, b, exact)
	if err := super.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", cred.PublicRef).Scan(&until); err != nil {
		t.Fatal(err)
	}
	if most := exact.NotAfter.Add(7 * time.Second); until.After(most) || cred.UsableUntil.Before(until) { // 5 s are Vault's own
		t.Errorf("asked to end at %s, the user is let in until %s, and is said to be until %s", exact.NotAfter, until, cred.UsableUntil)
	}
}
