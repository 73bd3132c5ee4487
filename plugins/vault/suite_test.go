package vault_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// otp tells the suite that the ssh mount sets the TTL, which a role cannot say without asking Vault.
type otp struct{ *vault.Backend }

func (o otp) CheckRole(role plugins.Role) (plugins.RoleInfo, error) {
	info, err := o.Backend.CheckRole(role)
	info.MaxTTL = vaulttest.OTPLease
	return info, err
}

func badRoles(good plugins.Role) map[string]plugins.Role {
	bad := map[string]plugins.Role{}
	for name, section := range map[string]map[string]any{
		"a path that is not stint's":           {"path": "database/creds/admin", "policy": "stint-x"},
		"a policy that is not stint's":         {"path": "database/creds/stint-x", "policy": "root"},
		"an undeclared parameter":              {"path": "database/creds/stint-{{ .params.nobody }}", "policy": "stint-x"},
		"a stored value not accepted":          {"path": "kv/data/x", "policy": "stint-x", "kind": "static"},
		"a path that climbs":                   {"path": "database/../stint-x", "policy": "stint-x"},
		"credentials that vault cannot revoke": {"path": "aws/sts/stint-x", "policy": "stint-x"},
	} {
		role := good
		role.Config = vaulttest.Role("", section).Config
		bad[name] = role
	}
	return bad
}

func TestSuiteSSH(t *testing.T) {
	server := servertest.StartVault(t, servertest.VaultOptions{})
	f := vaulttest.Setup(t, server)
	role := f.SSH(t)
	// The host's address is public, and stands in the public reference.
	role.Config = vaulttest.Role("", map[string]any{
		"path": "ssh/creds/stint-otp", "data": map[string]any{"ip": "{{ .params.ip }}"}, "policy": "stint-build-host-otp",
		"fields": map[string]any{"username": "username", "password": "key"},
	}).Config
	plugintest.Run(t, plugintest.Harness{
		Backend: otp{backend(t, f.Config())}, Role: role, BadRoles: badRoles(role),
		Request: func(testing.TB) plugins.Request { return plugins.Request{Params: ip("10.0.0.42")} },
		// To verify a one-time password is to use it up, so its lease is asked for.
		Works: func(ctx context.Context, cred plugins.Credential) bool {
			var handle struct{ Lease string }
			if err := json.Unmarshal([]byte(cred.Handle), &handle); err != nil {
				return false
			}
			_, err := f.Root.Sys().LookupWithContext(ctx, handle.Lease)
			return err == nil
		},
		Break: func(tb testing.TB) { tb.Helper(); server.Seal(tb) },
		Heal:  func(tb testing.TB) { tb.Helper(); server.Unseal(tb) },
	})
}

func TestSuiteDatabase(t *testing.T) {
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t)
	f := vaulttest.Setup(t, server)
	role := f.Database(t, pg)
	cfg := f.Config()
	cfg.Databases = []vault.Database{inventory(t, pg)}
	plugintest.Run(t, plugintest.Harness{
		Backend: backend(t, cfg), Role: role, BadRoles: badRoles(role),
		Works: func(ctx context.Context, cred plugins.Credential) bool {
			dsn := pg.DSN(string(cred.Fields["username"].Expose()), string(cred.Fields["password"].Expose()), "postgres")
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				return false
			}
			defer func() { _ = conn.Close(ctx) }()
			var item string
			return conn.QueryRow(ctx, "SELECT item FROM orders WHERE id = 1").Scan(&item) == nil
		},
		Break: func(tb testing.TB) { tb.Helper(); server.Seal(tb) },
		Heal:  func(tb testing.TB) { tb.Helper(); server.Unseal(tb) },
	})
}
