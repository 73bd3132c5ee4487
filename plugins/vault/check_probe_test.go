package vault_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// probes tries a role and compares the codes that it finds.
func probes(t *testing.T, c checked, role plugins.Role, want ...string) []plugins.Finding {
	t.Helper()
	found := c.b.Probe(t.Context(), role, ip("10.0.0.50"))
	if codes := codesOf(found); !slices.Equal(codes, want) {
		t.Errorf("probe of %s found %+v, want %v", role.Name, found, want)
	}
	for _, f := range found {
		if f.Severity != plugins.Breaks || f.Problem == "" || f.Remedy == "" || !strings.Contains(f.Subject, role.Name) {
			t.Errorf("finding %+v", f)
		}
	}
	return found
}

// TestProbe tries a role of every engine, and leaves no lease, no token and no user.
func TestProbe(t *testing.T) {
	c := goodSetup(t)
	if err := c.b.Healthy(t.Context()); err != nil { // Stint's own token is there
		t.Fatal(err)
	}
	tokens := len(c.f.Accessors(t))
	for _, role := range c.roles {
		probes(t, c, role)
	}
	for _, path := range []string{"ssh/creds/stint-otp", "database/creds/stint-orders-ro", "pki/issue/stint-internal"} {
		if left := c.f.Leases(t, path); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	if after := len(c.f.Accessors(t)); after != tokens {
		t.Errorf("%d tokens, were %d", after, tokens)
	}
}

// TestProbeFindsWhatCannotBeSeen plants faults that only trying shows.
func TestProbeFindsWhatCannotBeSeen(t *testing.T) {
	c := goodSetup(t)
	otp, db := c.roles[0], c.roles[1]
	c.write(t, "sys/mounts/ssh/tune", map[string]any{"default_lease_ttl": "8h"})
	probes(t, c, otp, "probe-issue")
	if left := c.f.Leases(t, "ssh/creds/stint-otp"); len(left) > 0 {
		t.Errorf("the lease that was refused is left: %v", left)
	}
	c.remove(t, "sys/policies/acl/stint-build-host-otp")
	probes(t, c, otp, "probe-prepare")

	weakVault(t, c)
	found := probes(t, c, db, "probe-revoke")
	if len(found) == 1 && (!strings.Contains(found[0].Problem, "v-token-task-check-") || !strings.Contains(found[0].Problem, "works until") ||
		!strings.Contains(found[0].Remedy, databasePath)) {
		t.Errorf("the finding does not name the user, its end and the engine's role: %+v", found[0])
	}
}

// weakVault gives Vault an account at the database that may create users but not do what their revocation statements say.
func weakVault(t *testing.T, c checked) {
	t.Helper()
	pg := servers.Postgres(t)
	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))
	vaulttest.Exec(t, super, `CREATE TABLE IF NOT EXISTS accounts (name text); DROP ROLE IF EXISTS weak_vault;
		CREATE ROLE weak_vault LOGIN CREATEROLE PASSWORD 'weak'; GRANT orders_readers TO weak_vault WITH ADMIN OPTION`)
	c.write(t, "database/config/orders", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": []string{"stint-*"},
		"connection_url": "postgresql://{{username}}:{{password}}@" + pg.Addr + "/postgres?sslmode=disable",
		"username":       "weak_vault", "password": "weak",
		"username_template": `{{ printf "v-%s-%s" .DisplayName (random 12) | truncate 63 }}`,
	})
	const forbidden = `DELETE FROM accounts WHERE name='{{name}}'; `
	c.write(t, databasePath, databaseRole([]string{vaulttest.CreatesUser}, []string{forbidden + vault.PostgreSQLRevocation}))
}

// TestProbeAtNoVault has nothing to try.
func TestProbeAtNoVault(t *testing.T) {
	server := servertest.StartVault(t, servertest.VaultOptions{})
	f := vaulttest.Setup(t, server)
	c := checked{f: f, roles: []plugins.Role{f.SSH(t)}, b: backend(t, f.Config())}
	server.Stop(t)
	began := time.Now()
	probes(t, c, c.roles[0], "probe-prepare")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}
