package vault_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

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
	// Long after, what is gone is gone by Vault's clock; but only once the engine's own end has passed too.
	held.NotAfter = time.Now().Add(-time.Minute)
	revoke(t, b, held, plugins.LostAtBackend)
	passed := fmt.Sprintf(`"until":%d`, held.NotAfter.Unix())
	held.Handle = plugins.Handle(regexp.MustCompile(`"until":\d+`).ReplaceAllString(string(held.Handle), passed))
	revoke(t, b, held, plugins.Lapsed)
}

// TestRevokeIsQueuedOnce asks for the end of a lease many times. Each revoke that is queued uses up one of the six attempts that
// Vault makes by itself.
func TestRevokeIsQueuedOnce(t *testing.T) {
	f, b := newFakeVault(t)
	_, held := issue(t, b, request(fakeRole(), time.Minute, nil))
	engine := func(refuses bool) int {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.refuse = refuses
		return f.queued
	}
	engine(true)
	for range 8 {
		if _, err := b.Revoke(t.Context(), held); !errors.Is(err, plugins.ErrNotProven) {
			t.Errorf("the engine refuses, and Revoke says %v", err)
		}
	}
	if n := engine(false); n != 1 {
		t.Errorf("a revoke was queued %d times", n)
	}
	revoke(t, b, held, plugins.ReadBack)
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
	// A connection of before may only be found dead by a request that uses it, and then nobody knows what became of that.
	eventually(t, func() bool { return b.Healthy(t.Context()) != nil })
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
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		deadline, _ := ctx.Deadline()
		prepared, err := b.Prepare(ctx, req)
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
		// Had Vault forgotten the user, PostgreSQL would end it: not later than the record says, nor than what could have been
		// made at the last instant.
		var until time.Time
		if err := super.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname LIKE 'v-token-task-lost-%'").Scan(&until); err != nil {
			t.Fatal(err)
		}
		// The sweep after the horizon.
		ending := revoke(t, b, held, plugins.Swept)
		latest := deadline.Add(vault.DefaultMaxRequestDuration + req.Role.MaxTTL + 6*time.Second)
		if ending.UsableUntil.Before(latest.Add(-time.Second)) || ending.UsableUntil.After(latest) {
			t.Errorf("usable until %s, want the role's maximum after the last instant at which Vault may begin, %s", ending.UsableUntil, latest)
		}
		if !ending.UsableUntil.Equal(prepared.UsableUntil) {
			t.Errorf("usable until %s, but what was prepared says %s", ending.UsableUntil, prepared.UsableUntil)
		}
		if until.After(ending.UsableUntil) {
			t.Errorf("PostgreSQL would accept the user until %s, and the end says %s", until, ending.UsableUntil)
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
