package vault_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// findings are the codes that check has about databases, with their severities.
func (h mysqlHouse) findings(t *testing.T) string {
	t.Helper()
	var codes []string
	for _, f := range h.b.CheckWith(t.Context(), secret.FromString(h.f.Server.RootToken), []plugins.Role{h.role}) {
		if strings.HasPrefix(f.Code, "database-") {
			codes = append(codes, f.Code+" "+string(f.Severity))
		}
	}
	return strings.Join(codes, ", ")
}

// checked expects that check is content with what docs/databases.md says, and with nothing less.
func (h mysqlHouse) checked(t *testing.T) {
	t.Helper()
	page := readMySQLPage(t)
	check := func(creation, revocation, want string) {
		t.Helper()
		h.write(t, mysqlRolePath, h.engineRole(creation, revocation, time.Hour))
		if got := h.findings(t); got != want {
			t.Errorf("check says %q, want %q, of: %s %s", got, want, creation, revocation)
		}
	}
	_, noEvent, _ := strings.Cut(page.creation, "DO DROP USER IF EXISTS '{{name}}'@'%';")
	check(noEvent, page.revocation, "database-no-end error")
	check(page.creation, "DROP USER IF EXISTS '{{name}}'@'%';", "database-sessions warning")
	check(page.creation, page.revocation, "")

	for _, misdeed := range []struct{ spoil, mend, want string }{
		{"SET GLOBAL event_scheduler = OFF", "SET GLOBAL event_scheduler = ON", "database-events-off error"},
		{
			"REVOKE SELECT (user) ON mysql.user FROM 'stint_inventory'@'%'", "GRANT SELECT (user) ON mysql.user TO 'stint_inventory'@'%'",
			"database-users warning",
		},
	} {
		for _, step := range []struct{ statement, want string }{{misdeed.spoil, misdeed.want}, {misdeed.mend, ""}} {
			if _, err := h.super.ExecContext(t.Context(), step.statement); err != nil {
				t.Fatal(err)
			}
			if got := h.findings(t); got != step.want {
				t.Errorf("after %s check says %q, want %q", step.statement, got, step.want)
			}
		}
	}
}

// TestCheckOfDatabaseUsers says when nobody can see which users there are.
func TestCheckOfDatabaseUsers(t *testing.T) {
	f, pg := shared(t), servers.Postgres(t)
	role := f.SSH(t)
	cfg := f.Config()
	for want, password := range map[string]string{"": "", "database-users": "wrong"} {
		d := inventory(t, pg)
		d.Roles = []string{role.Name}
		if password != "" {
			d.Password = vaulttest.Static(password)
		}
		cfg.Databases = append(cfg.Databases[:0:0], d)
		var got []string
		for _, found := range backend(t, cfg).CheckWith(t.Context(), secret.FromString(f.Server.RootToken), []plugins.Role{role}) {
			if strings.HasPrefix(found.Code, "database-") {
				got = append(got, found.Code)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("password %q: found %q, want %q", password, got, want)
		}
	}
}

// TestCheckOfDatabaseRoles says when the roles of a database are of nobody.
func TestCheckOfDatabaseRoles(t *testing.T) {
	f, pg := shared(t), servers.Postgres(t)
	role := f.SSH(t)
	cfg := f.Config()
	for _, tt := range []struct {
		name  string
		roles []plugins.Role
		want  int
	}{
		{role.Name, []plugins.Role{role}, 0},
		{"order-db-read", []plugins.Role{role}, 1},
		{"order-db-read", nil, 0}, // which roles there are is not known
	} {
		d := inventory(t, pg)
		d.Roles = []string{tt.name}
		cfg.Databases = []vault.Database{d}
		n := 0
		for _, found := range backend(t, cfg).CheckWith(t.Context(), secret.FromString(f.Server.RootToken), tt.roles) {
			if found.Code == "database-role-unknown" {
				n++
			}
		}
		if n != tt.want {
			t.Errorf("roles [%s] with %d known: %d findings, want %d", tt.name, len(tt.roles), n, tt.want)
		}
	}
}
