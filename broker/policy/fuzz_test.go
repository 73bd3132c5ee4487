package policy_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
)

// FuzzCompile: any text either is refused with a reason, or makes an engine that answers.
func FuzzCompile(f *testing.F) {
	for _, seed := range []string{
		`permit (principal, action, resource);`,
		`forbid (principal in Stint::Profile::"other", action == Stint::Action::"issue", resource == Stint::Role::"ledger-api")
unless { context.purpose == "x" && context has exposure && context.exposure <= duration("60s") };`,
		`permit (principal is Stint::Agent, action in [Stint::Action::"issue"], resource in Stint::Backend::"memory/db")
when { [context].contains(context) || principal.segment1 like "a*b" };`,
		`@id("x") permit (principal, action, resource) when { {a: 1}.a > 0 && context.time.toDate() > datetime("2026-01-01") };`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set, problems := resource.Parse([]resource.File{
			{Name: "fixture.yaml", YAML: rolesAndProfile + invoiceProfile + "ceiling"},
			{Name: "p.yaml", YAML: policyDoc("p", text)},
		}, backends())
		if len(problems) > 0 {
			return // not a text that YAML can hold
		}
		e, problems := policy.Compile(set)
		if (e == nil) == (len(problems) == 0) {
			t.Fatalf("engine %v with problems %v", e, problems)
		}
		if e == nil {
			if !strings.Contains(problems[0].Message, "policy") {
				t.Fatalf("problem %q names no policy", problems[0])
			}
			return
		}
		in := declaration(t)
		if d, err := e.Declare(in); (err == nil) != d.Valid() {
			t.Fatalf("decision %v with %v", d.Valid(), err)
		}
	})
}
