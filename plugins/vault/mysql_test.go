package vault_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// mysqlPage is what docs/databases.md tells an administrator of MySQL to do.
type mysqlPage struct{ once, creation, revocation, username string }

func readMySQLPage(t *testing.T) mysqlPage {
	t.Helper()
	text, err := os.ReadFile("../../docs/databases.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## MySQL and MariaDB\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(section, -1)
	template := regexp.MustCompile("username_template='([^']+)'").FindStringSubmatch(section)
	if len(blocks) != 2 || template == nil {
		t.Fatalf("docs/databases.md has %d blocks of SQL for MySQL, and the template %v", len(blocks), template)
	}
	creation, revocation, ok := strings.Cut(strings.TrimPrefix(blocks[1][1], "-- creation_statements\n"), "-- revocation_statements\n")
	if !ok {
		t.Fatalf("docs/databases.md: %s", blocks[1][1])
	}
	return mysqlPage{once: blocks[0][1], creation: creation, revocation: revocation, username: template[1]}
}

// mysqlHouse is a Vault whose database engine makes users of a MariaDB as the page says.
type mysqlHouse struct {
	f     *vaulttest.Fixture
	m     *servertest.MariaDB
	super *sql.DB
	b     *vault.Backend
	role  plugins.Role
}

// mysqlRolePath is the engine's role. Its default_ttl is what a forgotten user lives.
const mysqlRolePath = "mysql/roles/stint-orders-mysql"

func newMySQLHouse(t *testing.T, ttl time.Duration) mysqlHouse {
	t.Helper()
	page := readMySQLPage(t)
	h := mysqlHouse{f: vaulttest.Setup(t, servertest.StartVault(t, servertest.VaultOptions{OnDisk: true})), m: servertest.StartMariaDB(t)}
	h.super, h.b = h.m.Super(t), backend(t, h.f.Config())
	password := rand.Text()
	for _, statement := range []string{
		"CREATE USER 'vault'@'%' IDENTIFIED BY '" + password + "'", "CREATE DATABASE orders",
		"CREATE TABLE orders.orders (id INT PRIMARY KEY, item TEXT)", "INSERT INTO orders.orders VALUES (1, 'bolt')",
	} {
		if _, err := h.super.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	client := h.m.Client(t)
	client.Stdin = strings.NewReader(page.once)
	if out, err := client.CombinedOutput(); err != nil {
		t.Fatalf("what the page says to do once: %v: %s", err, out)
	}
	if err := h.f.Root.Sys().MountWithContext(t.Context(), "mysql", &vaultapi.MountInput{Type: "database"}); err != nil {
		t.Fatal(err)
	}
	h.write(t, "mysql/config/orders", map[string]any{
		"plugin_name": "mysql-database-plugin", "allowed_roles": []string{"stint-*"}, "username_template": page.username,
		"connection_url": fmt.Sprintf("{{username}}:{{password}}@tcp(%s)/", h.m.Addr), "username": "vault", "password": password,
	})
	h.write(t, mysqlRolePath, h.engineRole(page.creation, page.revocation, ttl))
	h.role = vaulttest.Role("orders-mysql", map[string]any{"path": "mysql/creds/stint-orders-mysql", "policy": "stint-orders-mysql"})
	h.f.Apply(t, h.role)
	return h
}

func (mysqlHouse) engineRole(creation, revocation string, ttl time.Duration) map[string]any {
	return map[string]any{
		"db_name": "orders", "creation_statements": []string{creation}, "revocation_statements": []string{revocation},
		"default_ttl": ttl.String(), "max_ttl": "2h",
	}
}

func (h mysqlHouse) write(t *testing.T, path string, body map[string]any) {
	t.Helper()
	if _, err := h.f.Root.Logical().WriteWithContext(t.Context(), path, body); err != nil {
		t.Fatal(err)
	}
}

// login connects as the user that was issued.
func (h mysqlHouse) login(t *testing.T, cred plugins.Credential) (*sql.Conn, error) {
	t.Helper()
	return h.m.Open(t, field(t, cred, "username"), field(t, cred, "password"), "orders").Conn(t.Context())
}

// count returns the number that a query with the user's name as its only parameter returns.
func (h mysqlHouse) count(t *testing.T, query, user string) int {
	t.Helper()
	var n int
	if err := h.super.QueryRowContext(t.Context(), query, user).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (h mysqlHouse) users(t *testing.T, user string) int {
	t.Helper()
	return h.count(t, "SELECT count(*) FROM mysql.user WHERE user = ?", user)
}

func (h mysqlHouse) events(t *testing.T, user string) int {
	t.Helper()
	return h.count(t, "SELECT count(*) FROM information_schema.events WHERE event_name = ?", user)
}

// busy begins a query that does not end by itself, and returns once the server works on it. What it ended with comes later.
func (h mysqlHouse) busy(t *testing.T, cred plugins.Credential) <-chan error {
	t.Helper()
	conn, err := h.login(t, cred)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := conn.ExecContext(t.Context(), "SELECT SLEEP(600)")
		ended <- err
	}()
	eventually(t, func() bool {
		return h.count(t, "SELECT count(*) FROM information_schema.processlist WHERE user = ? AND info LIKE '%SLEEP%'", cred.PublicRef) == 1
	})
	return ended
}

// cut expects that a busy session was ended, and not by the test.
func cut(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("the query under way ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("the query under way goes on")
	}
}

// reads uses the credential for what it is for, and for nothing else, and returns its session.
func (h mysqlHouse) reads(t *testing.T, cred plugins.Credential) *sql.Conn {
	t.Helper()
	conn, err := h.login(t, cred)
	if err != nil {
		t.Fatal(err)
	}
	var item string
	if err := conn.QueryRowContext(t.Context(), "SELECT item FROM orders WHERE id = 1").Scan(&item); err != nil || item != "bolt" {
		t.Fatalf("read with the issued user: %q, %v", item, err)
	}
	if _, err := conn.ExecContext(t.Context(), "CALL stint.end_sessions('v-somebody')"); err == nil {
		t.Error("the user may end the sessions of others")
	}
	return conn
}

// TestMySQLAsDocumented does what docs/databases.md says, word by word, and ends a user with an open session.
func TestMySQLAsDocumented(t *testing.T) {
	t.Parallel()
	h := newMySQLHouse(t, time.Hour)
	cred, held := issue(t, h.b, request(h.role, time.Minute, nil))
	if user := field(t, cred, "username"); cred.PublicRef != user || !strings.HasPrefix(user, "v-token-task-7f3k-") {
		t.Errorf("database user %q, public reference %q", user, cred.PublicRef)
	}
	conn := h.reads(t, cred)
	lists := h.listing(t)
	wantListed(t, lists, cred.PublicRef)
	ended := h.busy(t, cred)
	if n := h.events(t, cred.PublicRef); n != 1 {
		t.Errorf("%d events end the user", n)
	}
	revoke(t, h.b, held, plugins.ReadBack)
	cut(t, ended)
	if err := conn.PingContext(t.Context()); err == nil {
		t.Error("the idle session goes on after teardown")
	}
	if _, err := h.login(t, cred); err == nil {
		t.Error("the user still logs in")
	}
	if u, e := h.users(t, cred.PublicRef), h.events(t, cred.PublicRef); u != 0 || e != 0 {
		t.Errorf("%d users and %d events are left", u, e)
	}
	wantListed(t, lists)
	h.b = lists
	h.checked(t)
}

// listing is the house's backend with a login that lists users. Such a login goes nowhere in the clear unless it is told to.
func (h mysqlHouse) listing(t *testing.T) *vault.Backend {
	t.Helper()
	cfg := h.f.Config()
	cfg.Databases = []vault.Database{h.inventory(t)}
	cfg.Databases[0].Plain = false
	if _, err := listed(t, backend(t, cfg)); !errors.Is(err, plugins.ErrMisconfigured) || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("a server without TLS: %v", err)
	}
	cfg.Databases[0].Plain = true
	return backend(t, cfg)
}

// wantListed expects these users, and that all can be used.
func wantListed(t *testing.T, b *vault.Backend, names ...string) {
	t.Helper()
	want := map[string]plugins.Account{}
	for _, name := range names {
		want[name] = plugins.Account{Name: name}
	}
	got, err := listed(t, b)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
}

// TestDeadMansSwitchOfMySQL kills Vault. The event drops the user, and a Vault that comes back ends the session that went on, and
// a lease whose user is gone.
func TestDeadMansSwitchOfMySQL(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	h := newMySQLHouse(t, ttl)
	cred, held := issue(t, h.b, request(h.role, ttl, nil))
	ended := h.busy(t, cred)
	h.f.Server.Kill(t)
	letIn := func() bool {
		db := h.m.Open(t, cred.PublicRef, field(t, cred, "password"), "orders")
		defer func() { _ = db.Close() }() // not one connection for each look
		return db.PingContext(t.Context()) == nil
	}
	if !letIn() {
		t.Fatal("the user cannot log in before its end")
	}
	vaulttest.GoneInTime(t, vaulttest.Watch{What: "the login", End: cred.NotAfter, Slack: vaulttest.EventSlack, Alive: letIn})
	eventually(t, func() bool { return h.users(t, cred.PublicRef)+h.events(t, cred.PublicRef) == 0 })
	select {
	case err := <-ended:
		t.Errorf("the session ended before Vault was back: %v", err)
	default:
	}
	h.f.Server.Restart(t)
	vaulttest.GoneInTime(t, vaulttest.Watch{
		What: "the lease of a Vault that is back", End: time.Now(), Slack: vaulttest.LeaseSlack, Alive: h.f.LeaseAlive(t, "mysql/creds/stint-orders-mysql"),
	})
	cut(t, ended)
	if _, err := h.b.Revoke(t.Context(), held); err != nil {
		t.Error(err)
	}
}

// TestMySQLEndsAtItsMaximum: cutting a lease leaves the event where it was. Where the lease is dropped by force while the database is
// down, the user works on until then, which is what the credential and its end have said.
func TestMySQLEndsAtItsMaximum(t *testing.T) {
	t.Parallel()
	const ttl, longest = 2 * time.Second, 20 * time.Second
	h := newMySQLHouse(t, longest)
	cred, held := issue(t, h.b, request(h.role, ttl, nil))
	if cred.UsableUntil.Before(cred.NotAfter.Add(longest - ttl - time.Second)) {
		t.Fatalf("usable at worst until %s, and its event ends it %s after it was made", cred.UsableUntil, longest)
	}
	h.m.Stop(t)
	if err := h.f.Root.Sys().RevokeForceWithContext(t.Context(), "mysql/creds/stint-orders-mysql"); err != nil {
		t.Fatal(err)
	}
	h.m.Restart(t)
	h.super = h.m.Super(t)
	ending := revoke(t, h.b, held, plugins.LostAtBackend)
	if !ending.UsableUntil.Equal(cred.UsableUntil.Truncate(time.Second)) {
		t.Errorf("the end says usable until %s, and the credential %s", ending.UsableUntil, cred.UsableUntil)
	}
	letIn := func() bool {
		db := h.m.Open(t, cred.PublicRef, field(t, cred, "password"), "orders")
		defer func() { _ = db.Close() }() // not one connection for each look
		return db.PingContext(t.Context()) == nil
	}
	eventually(t, func() bool { return time.Now().After(cred.NotAfter.Add(2 * time.Second)) })
	if !letIn() {
		t.Error("the user is refused after its lease's end: the event has moved, and the statement is too pessimistic")
	}
	vaulttest.GoneInTime(t, vaulttest.Watch{What: "the login", End: ending.UsableUntil, Slack: vaulttest.EventSlack, Alive: letIn})
}

// inventory is the database, whose users a login lists that may read one column and nothing else.
func (h mysqlHouse) inventory(t *testing.T) vault.Database {
	t.Helper()
	password := rand.Text()
	for _, statement := range []string{
		"CREATE USER 'stint_inventory'@'%' IDENTIFIED BY '" + password + "'", "GRANT SELECT (user) ON mysql.user TO 'stint_inventory'@'%'",
	} {
		if _, err := h.super.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	return vault.Database{
		Name: "orders", Kind: vault.MySQL, Addr: h.m.Addr, User: "stint_inventory", Password: vaulttest.Static(password), Plain: true,
		Users: "v-token-%", Roles: []string{"orders-mysql"},
	}
}
