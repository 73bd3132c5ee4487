package vault_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

var servers servertest.Shared

func TestMain(m *testing.M) { servers.Run(m) }

var (
	_ plugins.Backend  = (*vault.Backend)(nil)
	_ plugins.Preparer = (*vault.Backend)(nil)
	_ plugins.Runner   = (*vault.Backend)(nil)
	_ plugins.Checker  = (*vault.Backend)(nil)
	_ plugins.Prober   = (*vault.Backend)(nil)
	_ plugins.Lister   = (*vault.Backend)(nil)
)

// shared returns the fixture on the Vault that these tests share. Setting it up again changes nothing but the key that
// signs JWT-SVIDs, and the policies of what a test applies.
func shared(t *testing.T) *vaulttest.Fixture {
	t.Helper()
	return vaulttest.Setup(t, servers.Vault(t))
}

func backend(t *testing.T, cfg vault.Config) *vault.Backend {
	t.Helper()
	b, err := vault.New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func request(role plugins.Role, ttl time.Duration, params map[string]string) plugins.Request {
	var lease plugins.LeaseID
	_, _ = rand.Read(lease[:])
	return plugins.Request{
		Lease: lease, TaskID: uuid.Must(uuid.NewV7()).String(), TaskName: "reconcile-invoices-7f3k",
		Agent: "spiffe://example.org/agent/invoice/eu1", Role: role, Params: params, NotAfter: time.Now().Add(ttl),
	}
}

// issue prepares and issues, and fails the test on an error.
func issue(t *testing.T, b *vault.Backend, req plugins.Request) (plugins.Credential, plugins.Held) {
	t.Helper()
	began := time.Now()
	prepared, err := b.Prepare(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	req.Prepared = prepared
	cred, err := b.Issue(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return cred, plugins.Held{
		Lease: req.Lease, Role: req.Role.Name, Handle: cred.Handle, IssuedAt: began, NotAfter: cred.NotAfter,
	}
}

func revoke(t *testing.T, b *vault.Backend, held plugins.Held, want plugins.Proof) plugins.Ending {
	t.Helper()
	ending, err := b.Revoke(t.Context(), held)
	if err != nil {
		t.Fatal(err)
	}
	if ending.Proof != want {
		t.Fatalf("proof %s (%s), want %s", ending.Proof, ending.Detail, want)
	}
	return ending
}

func field(t *testing.T, cred plugins.Credential, name string) string {
	t.Helper()
	v, ok := cred.Fields[name]
	if !ok || v.IsZero() {
		t.Fatalf("no field %q among %d", name, len(cred.Fields))
	}
	return string(v.Expose())
}

func ip(address string) map[string]string { return map[string]string{"ip": address} }

func TestSSHOneTimePassword(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	b := backend(t, f.Config())
	cred, held := issue(t, b, request(role, time.Minute, ip("10.0.0.7")))
	if cred.PublicRef != "ubuntu@10.0.0.7" {
		t.Errorf("public reference %q", cred.PublicRef)
	}
	if end := time.Until(cred.NotAfter); end > vaulttest.OTPLease || end < vaulttest.OTPLease-5*time.Second {
		t.Errorf("ends in %s, want the lease's %s", end, vaulttest.OTPLease)
	}
	revoke(t, b, held, plugins.ReadBack)
	if _, err := f.Root.Logical().WriteWithContext(t.Context(), "ssh/verify", map[string]any{"otp": field(t, cred, "key")}); err == nil {
		t.Error("the one-time password still verifies")
	}
	again := revoke(t, b, held, plugins.ReadBack)
	if again.Detail != "Vault: invalid lease; token gone" {
		t.Errorf("detail %q", again.Detail)
	}
}

func TestDatabaseUserAndItsOpenSessionEnd(t *testing.T) {
	f, pg := shared(t), servers.Postgres(t)
	role := f.Database(t, pg)
	b := backend(t, f.Config())
	cred, held := issue(t, b, request(role, 40*time.Second, nil))
	user, password := field(t, cred, "username"), field(t, cred, "password")
	if cred.PublicRef != user || !strings.HasPrefix(user, "v-token-task-7f3k-") {
		t.Errorf("database user %q, public reference %q", user, cred.PublicRef)
	}
	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))
	var until time.Time
	if err := super.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", user).Scan(&until); err != nil {
		t.Fatal(err)
	}
	// Vault gives PostgreSQL 5 s more than the lease has.
	if left := time.Until(until); left > 45*time.Second || left < 35*time.Second {
		t.Errorf("PostgreSQL ends the user in %s, want about the 40 s that were asked for, and not the hour of Vault's role", left)
	}
	session := vaulttest.Connect(t, pg.DSN(user, password, "postgres"))
	var item string
	if err := session.QueryRow(t.Context(), "SELECT item FROM orders WHERE id = 1").Scan(&item); err != nil || item != "bolt" {
		t.Fatalf("read with the issued user: %q, %v", item, err)
	}
	revoke(t, b, held, plugins.ReadBack)
	if err := session.QueryRow(t.Context(), "SELECT 1").Scan(new(int)); err == nil {
		t.Error("the open session goes on after teardown")
	}
	if n := vaulttest.Users(t, super, user); n != 0 {
		t.Errorf("%d users are left", n)
	}
}

func TestCertificateOfPKI(t *testing.T) {
	f := shared(t)
	role := f.PKI(t)
	b := backend(t, f.Config())
	info, err := b.CheckRole(role)
	if err != nil || !info.Exposure.UntilExpiry {
		t.Fatalf("role: %+v, %v; a certificate may be accepted until it expires", info, err)
	}
	cred, held := issue(t, b, request(role, 2*time.Minute, nil))
	if !strings.Contains(field(t, cred, "private_key"), "PRIVATE KEY") || !strings.Contains(field(t, cred, "ca_chain"), "CERTIFICATE") {
		t.Error("key or chain is missing")
	}
	if cred.PublicRef != field(t, cred, "serial_number") {
		t.Errorf("public reference %q", cred.PublicRef)
	}
	ending := revoke(t, b, held, plugins.ReadBack)
	if !ending.UncheckedUntil.Equal(held.NotAfter) {
		t.Errorf("unchecked until %s, want the certificate's end", ending.UncheckedUntil)
	}
	answer, err := f.Root.Logical().ReadWithContext(t.Context(), "pki/cert/"+cred.PublicRef)
	if err != nil || answer.Data["revocation_time"] == nil {
		t.Fatalf("vault does not know the certificate as revoked: %v", err)
	}
}

func TestStoredValueIsDisclosed(t *testing.T) {
	f := shared(t)
	role := f.KV(t, "k-123")
	b := backend(t, f.Config())
	refused := role
	refused.AcceptPermanent = false
	if _, err := b.CheckRole(refused); !errors.Is(err, plugins.ErrInvalidRole) || !strings.Contains(err.Error(), "accept_permanent") {
		t.Errorf("a role that cannot be ended was not refused by name: %v", err)
	}
	info, err := b.CheckRole(role)
	if err != nil || info.Ends != plugins.EndsNever || info.Exposure.Bounded {
		t.Fatalf("role: %+v, %v", info, err)
	}
	cred, held := issue(t, b, request(role, time.Minute, nil))
	if got := field(t, cred, "api_key"); got != "k-123" || len(cred.Fields) != 1 || !cred.NotAfter.IsZero() {
		t.Errorf("%d fields, api_key %q, ends %s", len(cred.Fields), got, cred.NotAfter)
	}
	revoke(t, b, held, plugins.Disclosed)
}

func TestEveryWayToLogIn(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	for name, auth := range map[string]vault.Auth{
		"jwt": f.Config().Auth, "approle": f.AppRole(t), "token": f.TokenFile(t),
	} {
		t.Run(name, func(t *testing.T) {
			cfg := f.Config()
			cfg.Auth = auth
			b := backend(t, cfg)
			if err := b.Healthy(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.8")))
			revoke(t, b, held, plugins.ReadBack)
		})
	}
}

// TestDeadLoginTokenIsReplaced ends Stint's own token at Vault, with another SVID key in place by then.
func TestDeadLoginTokenIsReplaced(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	b := backend(t, f.Config())
	before := f.Accessors(t)
	_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.9")))
	own := newAccessors(before, f.Accessors(t), string(held.Handle))
	if len(own) != 1 {
		t.Fatalf("%d new tokens beside the credential's, want stint's own", len(own))
	}
	rotated := vaulttest.NewSigner(t, vaulttest.SPIFFEID)
	f.TrustKeys(t, rotated)
	*f.JWT = *rotated
	if err := f.Root.Auth().Token().RevokeAccessorWithContext(t.Context(), own[0]); err != nil {
		t.Fatal(err)
	}
	revoke(t, b, held, plugins.ReadBack) // the credential's token is an orphan, its lease lived on
}

func newAccessors(before, after []string, handle string) []string {
	known := map[string]bool{}
	for _, a := range before {
		known[a] = true
	}
	var out []string
	for _, a := range after {
		if !known[a] && !strings.Contains(handle, a) {
			out = append(out, a)
		}
	}
	return out
}

func TestLeaseEndedByOthers(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	b := backend(t, f.Config())
	_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.10")))
	if err := f.Root.Sys().RevokePrefixWithContext(t.Context(), "ssh/creds/stint-otp"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return len(f.Leases(t, "ssh/creds/stint-otp")) == 0 })
	ending := revoke(t, b, held, plugins.LostAtBackend)
	if !strings.Contains(ending.Detail, "gone at the first look") {
		t.Errorf("detail %q", ending.Detail)
	}
	held.NotAfter = time.Now().Add(-time.Second)
	revoke(t, b, held, plugins.Lapsed)
}

func TestLeaseThatCannotBeCutIsEnded(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	b := backend(t, f.Config())
	req := request(role, vaulttest.OTPLease-5*time.Second, ip("10.0.0.11"))
	prepared, err := b.Prepare(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	req.Prepared = prepared
	if _, err = b.Issue(t.Context(), req); !errors.Is(err, plugins.ErrMisconfigured) || errors.Is(err, plugins.ErrNotIssued) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "default_lease_ttl") || strings.Contains(err.Error(), "could not be ended") {
		t.Errorf("error %q", err)
	}
	if left := f.Leases(t, "ssh/creds/stint-otp"); len(left) != 0 {
		t.Errorf("%d leases are left", len(left))
	}
}

func TestMissingPolicyIsAnError(t *testing.T) {
	f := shared(t)
	f.SSH(t)
	b := backend(t, f.Config())
	before := len(f.Accessors(t))
	role := vaulttest.Role("x", map[string]any{"path": "ssh/creds/stint-otp", "method": "update", "policy": "stint-nobody-wrote-this"})
	_, err := b.Prepare(t.Context(), request(role, time.Minute, nil))
	if !errors.Is(err, plugins.ErrMisconfigured) || !strings.Contains(err.Error(), "stint-nobody-wrote-this") {
		t.Fatalf("got %v", err)
	}
	// Stint's own token is new; the one that was made is gone again.
	if after := len(f.Accessors(t)); after != before+1 {
		t.Errorf("%d tokens, want %d", after, before+1)
	}
}

func TestRefusedIssueLeavesNoToken(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	// A policy that allows another path only.
	f.Policy(t, "stint-elsewhere", `path "ssh/creds/stint-other" { capabilities = ["update"] }`)
	role.Config = vaulttest.Role("", map[string]any{
		"path": "ssh/creds/stint-otp", "data": map[string]any{"ip": "{{ .params.ip }}"}, "policy": "stint-elsewhere",
	}).Config
	b := backend(t, f.Config())
	if err := b.Healthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := len(f.Accessors(t))
	req := request(role, time.Minute, ip("10.0.0.12"))
	prepared, err := b.Prepare(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	req.Prepared = prepared
	_, err = b.Issue(t.Context(), req)
	if !errors.Is(err, plugins.ErrNotIssued) || !errors.Is(err, plugins.ErrMisconfigured) {
		t.Fatalf("got %v", err)
	}
	if after := len(f.Accessors(t)); after != before {
		t.Errorf("%d tokens, want %d", after, before)
	}
}

func TestSealedAndUnreachable(t *testing.T) {
	server := servertest.StartVault(t, servertest.VaultOptions{})
	f := vaulttest.Setup(t, server)
	role := f.SSH(t)
	b := backend(t, f.Config())
	_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.13")))
	req := request(role, time.Minute, ip("10.0.0.14"))
	prepared, err := b.Prepare(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	req.Prepared = prepared
	notIssued := func(what string) {
		t.Helper()
		req.Prepared.State = secret.FromString("hvs.unused")
		if _, err := b.Issue(t.Context(), req); !errors.Is(err, plugins.ErrUnavailable) || !errors.Is(err, plugins.ErrNotIssued) {
			t.Errorf("issue at %s: %v", what, err)
		}
		if _, err := b.Prepare(t.Context(), request(role, time.Minute, ip("10.0.0.15"))); !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("prepare at %s: %v", what, err)
		}
		if err := b.Healthy(t.Context()); !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("healthy at %s: %v", what, err)
		}
		if _, err := b.Revoke(t.Context(), held); err == nil {
			t.Errorf("revoke at %s: no error", what)
		}
	}
	server.Seal(t)
	notIssued("a sealed vault")
	server.Unseal(t)
	revoke(t, b, held, plugins.ReadBack)
	server.Stop(t)
	notIssued("a stopped vault")
}

// TestTokenThatDiesInFlight ends the credential's token while the engine makes a user. Vault answers all the same, with
// a user that lives.
func TestTokenThatDiesInFlight(t *testing.T) {
	f, pg := shared(t), servers.Postgres(t)
	f.Database(t, pg)
	f.DatabaseRole(t, "stint-slow", "SELECT pg_sleep(1.5); "+vaulttest.CreatesUser)
	role := vaulttest.Role("slow", map[string]any{"path": "database/creds/stint-slow", "policy": "stint-slow"})
	f.Apply(t, role)
	b := backend(t, f.Config())
	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))

	inFlight := func(t *testing.T, within time.Duration, name string) (plugins.Prepared, plugins.Credential, error) {
		t.Helper()
		req := request(role, time.Minute, nil)
		req.TaskName = "task-" + name
		prepared, err := b.Prepare(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		req.Prepared = prepared
		type result struct {
			cred plugins.Credential
			err  error
		}
		done := make(chan result, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			cred, err := b.Issue(ctx, req)
			done <- result{cred, err}
		}()
		eventually(t, func() bool { return sleeping(t, super) })
		revoke(t, b, plugins.Held{Handle: prepared.Handle, IssuedAt: time.Now(), Uncertain: true}, plugins.Swept)
		r := <-done
		return prepared, r.cred, r.err
	}

	t.Run("the late answer is revoked by its lease", func(t *testing.T) {
		_, cred, err := inFlight(t, 10*time.Second, "late")
		if err != nil {
			t.Fatalf("vault gave no answer: %v", err)
		}
		revoke(t, b, plugins.Held{Handle: cred.Handle, NotAfter: cred.NotAfter}, plugins.ReadBack)
		if n := vaulttest.Users(t, super, "v-token-task-late-%"); n != 0 {
			t.Errorf("%d users are left", n)
		}
	})
	t.Run("a lost answer is found by tidying", func(t *testing.T) {
		req := request(role, time.Minute, nil)
		req.TaskName = "task-lost"
		prepared, err := b.Prepare(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		token := string(prepared.State.Expose())
		answered := make(chan error, 1)
		go func() {
			// The answer reaches a client that Stint has forgotten.
			_, err := f.Server.Client(t, token).Logical().ReadWithContext(t.Context(), "database/creds/stint-slow")
			answered <- err
		}()
		eventually(t, func() bool { return sleeping(t, super) })
		held := plugins.Held{Handle: prepared.Handle, IssuedAt: time.Now(), Uncertain: true}
		revoke(t, b, held, plugins.Swept)
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		if n := vaulttest.Users(t, super, "v-token-task-lost-%"); n != 1 {
			t.Fatalf("%d users, want the one that outlived its token", n)
		}
		// The sweep after the horizon.
		ending := revoke(t, b, held, plugins.Swept)
		if ending.UsableUntil.Unix() != req.NotAfter.Unix() {
			t.Errorf("usable until %s, want %s", ending.UsableUntil, req.NotAfter)
		}
		eventually(t, func() bool { return vaulttest.Users(t, super, "v-token-task-lost-%") == 0 })
	})
	t.Run("a caller that gives up", func(t *testing.T) {
		prepared, _, err := inFlight(t, time.Second, "gone")
		if !errors.Is(err, plugins.ErrUnavailable) || errors.Is(err, plugins.ErrNotIssued) {
			t.Fatalf("an issue that timed out said %v", err)
		}
		revoke(t, b, plugins.Held{Handle: prepared.Handle, Uncertain: true}, plugins.Swept)
		eventually(t, func() bool { return !sleeping(t, super) && vaulttest.Users(t, super, "v-token-task-gone-%") == 0 })
	})
}

func TestAnotherClusterAndNonsense(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	b := backend(t, f.Config())
	_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.16")))
	other := vaulttest.Setup(t, servertest.StartVault(t, servertest.VaultOptions{}))
	other.SSH(t)
	elsewhere := backend(t, other.Config())
	if _, err := elsewhere.Revoke(t.Context(), held); !errors.Is(err, plugins.ErrNotProven) {
		t.Errorf("another cluster proved an end: %v", err)
	}
	for _, nonsense := range []plugins.Handle{"", "x", "{}", `{"v":2,"cluster":"c","accessor":"a"}`, `{"v":1,"accessor":"a"}`} {
		if _, err := b.Revoke(t.Context(), plugins.Held{Handle: nonsense}); !errors.Is(err, plugins.ErrUnknownHandle) {
			t.Errorf("handle %q: %v", nonsense, err)
		}
	}
	// A lease outside of what the policy lets Stint see is refused, which proves nothing.
	foreign := plugins.Handle(strings.ReplaceAll(string(held.Handle), "ssh/creds/stint-otp/", "ssh/creds/other/"))
	if _, err := b.Revoke(t.Context(), plugins.Held{Handle: foreign}); !errors.Is(err, plugins.ErrNotProven) {
		t.Errorf("foreign lease: %v", err)
	}
	revoke(t, b, held, plugins.ReadBack)
}

func TestList(t *testing.T) {
	f, pg := shared(t), servers.Postgres(t)
	role := f.Database(t, pg)
	b := backend(t, f.Config())
	cred, held := issue(t, b, request(role, time.Minute, nil))
	var mine []plugins.Found
	for found, err := range b.List(t.Context(), role) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(held.Handle), found.PublicRef) {
			mine = append(mine, found)
		}
	}
	if len(mine) != 1 || mine[0].NotAfter.Sub(cred.NotAfter).Abs() > 2*time.Second {
		t.Fatalf("listed %+v, want one that ends at %s", mine, cred.NotAfter)
	}
	revoke(t, b, plugins.Held{Handle: mine[0].Handle}, plugins.ReadBack)
	revoke(t, b, held, plugins.ReadBack)
	for found, err := range b.List(t.Context(), role) {
		if err != nil || strings.Contains(string(held.Handle), found.PublicRef) {
			t.Errorf("still listed: %+v, %v", found, err)
		}
	}
}

// TestStintCannotIssueByItself holds the policy that PolicyText prints against what it is for.
func TestStintCannotIssueByItself(t *testing.T) {
	f := shared(t)
	f.SSH(t)
	stint := f.Server.Client(t, f.Token(t))
	for name, try := range map[string]func() error{
		"issue by itself": func() error {
			_, err := stint.Logical().WriteWithContext(t.Context(), "ssh/creds/stint-otp", map[string]any{"ip": "10.0.0.17"})
			return err
		},
		"a token without the role": func() error {
			_, err := stint.Logical().WriteWithContext(t.Context(), "auth/token/create", map[string]any{"policies": []string{"stint-x"}})
			return err
		},
		"a token with stint's own policy": func() error {
			_, err := stint.Logical().WriteWithContext(t.Context(), "auth/token/create/stint", map[string]any{"policies": []string{"stint"}})
			return err
		},
		"a foreign lease": func() error {
			_, err := stint.Logical().WriteWithContext(t.Context(), "sys/leases/lookup", map[string]any{"lease_id": "ssh/creds/other/x"})
			return err
		},
		"a lease without an ID": func() error {
			_, err := stint.Logical().WriteWithContext(t.Context(), "sys/leases/revoke", map[string]any{"sync": true})
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s was allowed", name)
		}
	}
}

// sleeping is true while a creation statement sleeps.
func sleeping(t *testing.T, super *pgx.Conn) bool {
	t.Helper()
	var n int
	const q = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
	if err := super.QueryRow(t.Context(), q).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// eventually polls for 15 s.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not happen within 15 s")
		case <-tick.C:
		}
	}
}
