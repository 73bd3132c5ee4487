package vault_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
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
}
