package vaulttest

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
)

// maxTTL is of every role here.
const maxTTL = time.Hour

// CreatesUser are the creation statements of the database role: the user is dead at its end by PostgreSQL's clock too.
const CreatesUser = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE orders_readers;`

// SSH mounts the ssh engine and returns the applied role "build-host-otp": a one-time password for a host, parameter
// "ip" in 10.0.0.0/8. Its leases live OTPLease and cannot be cut, so a credential asks for more than that.
func (f *Fixture) SSH(tb testing.TB) plugins.Role {
	tb.Helper()
	f.enable(tb, "sys/mounts/ssh", "ssh", map[string]any{"config": map[string]any{"default_lease_ttl": OTPLease.String()}})
	f.write(tb, "ssh/roles/stint-otp", map[string]any{"key_type": "otp", "default_user": "ubuntu", "cidr_list": "10.0.0.0/8"})
	role := Role("build-host-otp", map[string]any{
		"path": "ssh/creds/stint-otp", "data": map[string]any{"ip": "{{ .params.ip }}"}, "policy": "stint-build-host-otp",
	})
	role.Parameters = []string{"ip"}
	f.Apply(tb, role)
	return role
}

// PKI mounts the pki engine with a root and returns the applied role "internal-cert". Its leases live as long as the
// certificate, whose life the request sets.
func (f *Fixture) PKI(tb testing.TB) plugins.Role {
	tb.Helper()
	f.enable(tb, "sys/mounts/pki", "pki", map[string]any{"config": map[string]any{"max_lease_ttl": "24h"}})
	f.write(tb, "pki/root/generate/internal", map[string]any{"common_name": "test root", "ttl": "24h", "key_type": "ec"})
	f.write(tb, "pki/roles/stint-internal", map[string]any{
		"allowed_domains": "example.org", "allow_subdomains": true, "generate_lease": true, "max_ttl": "1h", "key_type": "ec",
	})
	role := Role("internal-cert", map[string]any{
		"path": "pki/issue/stint-internal", "policy": "stint-internal-cert",
		"data": map[string]any{"common_name": "agent.example.org", "ttl": "{{ .ttl }}"},
	})
	f.Apply(tb, role)
	return role
}

// KV mounts the second version of the kv engine with one value, key "api_key", and returns the applied role
// "partner-key", which accepts that it cannot be ended.
func (f *Fixture) KV(tb testing.TB, apiKey string) plugins.Role {
	tb.Helper()
	f.enable(tb, "sys/mounts/kv", "kv", map[string]any{"options": map[string]any{"version": "2"}})
	body := map[string]any{"data": map[string]any{"api_key": apiKey}}
	// Vault upgrades a new mount in the background and refuses writes meanwhile.
	eventually(tb, func() error {
		_, err := f.Root.Logical().WriteWithContext(tb.Context(), "kv/data/partner", body)
		return err
	})
	role := Role("partner-key", map[string]any{"path": "kv/data/partner", "policy": "stint-partner-key", "kind": "static"})
	role.AcceptPermanent = true
	f.Apply(tb, role)
	return role
}

// Database mounts the database engine for a PostgreSQL and returns the applied role "orders-db-read": a user that may
// read the table orders of the database "postgres" (one row), and whose open sessions end with it. Vault gives its
// leases an hour, so every one is cut.
func (f *Fixture) Database(tb testing.TB, postgres *servertest.Postgres) plugins.Role {
	tb.Helper()
	f.enable(tb, "sys/mounts/database", "database", nil)
	f.connection(tb, "orders", postgres)
	f.DatabaseRole(tb, "stint-orders-ro", CreatesUser)
	role := Role("orders-db-read", map[string]any{"path": "database/creds/stint-orders-ro", "policy": "stint-orders-db-read"})
	f.Apply(tb, role)
	return role
}

// OtherDatabase moves a role of the engine that Database mounted to another PostgreSQL, of the same mount.
func (f *Fixture) OtherDatabase(tb testing.TB, postgres *servertest.Postgres, role string) {
	tb.Helper()
	f.connection(tb, "other", postgres)
	f.write(tb, "database/roles/"+role, map[string]any{"db_name": "other", "creation_statements": []string{CreatesUser}})
}

// connection makes the tables of a PostgreSQL and connects the engine to it.
func (f *Fixture) connection(tb testing.TB, name string, postgres *servertest.Postgres) {
	tb.Helper()
	conn := Connect(tb, postgres.SuperDSN("postgres"))
	Exec(tb, conn, `SELECT pg_advisory_xact_lock(1); -- several tests may do this at once
		DO $$ BEGIN CREATE ROLE orders_readers NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
		CREATE TABLE IF NOT EXISTS orders (id int PRIMARY KEY, item text);
		INSERT INTO orders VALUES (1, 'bolt') ON CONFLICT DO NOTHING;
		GRANT SELECT ON orders TO orders_readers;`)
	f.write(tb, "database/config/"+name, map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": []string{"stint-*"},
		"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/postgres?sslmode=disable", postgres.Addr),
		"username":       postgres.SuperUser, "password": postgres.SuperPassword,
		"username_template": `{{ printf "v-%s-%s" .DisplayName (random 12) | truncate 63 }}`,
	})
}

// DatabaseRole writes a role of the database engine that Database mounted.
func (f *Fixture) DatabaseRole(tb testing.TB, name, creation string) {
	tb.Helper()
	f.write(tb, "database/roles/"+name, map[string]any{
		"db_name": "orders", "creation_statements": []string{creation}, "revocation_statements": []string{vault.PostgreSQLRevocation},
		"default_ttl": "1h", "max_ttl": "2h",
	})
}

// Role returns a role of the fixture's instance with this vault section. It is not applied.
func Role(name string, section map[string]any) plugins.Role {
	text, err := json.Marshal(section)
	if err != nil {
		text = []byte(err.Error()) // refused as a section
	}
	return plugins.Role{Name: name, Backend: Instance, Config: text, MaxTTL: maxTTL}
}

// Connect opens a session that ends with the test.
func Connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.WithoutCancel(tb.Context())) }) // it may have been cut, by design
	return conn
}

// Exec runs statements.
func Exec(tb testing.TB, conn *pgx.Conn, sql string) {
	tb.Helper()
	if _, err := conn.Exec(tb.Context(), sql); err != nil {
		tb.Fatal(err)
	}
}

// Users returns how many database users have a name like this pattern.
func Users(tb testing.TB, conn *pgx.Conn, like string) int {
	tb.Helper()
	var n int
	if err := conn.QueryRow(tb.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE $1", like).Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// eventually calls do until it succeeds, for 10 s.
func eventually(tb testing.TB, do func() error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := do()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatal(err)
		case <-tick.C:
		}
	}
}
