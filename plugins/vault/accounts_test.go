package vault_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// inventory is a database whose users a login of its own lists: one without any right.
func inventory(t *testing.T, pg *servertest.Postgres) vault.Database {
	t.Helper()
	password := rand.Text()
	name := "inventory_" + strings.ToLower(rand.Text()[:8])
	vaulttest.Exec(t, vaulttest.Connect(t, pg.SuperDSN("postgres")), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", name, password))
	return vault.Database{
		Name: "orders", Kind: vault.Postgres, Addr: pg.Addr, User: name, Password: vaulttest.Static(password), Database: "postgres", Plain: true,
		Users: "v-%", Roles: []string{"orders-db-read"},
	}
}

// listed returns the users of the only database, as "name dead", with the error that ended the list.
func listed(t *testing.T, b *vault.Backend) (map[string]plugins.Account, error) {
	t.Helper()
	found := map[string]plugins.Account{}
	for account, err := range b.Accounts(t.Context(), "orders") {
		if err != nil {
			return found, err
		}
		found[account.Name] = account
	}
	return found, nil
}

func withDatabase(t *testing.T, d vault.Database) *vault.Backend {
	t.Helper()
	return backend(t, vault.Config{
		Instance: "vault/none", Address: "http://127.0.0.1:1", Auth: vault.Auth{Token: &vault.TokenAuth{File: "none"}}, Databases: []vault.Database{d},
	})
}

// TestAccountsOfPostgres lists users in every state that PostgreSQL knows, and no others.
func TestAccountsOfPostgres(t *testing.T) {
	t.Parallel()
	pg := servertest.StartPostgres(t)
	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))
	password := rand.Text()
	vaulttest.Exec(t, super, `CREATE ROLE "v-open" LOGIN; CREATE ROLE "v-for-ever" LOGIN VALID UNTIL 'infinity';
		CREATE ROLE "v-later" LOGIN VALID UNTIL '2100-01-01 00:00:00+00'; CREATE ROLE "v-over" LOGIN VALID UNTIL '2001-01-01 00:00:00+00';
		CREATE ROLE "v-locked" NOLOGIN; CREATE ROLE "other-open" LOGIN; CREATE ROLE "vopen" LOGIN;
		CREATE ROLE "v-still-in" LOGIN PASSWORD '`+password+`';`)
	session := vaulttest.Connect(t, pg.DSN("v-still-in", password, "postgres"))
	vaulttest.Exec(t, super, `ALTER ROLE "v-still-in" VALID UNTIL '2001-01-01 00:00:00+00'`)

	b := withDatabase(t, inventory(t, pg))
	got, err := listed(t, b)
	past, future := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	want := map[string]plugins.Account{
		"v-open": {Name: "v-open"}, "v-for-ever": {Name: "v-for-ever"}, "v-later": {Name: "v-later", NotAfter: future},
		"v-over": {Name: "v-over", NotAfter: past, Dead: true}, "v-locked": {Name: "v-locked", Dead: true},
		"v-still-in": {Name: "v-still-in", NotAfter: past}, // until its session ends
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		got, err := listed(t, b)
		return err == nil && got["v-still-in"].Dead
	})
}

// TestAccountsRefused tells what can be waited for from what an operator has to mend, and gives nothing away.
func TestAccountsRefused(t *testing.T) {
	t.Parallel()
	pg := servertest.StartPostgres(t)
	good := inventory(t, pg)
	hush := rand.Text()
	for name, test := range map[string]struct {
		change func(*vault.Database)
		want   error
		text   string
	}{
		"wrong password":      {func(d *vault.Database) { d.Password = vaulttest.Static(hush) }, plugins.ErrMisconfigured, "28P01"},
		"no such database":    {func(d *vault.Database) { d.Database = "none" }, plugins.ErrMisconfigured, "3D000"},
		"no TLS there":        {func(d *vault.Database) { d.Plain = false }, plugins.ErrUnavailable, "the connection failed"},
		"another database":    {func(d *vault.Database) { d.Name = "others" }, plugins.ErrMisconfigured, "not configured"},
		"nobody there":        {func(d *vault.Database) { d.Addr = "127.0.0.1:1" }, plugins.ErrUnavailable, "refused"},
		"nobody there, MySQL": {func(d *vault.Database) { d.Addr, d.Kind = "127.0.0.1:1", vault.MySQL }, plugins.ErrUnavailable, "refused"},
		"no password": {func(d *vault.Database) {
			d.Password = func(context.Context) (secret.Value, error) { return secret.Value{}, errors.New("the file is gone") }
		}, plugins.ErrMisconfigured, "the file is gone"},
	} {
		d := good
		test.change(&d)
		got, err := listed(t, withDatabase(t, d))
		if len(got) != 0 || !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %d users, %v", name, len(got), err)
		}
		if err != nil && (strings.Contains(err.Error(), hush) || strings.Contains(err.Error(), "user=")) {
			t.Errorf("%s: the error tells how it logs in: %v", name, err)
		}
	}
	pg.Stop(t)
	if got, err := listed(t, withDatabase(t, good)); len(got) != 0 || !errors.Is(err, plugins.ErrUnavailable) {
		t.Errorf("PostgreSQL down: %d users, %v", len(got), err)
	}
}

// TestAccountsOverTLS: whoever has no certificate of the CA file learns not even who wants to log in.
func TestAccountsOverTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	told := make(chan string, 2)
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			told <- startup(conn, server.TLS)
		}
	}()
	d := vault.Database{
		Name: "orders", Kind: vault.Postgres, Addr: listener.Addr().String(), User: "stint_inventory", Password: vaulttest.Static("p"), Users: "v-%",
	}
	if _, err := listed(t, withDatabase(t, d)); !errors.Is(err, plugins.ErrMisconfigured) {
		t.Errorf("a certificate that nobody trusts: %v", err)
	}
	if got := <-told; got != "" {
		t.Errorf("it was told %q", got)
	}
	d.CAFile = ca
	if _, err := listed(t, withDatabase(t, d)); !errors.Is(err, plugins.ErrUnavailable) {
		t.Errorf("a server that hangs up: %v", err)
	}
	if got := <-told; !strings.Contains(got, "stint_inventory") {
		t.Errorf("it was told %q", got)
	}
}

// startup answers PostgreSQL's SSLRequest (its documentation, "SSL Session Encryption"), returns what follows, and hangs up.
func startup(conn net.Conn, conf *tls.Config) string {
	defer func() { _ = conn.Close() }()
	if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
		return err.Error()
	}
	if _, err := conn.Write([]byte("S")); err != nil {
		return err.Error()
	}
	message := make([]byte, 1024)
	n, _ := tls.Server(conn, conf).Read(message)
	return string(message[:n])
}

// TestDatabasesAreValidated names every fault of a database.
func TestDatabasesAreValidated(t *testing.T) {
	t.Parallel()
	cfg := vault.Config{
		Instance: "vault/none", Address: "http://127.0.0.1:1", Auth: vault.Auth{Token: &vault.TokenAuth{File: "none"}},
		Databases: []vault.Database{{Name: "a/b", Kind: "oracle"}},
	}
	_, err := vault.New(cfg, nil)
	for _, want := range []string{"one path segment", "kind is postgres or mysql", "needs an address", "needs a pattern"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
