package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
)

// said returns warnings as text.
func said(e *policy.Engine) []string {
	var out []string
	for _, w := range e.Warnings() {
		out = append(out, w.String())
	}
	return out
}

// neverPermitted returns the roles that an engine says nobody of a profile can be issued, and why: "profile role", and the
// policies that always forbid it.
func neverPermitted(e *policy.Engine) map[string][]string {
	out := map[string][]string{}
	for _, w := range e.Warnings() {
		if w.Kind == policy.RoleNeverPermitted {
			out[w.Profile+" "+w.Role] = w.Forbids
		}
	}
	return out
}

// second lists a role of invoice-agent in a profile of other agents and with one purpose.
const second = `
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: auditor}
spec:
  agents: ["spiffe://example.org/auditor/*"]
  owner: a@example.org
  sponsor: b@example.org
  purposes: [audit]
  roles: [{name: ledger-api}]
  permit: none
`

func TestNeverPermitted(t *testing.T) {
	const (
		invoices = "invoice-agent ledger-api,invoice-agent orders-db-read"
		all      = invoices + ",auditor ledger-api"
	)
	for name, tt := range map[string]struct{ permit, text, want string }{
		"nothing is permitted":             {"none", `forbid (principal, action, resource) when { context.ttl > duration("1h") };`, all},
		"all to all":                       {"none", `permit (principal, action, resource);`, ""},
		"one profile's ceiling":            {"ceiling", `permit (principal, action, resource == Stint::Role::"orders-db-read");`, "auditor ledger-api"},
		"permitted to the other profile":   {"none", `permit (principal in Stint::Profile::"auditor", action, resource);`, invoices},
		"in a condition":                   {"none", `permit (principal, action, resource) when { principal in Stint::Profile::"auditor" };`, invoices},
		"not in a condition":               {"none", `permit (principal, action, resource) unless { principal in Stint::Profile::"auditor" };`, "auditor ledger-api"},
		"one of its agents":                {"none", `permit (principal == Stint::Agent::"spiffe://example.org/auditor/a", action, resource);`, invoices},
		"an agent of none":                 {"none", `permit (principal == Stint::Agent::"spiffe://example.org/nobody", action, resource);`, all},
		"one of its agents in a condition": {"none", `permit (principal, action, resource) when { principal == Stint::Agent::"spiffe://example.org/nobody" };`, ""},
		"a purpose of the profile":         {"none", `permit (principal, action, resource) when { context.purpose == "answer-invoice" };`, "auditor ledger-api"},
		"a purpose of no profile":          {"none", `permit (principal, action, resource) when { context.purpose == "nothing" };`, all},
		"an exposure that no role has":     {"none", `permit (principal, action, resource) when { context has exposure && context.exposure > duration("99d") };`, all},
		"what depends on the request": {"none", `permit (principal, action, resource) when { context.ttl < duration("1m") && context.svid_age < duration("1m") &&
			context.held.isEmpty() && context.method == "x509-svid" && context.time > datetime("2026-01-01") } unless { principal.depth == 2 };`, ""},
		"what depends on parameters":     {"none", `permit (principal, action, resource) when { context.parameters has schema && context.parameters.schema == "x" };`, ""},
		"the context as a whole":         {"none", `permit (principal, action, resource) when { [context].contains(context) };`, ""},
		"the context as a whole forbids": {"ceiling", `permit (principal, action, resource); forbid (principal, action, resource) when { [context].contains(context) };`, ""},
		"a condition after an open one":  {"none", `permit (principal, action, resource) when { context.ttl < duration("1m") } when { context.purpose == "audit" };`, invoices},
		"forbidden for all":              {"ceiling", `permit (principal, action, resource); forbid (principal, action, resource == Stint::Role::"ledger-api");`, "invoice-agent ledger-api=policy/p/2,auditor ledger-api=policy/p/2"},
		"forbidden but for one purpose":  {"ceiling", `permit (principal, action, resource); forbid (principal, action, resource) unless { context.purpose == "audit" };`, "invoice-agent ledger-api=policy/p/2,invoice-agent orders-db-read=policy/p/2,other payroll-db=policy/p/2,other static-key=policy/p/2"},
		"forbidden for one agent":        {"ceiling", `permit (principal, action, resource); forbid (principal == Stint::Agent::"spiffe://example.org/auditor/a", action, resource);`, ""},
		"forbidden in one profile":       {"ceiling", `permit (principal, action, resource); forbid (principal in Stint::Profile::"auditor", action, resource);`, "auditor ledger-api=policy/p/2"},
		"forbidden by what is not known": {"ceiling", `permit (principal, action, resource); forbid (principal, action, resource) when { context.ttl > duration("1s") };`, ""},
		"permit and forbid never meet": {
			"none", `permit (principal, action, resource) when { context.purpose == "audit" || context.purpose == "answer-invoice" };
			forbid (principal, action, resource) when { context.purpose == "answer-invoice" };`,
			"invoice-agent ledger-api=policy/p/2,invoice-agent orders-db-read=policy/p/2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			set, problems := resource.Parse([]resource.File{
				{Name: "fixture.yaml", YAML: rolesAndProfile + invoiceProfile + tt.permit + second}, {Name: "p.yaml", YAML: policyDoc("p", tt.text)},
			}, backends())
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			e, problems := policy.Compile(set)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			var got []string
			for key, forbids := range neverPermitted(e) {
				got = append(got, strings.Join(append([]string{key}, forbids...), "="))
			}
			want := strings.Split(tt.want, ",")
			slices.Sort(got)
			slices.Sort(want)
			if strings.Join(got, ",") != strings.Join(want, ",") {
				t.Errorf("warns about %v, want %v", got, want)
			}
		})
	}
}

// TestNeverPermittedIsNever: what an engine warns about is refused to every agent, whatever it asks.
func TestNeverPermittedIsNever(t *testing.T) {
	warned := 0
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEngine(t, rt)
		never := neverPermitted(e)
		warned += len(never)
		for range 10 {
			in := policy.IssueInput{
				Identity: drawIdentity(rt), Now: now, TTL: time.Duration(rapid.IntRange(1, 3600).Draw(rt, "ttl")) * time.Second,
				Params: drawParams(rt), Held: rapid.SliceOfN(rapid.SampledFrom([]string{"ledger-api", "payroll-db"}), 0, 2).Draw(rt, "held"),
			}
			p, ok := e.Profile(in.Identity.ID)
			if !ok {
				continue
			}
			in.Role = rapid.SampledFrom(p.RoleNames()).Draw(rt, "role")
			in.Task = task.Task{Purpose: rapid.SampledFrom(p.Purposes).Draw(rt, "purpose")}
			if _, no := never[p.Name+" "+in.Role]; no && e.Ask(in, p.Name, nil).Allow {
				rt.Fatalf("warns that %s is never permitted for %s, and allows it for %+v: %v", in.Role, p.Name, in, said(e))
			}
		}
	})
	if warned == 0 {
		t.Error("nothing was ever warned about")
	}
}

// TestNeverPermittedSaysWhere holds text and place of the warning, and that what is missing, once written, ends it.
func TestNeverPermittedSaysWhere(t *testing.T) {
	e := compile(t, resource.PermitNone, map[string]string{"p": `permit (principal, action, resource == Stint::Role::"orders-db-read");`})
	if want := []string{"fixture.yaml:59: no policy can ever permit role ledger-api for profile invoice-agent"}; !slices.Equal(said(e), want) {
		t.Errorf("got %q, want %q", said(e), want)
	}
	e = compile(t, resource.PermitCeiling, map[string]string{"p": `forbid (principal, action, resource == Stint::Role::"ledger-api");`})
	if want := []string{"fixture.yaml:59: no policy can ever permit role ledger-api for profile invoice-agent: always forbidden by policy/p"}; !slices.Equal(said(e), want) {
		t.Errorf("got %q, want %q", said(e), want)
	}
}
