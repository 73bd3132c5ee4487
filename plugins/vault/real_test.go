package vault_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/plugins"
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

	_ plugins.AccountLister = (*vault.Backend)(nil)
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

// TestDatabaseUserDroppedByOthers: a lease whose user is gone from the database ends like any other.
func TestDatabaseUserDroppedByOthers(t *testing.T) {
	f, pg := shared(t), servers.Postgres(t)
	role := f.Database(t, pg)
	b := backend(t, f.Config())
	cred, held := issue(t, b, request(role, time.Minute, nil))
	vaulttest.Exec(t, vaulttest.Connect(t, pg.SuperDSN("postgres")), `DROP ROLE "`+cred.PublicRef+`"`)
	revoke(t, b, held, plugins.ReadBack)
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
	if end := certificateEnd(t, cred); !ending.UncheckedUntil.Equal(end) || !cred.UsableUntil.Equal(end) {
		t.Errorf("usable until %s, unchecked until %s, want the certificate's end %s", cred.UsableUntil, ending.UncheckedUntil, end)
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
	prepared, err := b.Prepare(t.Context(), request(role, time.Minute, nil))
	if err != nil {
		t.Fatal(err)
	}
	// Vault said no: nothing was disclosed.
	revoke(t, b, plugins.Held{Handle: prepared.Handle, NotIssued: true}, plugins.NotIssued)
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

// TestList finds what was issued under a role by Stint and by others, and nothing else.
func TestList(t *testing.T) {
	f := shared(t)
	role := f.SSH(t)
	b := backend(t, f.Config())
	_, held := issue(t, b, request(role, 5*time.Minute, ip("10.0.0.42")))
	foreign(t, f)
	out, err := f.Root.Logical().WriteWithContext(t.Context(), "ssh/creds/stint-otp", map[string]any{"ip": "10.0.0.43"})
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for found, listErr := range b.List(t.Context(), role) {
		if listErr != nil {
			t.Fatal(listErr)
		}
		_, id, _ := strings.Cut(b.Key(found.Handle), " ")
		listed = append(listed, id)
		if id == out.LeaseID {
			revoke(t, b, plugins.Held{Handle: found.Handle}, plugins.ReadBack)
		}
	}
	_, mine, _ := strings.Cut(b.Key(held.Handle), " ")
	for _, want := range []string{mine, out.LeaseID} {
		if !slices.Contains(listed, want) {
			t.Errorf("%s is not listed in %v", want, listed)
		}
	}
	for _, id := range listed {
		if !strings.HasPrefix(id, "ssh/creds/stint-otp/") {
			t.Errorf("listed %s, which is of another role", id)
		}
	}
	revoke(t, b, held, plugins.ReadBack)
}

// TestListPatterned finds what was issued under a path with parameters, with Stint's own rights, and no neighbours.
func TestListPatterned(t *testing.T) {
	f := shared(t)
	f.SSH(t)
	foreign(t, f)
	for value, path := range map[string]string{
		"otp": "ssh/creds/stint-{{ .params.part }}", "creds": "ssh/{{ .params.part }}/stint-otp",
	} {
		t.Run(path, func(t *testing.T) {
			role := vaulttest.Role("patterned-"+value, map[string]any{
				"path": path, "data": map[string]any{"ip": "10.0.0.{{ .params.host }}"}, "policy": "stint-patterned-" + value,
			})
			role.Parameters = []string{"part", "host"}
			f.Apply(t, role)
			b := backend(t, f.Config())
			_, held := issue(t, b, request(role, 5*time.Minute, map[string]string{"part": value, "host": "45"}))
			listed := map[string]bool{}
			for found, err := range b.List(t.Context(), role) {
				if err != nil {
					t.Fatal(err)
				}
				_, id, _ := strings.Cut(b.Key(found.Handle), " ")
				listed[id] = true
				if !strings.HasPrefix(id, "ssh/creds/stint-otp/") {
					t.Errorf("listed %s, which is of another role", id)
				}
			}
			if _, mine, _ := strings.Cut(b.Key(held.Handle), " "); !listed[mine] {
				t.Errorf("%s is not listed in %v", mine, listed)
			}
			revoke(t, b, held, plugins.ReadBack)
		})
	}
}

// foreign makes a lease beside Stint's role, as another user of Vault would.
func foreign(t *testing.T, f *vaulttest.Fixture) {
	t.Helper()
	root := f.Root.Logical()
	_, err := root.WriteWithContext(t.Context(), "ssh/roles/others", map[string]any{
		"key_type": "otp", "default_user": "ubuntu", "cidr_list": "10.0.0.0/8",
	})
	if err == nil {
		_, err = root.WriteWithContext(t.Context(), "ssh/creds/others", map[string]any{"ip": "10.0.0.44"})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestListRefuses says which roles cannot be listed, and that it is for good.
func TestListRefuses(t *testing.T) {
	f := shared(t)
	b := backend(t, f.Config())
	for name, role := range map[string]plugins.Role{
		"a stored value": vaulttest.Role("stored", map[string]any{"path": "kv/data/x", "policy": "stint-x", "kind": "static"}),
	} {
		role.Parameters, role.AcceptPermanent = []string{"env"}, true
		var got error
		for _, err := range b.List(t.Context(), role) {
			got = err
		}
		if !errors.Is(got, errors.ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", name, got)
		}
	}
	for _, h := range []plugins.Handle{"", "{}", `{"v":1,"cluster":"c","accessor":"a"}`} {
		if key := b.Key(h); key != "" {
			t.Errorf("handle %q has the key %q", h, key)
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
