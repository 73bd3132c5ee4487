package vault_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

const ordersPath = "database/creds/stint-orders-ro"

// down is a Vault whose PostgreSQL can be stopped.
type down struct {
	f    *vaulttest.Fixture
	pg   *servertest.Postgres
	b    *vault.Backend
	role plugins.Role
}

func newDown(t *testing.T) down {
	t.Helper()
	d := down{pg: servertest.StartPostgres(t), f: vaulttest.Setup(t, servertest.StartVault(t, servertest.VaultOptions{}))}
	d.role = d.f.Database(t, d.pg)
	d.b = backend(t, d.f.Config())
	return d
}

// lost issues with a token and loses the answer: the intent is all that is known.
func (d down) lost(t *testing.T, name string) plugins.Held {
	t.Helper()
	req := request(d.role, 5*time.Minute, nil)
	req.TaskName = "task-" + name
	prepared, err := d.b.Prepare(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	client := d.f.Server.Client(t, string(prepared.State.Expose()))
	if _, err = client.Logical().ReadWithContext(t.Context(), ordersPath); err != nil {
		t.Fatal(err)
	}
	return plugins.Held{Handle: prepared.Handle, IssuedAt: time.Now(), NotAfter: req.NotAfter, Uncertain: true}
}

// kill ends the token of an intent at Vault, as its clock does.
func (d down) kill(t *testing.T, held plugins.Held) {
	t.Helper()
	if err := d.f.Root.Auth().Token().RevokeAccessorWithContext(t.Context(), accessor(t, d.f, held.Handle)); err != nil {
		t.Fatal(err)
	}
}

// TestTidyingDropsNothing: Vault's tidy drops leases whose token is gone by force, with the database users that they stand
// for. While PostgreSQL does not answer, no sweep may let it, and everything is gone when PostgreSQL is back.
func TestTidyingDropsNothing(t *testing.T) {
	d := newDown(t)
	_, known := issue(t, d.b, request(d.role, 5*time.Minute, nil))
	alive, dead := d.lost(t, "alive"), d.lost(t, "dead")
	d.pg.Stop(t)
	if ending, err := d.b.Revoke(t.Context(), known); !errors.Is(err, plugins.ErrNotProven) || !errors.Is(err, plugins.ErrUnavailable) {
		t.Fatalf("revoked without PostgreSQL: %+v, %v", ending, err)
	}
	d.kill(t, known) // its token's end
	d.kill(t, dead)
	revoke(t, d.b, alive, plugins.Swept) // Vault has the token's lease in its queue
	if ending, err := d.b.Revoke(t.Context(), dead); !errors.Is(err, plugins.ErrNotProven) {
		t.Errorf("swept while revokes fail: %+v, %v", ending, err)
	}
	if ending, err := d.b.Revoke(t.Context(), known); !errors.Is(err, plugins.ErrNotProven) {
		t.Errorf("an end was claimed without PostgreSQL: %+v, %v", ending, err)
	}
	if n := len(d.f.Leases(t, ordersPath)); n != 3 {
		t.Errorf("Vault knows %d leases of the three users that PostgreSQL has", n)
	}
	d.pg.Restart(t)
	eventually(t, func() bool { _, err := d.b.Revoke(t.Context(), known); return err == nil })
	eventually(t, func() bool { _, err := d.b.Revoke(t.Context(), dead); return err == nil })
	super := vaulttest.Connect(t, d.pg.SuperDSN("postgres"))
	eventually(t, func() bool { return vaulttest.Users(t, super, "v-token-%") == 0 })
}

// TestLeaseDroppedByForce: an operator lets Vault drop a lease whose engine does not answer. It is gone at Vault, and the
// record does not say that the user is.
func TestLeaseDroppedByForce(t *testing.T) {
	d := newDown(t)
	_, tried := issue(t, d.b, request(d.role, 5*time.Minute, nil))
	// The engine gives an hour, and the role says that cutting the lease moves the user's end.
	moving := vaulttest.Role("orders-db-read", map[string]any{"path": ordersPath, "policy": "stint-orders-db-read", "engine_end": "lease"})
	cred, untried := issue(t, d.b, request(moving, 5*time.Minute, nil))
	if most := cred.NotAfter.Add(10 * time.Second); cred.UsableUntil.After(most) {
		t.Errorf("usable at worst until %s, its lease ends at %s", cred.UsableUntil, cred.NotAfter)
	}
	d.pg.Stop(t)
	if _, err := d.b.Revoke(t.Context(), tried); err == nil {
		t.Fatal("revoked without PostgreSQL")
	}
	if err := d.f.Root.Sys().RevokeForceWithContext(t.Context(), ordersPath); err != nil {
		t.Fatal(err)
	}
	endings := []plugins.Ending{revoke(t, d.b, tried, plugins.ReadBack), revoke(t, d.b, untried, plugins.LostAtBackend)}
	d.pg.Restart(t)
	super := vaulttest.Connect(t, d.pg.SuperDSN("postgres"))
	var until time.Time
	if err := super.QueryRow(t.Context(), "SELECT max(rolvaliduntil) FROM pg_roles WHERE rolname LIKE 'v-token-%'").Scan(&until); err != nil {
		t.Fatal(err)
	}
	for _, ending := range endings {
		if until.After(ending.UsableUntil) {
			t.Errorf("PostgreSQL accepts the user until %s, and the end says %s (%s)", until, ending.UsableUntil, ending.Detail)
		}
	}
}
