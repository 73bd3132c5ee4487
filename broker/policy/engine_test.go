package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
)

func TestProfile(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	for id, want := range map[string]string{
		"spiffe://example.org/agent/invoice/eu1":  "invoice-agent",
		"spiffe://example.org/agent/invoice":      "",
		"spiffe://example.org/agent/other/a/b/c":  "other",
		"spiffe://example.org/agent/single":       "other",
		"spiffe://example.com/agent/invoice/eu1":  "",
		"spiffe://example.org/agent/invoice/eu/1": "",
	} {
		p, ok := e.Profile(spiffeid.RequireFromString(id))
		if p.Name != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", id, p.Name, ok, want)
		}
	}
}

func TestAvailable(t *testing.T) {
	e := compile(t, resource.PermitNone, nil)
	views := e.Available(spiffeid.RequireFromString("spiffe://example.org/agent/invoice/eu1"))
	if len(views) != 2 {
		t.Fatalf("got %d roles", len(views))
	}
	equal(t, "first", views[0].Name, "ledger-api")
	equal(t, "second", views[1].Name, "orders-db-read")
	equal(t, "max ttl", views[1].MaxTTL, 30*time.Minute)
	equal(t, "default ttl", views[1].DefaultTTL, 15*time.Minute)
	equal(t, "pattern", views[1].Parameters[1].Pattern.String(), "orders|invoices")
	role, _ := e.Set().Role("orders-db-read")
	equal(t, "the role itself", role.Parameters[1].Pattern.String(), "[a-z]+")
	equal(t, "a stranger's", len(e.Available(spiffeid.RequireFromString("spiffe://example.org/x"))), 0)
}

func TestHashIsOfTheContent(t *testing.T) {
	a := compile(t, resource.PermitCeiling, nil)
	b := compile(t, resource.PermitCeiling, map[string]string{"p": `permit (principal, action, resource);`})
	c := compile(t, resource.PermitNone, nil)
	if a.Hash() == b.Hash() || a.Hash() == c.Hash() || len(a.Hash()) != 64 {
		t.Errorf("hashes %s, %s, %s", a.Hash(), b.Hash(), c.Hash())
	}
	equal(t, "again", compile(t, resource.PermitCeiling, nil).Hash(), a.Hash())
}

func TestCompileRefuses(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"syntax":            {"permit (principal, action, resource)\nwhen { context.purpose = 1 };", "p.yaml:6: policy p: "},
		"nothing":           {"// nothing here", "p.yaml:5: policy p holds no statement"},
		"misspelt context":  {"permit (principal, action, resource)\n  when { context.purpos == \"x\" };", "p.yaml:5: policy/p: "},
		"second statement":  {"permit (principal, action, resource);\n\nforbid (principal, action, resource) when { context.nope };", "p.yaml:7: policy/p/2: "},
		"type error":        {`permit (principal, action, resource) when { context.ttl == "5m" };`, "p.yaml:5: policy/p: "},
		"unguarded":         {`forbid (principal, action, resource) when { context.exposure > duration("5m") };`, "p.yaml:5: policy/p: "},
		"parameter":         {`forbid (principal, action, resource) when { context.parameters has colour && context.parameters.colour == "x" };`, ""},
		"unknown action":    {`permit (principal, action == Stint::Action::"isue", resource);`, "p.yaml:5: policy/p: "},
		"unknown role":      {`forbid (principal, action, resource == Stint::Role::"orders-db-reed");`, `p.yaml:5: policy/p: there is no role "orders-db-reed"`},
		"unknown in a list": {`forbid (principal, action, resource) when { [Stint::Role::"x", Stint::Role::"ledger-api"].contains(resource) };`, `p.yaml:5: policy/p: there is no role "x"`},
		"unknown profile":   {`forbid (principal in Stint::Profile::"x", action, resource);`, `p.yaml:5: policy/p: there is no profile "x"`},
		"unknown is in":     {`forbid (principal is Stint::Agent in Stint::Profile::"x", action, resource is Stint::Role in Stint::Backend::"memory/db");`, `p.yaml:5: policy/p: there is no profile "x"`},
		"no SPIFFE ID":      {`forbid (principal == Stint::Agent::"eu1", action, resource);`, `p.yaml:5: policy/p: Stint::Agent::"eu1" is not a SPIFFE ID: `},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, problems := policy.Compile(fixture(t, resource.PermitCeiling, map[string]string{"p": tt.text}))
			if tt.want == "" { // Cedar folds a has of what cannot be there to false
				equal(t, "problems", problems, []resource.Problem(nil))
				return
			}
			if e != nil || len(problems) != 1 || !strings.HasPrefix(problems[0].String(), tt.want) {
				t.Errorf("engine %v, problems %v; want %q", e, problems, tt.want)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	warnings := func(permit resource.Permit, text string) string {
		return strings.Join(said(compile(t, permit, map[string]string{"p": text})), "\n")
	}
	const never = "fixture.yaml:59: no policy can ever permit role ledger-api for profile invoice-agent"
	const all = `permit (principal, action, resource);`
	equal(t, "ceiling", warnings(resource.PermitCeiling, all), "")
	equal(t, "all", warnings(resource.PermitNone, all), "")
	for _, text := range []string{
		`permit (principal, action, resource in Stint::Backend::"memory/db");`,
		`permit (principal, action, resource == Stint::Role::"orders-db-read");`,
		`permit (principal in Stint::Profile::"other", action, resource); permit (principal, action, resource == Stint::Role::"orders-db-read");`,
	} {
		equal(t, text, warnings(resource.PermitNone, text), never)
	}
	equal(t, "forbid", warnings(resource.PermitNone, `forbid (principal, action, resource);`),
		never+"\nfixture.yaml:58: no policy can ever permit role orders-db-read for profile invoice-agent"+
			"\nfixture.yaml:45: no policy can ever permit role payroll-db for profile other: always forbidden by policy/p"+
			"\nfixture.yaml:45: no policy can ever permit role static-key for profile other: always forbidden by policy/p")
	equal(t, "backend", warnings(resource.PermitCeiling, `forbid (principal, action, resource in Stint::Backend::"vault/x");`),
		"p.yaml:5: policy/p: no role uses backend vault/x")
	set, problems := resource.Parse([]resource.File{{Name: "r", YAML: "apiVersion: stint.dev/v1\nkind: Role\nmetadata: {name: alone}\n" +
		"spec: {backend: memory/db, ttl: {max: 1m}}\n"}}, backends())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	e, _ := policy.Compile(set)
	equal(t, "unlisted", said(e), []string{"r:1: no profile lists role alone"})
}
