package acceptance_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// orders are a role and a profile as an operator writes them for the database that vaulttest makes.
const orders = `apiVersion: stint.dev/v1
kind: Role
metadata:
  name: orders-db-read
  description: Read-only rows of the orders database
spec:
  backend: vault/dev
  vault:
    path: database/creds/stint-orders-ro
    policy: stint-orders-db-read
  ttl: {default: 15m, max: 1h}
  exposure: {max: 5s}
  deliver:
    env:  {PGUSER: "{{ .username }}", PGPASSWORD: "{{ .password }}"}
    with: {PGHOST: %q, PGPORT: "%d", PGDATABASE: postgres, PGSSLMODE: disable}
---
apiVersion: stint.dev/v1
kind: Profile
metadata:
  name: dev-agent
spec:
  agents: ["spiffe://dev.stint.local/agent/*"]
  owner: billing-platform@example.org
  sponsor: head-of-billing@example.org
  purposes: [try-it]
  roles:
    - {name: orders-db-read, max_ttl: 30m}
    - {name: web-client}
  task: {default_ttl: 20m, max_ttl: 1h, idle_timeout: 60s, max_live: 20, max_live_leases: 100}
  permit: ceiling
`

// database is a PostgreSQL behind a Vault that `stintd dev --vault-addr` uses.
type database struct {
	*servertest.Postgres
	*dev

	super *pgx.Conn
}

// openDatabase starts all of it; one for each test, since the broker sets the Vault up for its own trust domain.
func openDatabase(tb testing.TB) *database {
	tb.Helper()
	need(tb, "psql", "postgresql-client")
	server, postgres := servertest.StartVault(tb, servertest.VaultOptions{}), servers.Postgres(tb)
	f := vaulttest.Setup(tb, server)
	role := f.Database(tb, postgres) // the engine, and the policy of the credential's own token
	db := &database{Postgres: postgres, super: vaulttest.Connect(tb, postgres.SuperDSN("postgres"))}
	db.dev = startDev(tb, []string{"--vault-addr", server.Addr}, "VAULT_TOKEN="+server.RootToken)

	// The operator gives the broker's own token what the new role needs, beside the ready-made one.
	ready := plugins.Role{Name: "build-host", Backend: "vault/dev", Config: json.RawMessage(
		`{"path": "ssh/creds/stint-build-host", "policy": "stint-build-host", "data": {"ip": "{{ .params.ip }}"}}`), Parameters: []string{"ip"}}
	text, err := vault.PolicyText(vault.Config{}, []plugins.Role{ready, role})
	if err != nil {
		tb.Fatal(err)
	}
	f.Policy(tb, "stint-broker", text)
	write(tb, db.dir+"/orders.yaml", fmt.Appendf(nil, orders, postgres.Host, postgres.Port))
	db.stintAs(tb, "operator", "apply", "-f", "orders.yaml").exits(tb, 0)
	return db
}

// users counts the users of a name that PostgreSQL has.
func (db *database) users(tb testing.TB, name string) int {
	tb.Helper()
	if !strings.HasPrefix(name, "v-") {
		tb.Fatalf("%q is no user that Vault made", name)
	}
	return vaulttest.Users(tb, db.super, name)
}

// sessions counts the sessions that a user has open.
func (db *database) sessions(tb testing.TB, name string) int {
	tb.Helper()
	var n int
	if err := db.super.QueryRow(tb.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", name).Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// Done when (4): with Vault and PostgreSQL, `stint run … -- psql` works with the issued user, and after it exits that
// user no longer exists.
func TestRunPsql(t *testing.T) {
	t.Parallel()
	db := openDatabase(t)
	r := db.stint(t, "run", "--purpose", "try-it", "--role", "orders-db-read", "--", "psql", "-XAtc", "select current_user, item from orders").exits(t, 0)
	user, item, _ := strings.Cut(strings.TrimSpace(r.stdout), "|")
	if item != "bolt" {
		t.Errorf("psql says %s", r)
	}
	if n := db.users(t, user); n != 0 {
		t.Errorf("%d users %s are left", n, user)
	}
	if !strings.Contains(r.stderr, "1 revoked and read back") {
		t.Errorf("the end is not told: %s", r)
	}
	// Who had it is found by the user's name.
	if whois := db.stintAs(t, "operator", "whois", user).exits(t, 0); !strings.Contains(whois.stdout, "REVOKED") ||
		!strings.Contains(whois.stdout, "spiffe://dev.stint.local/agent/agent") {
		t.Errorf("whois: %s", whois)
	}
	receipts(t, db.dev, user)
}

// receipts checks that what `stint task get` and the log say names the user and the proof.
func receipts(tb testing.TB, d *dev, user string) {
	tb.Helper()
	log := d.stintAs(tb, "operator", "audit", "list", "-o", "json").exits(tb, 0).stdout
	if !strings.Contains(log, user) || !strings.Contains(log, "invalid lease") {
		tb.Errorf("the log does not hold the user and the proof of its end: %s", log)
	}
}

// Done when (4): an open session of the issued user is cut. psql ignores SIGTERM here, so that it is PostgreSQL that ends
// the session, and not the command's own end; and what of it the test holds cannot log in again.
func TestStopCutsTheOpenSession(t *testing.T) {
	t.Parallel()
	db := openDatabase(t)
	p, in := db.begin(t, "run", "--purpose", "try-it", "--role", "orders-db-read", "--", "sh", "-c",
		`trap "" TERM; echo "pass $PGPASSWORD"; psql -XAt; echo "psql exit $?"`)
	say(t, in, "select current_user;\n")
	p.prints(t, "v-")
	lines := strings.Fields(p.stdout.String())
	password, user := lines[1], lines[2]
	if n := db.sessions(t, user); n != 1 {
		t.Fatalf("%s has %d sessions", user, n)
	}
	notOnTheProcessTable(t, p.cmd.Process.Pid, password)
	own := vaulttest.Connect(t, db.DSN(user, password, "postgres"))

	// Meanwhile the agent sees what it has.
	tasks := decode[struct{ Tasks []struct{ ShortName string } }](t, db.stint(t, "task", "list", "--state", "active", "-o", "json").exits(t, 0).stdout)
	task := tasks.Tasks[0].ShortName
	shows(t, db.stint(t, "lease", "list", "--task", task).exits(t, 0).stdout,
		`^[0-9A-F]{32} +orders-db-read +vault/dev +ACTIVE +[0-9ms]+ +[0-9ms]+ +`+regexp.QuoteMeta(user)+`$`)

	stopped := db.stintAs(t, "operator", "task", "stop", task, "--comment", "it behaves oddly").exits(t, 0)
	shows(t, stopped.stdout,
		`^orders-db-read  vault/dev  REVOKED in .* Vault: invalid lease; token gone, [0-9:.]+Z$`,
		`^CLOSED \(stopped\) after .*: 1 revoked and read back, 0 disclosed, 0 stuck · audit \d+-\d+ · stint audit receipt `+task+`$`)
	if n := db.users(t, user); n != 0 {
		t.Errorf("user %s is left", user)
	}
	if n := db.sessions(t, user); n != 0 {
		t.Errorf("%s still has %d sessions", user, n)
	}
	if err := own.Ping(t.Context()); err == nil {
		t.Error("a session that was open still works")
	}
	if again, err := pgx.Connect(t.Context(), db.DSN(user, password, "postgres")); err == nil {
		t.Error("the user can still log in", again.Close(t.Context()))
	}
	say(t, in, "select 'still here';\n")
	r := p.wait(t).exits(t, 6)
	if strings.Contains(r.stdout, "still here\n") || !strings.Contains(r.stdout, "psql exit 2") {
		t.Errorf("psql went on: %s", r)
	}
	shows(t, r.stderr, `was stopped by an operator; the command gets SIGTERM`, `^ended: `)
}

// A role that Vault refuses the broker says nothing of Vault to the agent, and everything to the operator.
func TestMisconfiguredRole(t *testing.T) {
	t.Parallel()
	db := openDatabase(t)
	broken := strings.ReplaceAll(string(read(t, db.dir, "orders.yaml")), "stint-orders-ro", "stint-orders-other")
	write(t, db.dir+"/broken.yaml", []byte(broken))
	db.stintAs(t, "operator", "apply", "-f", "broken.yaml").exits(t, 0)
	r := db.stint(t, "run", "--purpose", "try-it", "--role", "orders-db-read", "--", "touch", "was-run").exits(t, 1)
	shows(t, r.stderr, `BACKEND_MISCONFIGURED`, `tell your operator`, `request [0-9a-f-]{36}`)
	if strings.Contains(r.stderr, "stint-orders-other") {
		t.Errorf("the agent is told the operator's business: %s", r)
	}
	if _, err := os.Stat(db.dir + "/was-run"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the command ran: %v", err)
	}
	if log := db.stderr.String(); !strings.Contains(log, "database/creds/stint-orders-other") {
		t.Errorf("the operator is not told: %s", log)
	}
}

// say writes to a command.
func say(tb testing.TB, in *os.File, text string) {
	tb.Helper()
	if _, err := in.WriteString(text); err != nil {
		tb.Fatal(err)
	}
}

// shows fails the test for each pattern that no line of the text matches.
func shows(tb testing.TB, text string, patterns ...string) {
	tb.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile("(?m)" + pattern).MatchString(text) {
			tb.Errorf("nothing like %s in\n%s", pattern, text)
		}
	}
}
