package admin_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/admin"
)

func rule(t *testing.T, pattern string, role attestor.AdminRole) admin.Rule {
	t.Helper()
	p, err := attestor.ParsePattern(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return admin.Rule{Pattern: p, Role: role}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	roles, err := admin.New(
		rule(t, "spiffe://example.org/ops/*", attestor.RoleAdmin),
		rule(t, "spiffe://example.org/ops/oncall", attestor.RoleOperator),
		rule(t, "spiffe://example.org/audit/siem", attestor.RoleAuditor),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method attestor.Method
		id     string
		want   attestor.AdminRole
	}{
		{attestor.MethodX509, "spiffe://example.org/ops/alice", attestor.RoleAdmin},
		{attestor.MethodX509, "spiffe://example.org/ops/oncall", attestor.RoleOperator},
		{attestor.MethodX509, "spiffe://example.org/audit/siem", attestor.RoleAuditor},
		{attestor.MethodX509, "spiffe://example.org/agent/a", ""},
		{attestor.MethodX509, "spiffe://example.org/ops/alice/x", ""},
		{attestor.MethodX509, "spiffe://other.org/ops/alice", ""},
		{attestor.MethodJWT, "spiffe://example.org/ops/alice", ""},
		{"", "spiffe://example.org/ops/alice", ""},
	} {
		role, ok := roles.Of(attestor.Identity{ID: spiffeid.RequireFromString(c.id), Method: c.method})
		if role != c.want || ok != (c.want != "") {
			t.Errorf("%s by %q: %q, %v, want %q", c.id, c.method, role, ok, c.want)
		}
	}
	if role, ok := roles.Of(attestor.Identity{Method: attestor.MethodLocal}); !ok || role != attestor.RoleAdmin {
		t.Errorf("local peer: %q, %v", role, ok)
	}
}

func TestOverlapping(t *testing.T) {
	t.Parallel()
	roles, err := admin.New(rule(t, "spiffe://example.org/ops/*", attestor.RoleAdmin))
	if err != nil {
		t.Fatal(err)
	}
	if got := roles.Overlapping(rule(t, "spiffe://example.org/**", "").Pattern); len(got) != 1 || got[0].String() != "spiffe://example.org/ops/*" {
		t.Errorf("Overlapping = %v", got)
	}
	if got := roles.Overlapping(rule(t, "spiffe://example.org/agent/**", "").Pattern); len(got) != 0 {
		t.Errorf("Overlapping = %v", got)
	}
}

// TestCurrent: who is removed has no role from the next question on, and whoever waits is told.
func TestCurrent(t *testing.T) {
	t.Parallel()
	roles := func(pattern string) *admin.Roles {
		r, err := admin.New(rule(t, pattern, attestor.RoleAdmin))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	alice := attestor.Identity{ID: spiffeid.RequireFromString("spiffe://example.org/ops/alice"), Method: attestor.MethodX509}
	bob := attestor.Identity{ID: spiffeid.RequireFromString("spiffe://example.org/ops/bob"), Method: attestor.MethodX509}
	current := admin.NewCurrent(roles(alice.ID.String()))
	changed := current.Changed()
	if _, ok := current.Of(alice); !ok {
		t.Error("alice has no role")
	}
	select {
	case <-changed:
		t.Error("told of a change before there was one")
	default:
	}
	current.Replace(roles(bob.ID.String()))
	<-changed
	_, was := current.Of(alice)
	if _, is := current.Of(bob); was || !is {
		t.Errorf("after the change alice has a role: %t, bob: %t", was, is)
	}
	if next := current.Changed(); next == changed {
		t.Error("the next change would not be told")
	}
}

func TestNewNamesAllFaults(t *testing.T) {
	t.Parallel()
	_, err := admin.New(
		rule(t, "spiffe://example.org/a", "root"),
		rule(t, "spiffe://example.org/b", attestor.RoleAdmin),
		rule(t, "spiffe://example.org/b", attestor.RoleOperator),
	)
	if err == nil || !strings.Contains(err.Error(), "root") || !strings.Contains(err.Error(), "twice") {
		t.Errorf("got %v", err)
	}
}
