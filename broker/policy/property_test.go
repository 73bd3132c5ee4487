package policy_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
)

// overflows fails whenever it is evaluated.
const overflows = `principal.depth * 9223372036854775807 > 0`

// cedarText draws one to five statements of every kind of scope and condition.
func cedarText(rt *rapid.T) string {
	principals := []string{
		`principal`, `principal is Stint::Agent`, `principal in Stint::Profile::"invoice-agent"`,
		`principal in Stint::Profile::"other"`, `principal is Stint::Agent in Stint::Profile::"invoice-agent"`,
		`principal == Stint::Agent::"spiffe://example.org/agent/invoice/eu1"`,
		`principal in Stint::Agent::"spiffe://example.org/agent/invoice/eu1"`,
	}
	resources := []string{
		`resource`, `resource is Stint::Role`, `resource == Stint::Role::"ledger-api"`, `resource == Stint::Role::"orders-db-read"`,
		`resource in Stint::Role::"payroll-db"`, `resource in Stint::Backend::"memory/db"`,
		`resource is Stint::Role in Stint::Backend::"memory/ca"`,
	}
	conditions := []string{
		`true`, `context.purpose == "reconcile-invoices"`, `context.ttl <= duration("5m")`, `context has exposure`,
		`context has exposure && context.exposure <= duration("60s")`, `context.until_expiry`, `context.method == "x509-svid"`,
		`context.svid_age < duration("10m")`, `context.held.contains(Stint::Role::"ledger-api")`, `context.held.isEmpty()`,
		`context.time < datetime("2026-11-23T12:00:00Z")`, `context.parameters has schema && context.parameters.schema == "orders"`,
		`principal.path like "/agent/*/eu1"`, `principal has segment3 && principal.segment3 == "eu1"`, `principal.depth == 3`,
		`resource.ends == "revocable"`, `[context].contains(context)`, `(if context.until_expiry then principal else principal).name == "eu1"`,
		overflows,
	}
	var b strings.Builder
	for range rapid.IntRange(1, 5).Draw(rt, "statements") {
		b.WriteString(rapid.SampledFrom([]string{"permit", "permit", "forbid"}).Draw(rt, "effect"))
		b.WriteString(" (" + rapid.SampledFrom(principals).Draw(rt, "principal") + ", action, ")
		b.WriteString(rapid.SampledFrom(resources).Draw(rt, "resource") + ")")
		for range rapid.IntRange(0, 2).Draw(rt, "conditions") {
			b.WriteString(rapid.SampledFrom([]string{" when", " unless"}).Draw(rt, "clause"))
			b.WriteString(" { " + rapid.SampledFrom(conditions).Draw(rt, "condition") + " }")
		}
		b.WriteString(";\n")
	}
	return b.String()
}

// drawEngine compiles the fixture with policies that are drawn; what the schema proves to be always false is drawn anew.
func drawEngine(t *testing.T, rt *rapid.T) *policy.Engine {
	t.Helper()
	permit := rapid.SampledFrom([]resource.Permit{resource.PermitCeiling, resource.PermitNone}).Draw(rt, "permit")
	e, problems := policy.Compile(fixture(t, permit, map[string]string{"p": cedarText(rt)}))
	if len(problems) > 0 {
		rt.Skip(problems)
	}
	return e
}

func drawIdentity(rt *rapid.T) attestor.Identity {
	return attestor.Identity{
		ID: spiffeid.RequireFromString("spiffe://example.org/agent/" +
			rapid.SampledFrom([]string{"invoice/eu1", "invoice/eu2", "other/a/b", "single", "nobody"}).Draw(rt, "agent")),
		Method:    rapid.SampledFrom([]attestor.Method{attestor.MethodX509, attestor.MethodJWT}).Draw(rt, "method"),
		NotBefore: now.Add(-time.Duration(rapid.IntRange(0, 1800).Draw(rt, "age")) * time.Second),
		NotAfter:  now.Add(time.Hour),
	}
}

func drawSeconds(rt *rapid.T, label string) time.Duration {
	return time.Duration(rapid.IntRange(-2000, 4*3600*1000).Draw(rt, label)) * time.Millisecond
}

func drawRole(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"orders-db-read", "ledger-api", "payroll-db", "static-key", "nonsense"}).Draw(rt, "role")
}

func drawParams(rt *rapid.T) map[string]string {
	params := map[string]string{}
	if rapid.Bool().Draw(rt, "has schema") {
		params["schema"] = rapid.SampledFrom([]string{"orders", "invoices", "payroll", "a/b"}).Draw(rt, "schema")
	}
	if rapid.IntRange(0, 3).Draw(rt, "has host") == 0 {
		params["host"] = rapid.SampledFrom([]string{"db1", "db.1", "db..", "db*"}).Draw(rt, "host")
	}
	return params
}

func drawDeclaration(rt *rapid.T) policy.DeclareInput {
	in := policy.DeclareInput{
		Identity: drawIdentity(rt), Now: now, Strict: rapid.Bool().Draw(rt, "strict"),
		Purpose: rapid.SampledFrom([]string{"reconcile-invoices", "answer-invoice", "anything"}).Draw(rt, "purpose"),
		Held:    rapid.SliceOfN(rapid.SampledFrom([]string{"ledger-api", "payroll-db"}), 0, 2).Draw(rt, "held"),
	}
	switch rapid.IntRange(0, 2).Draw(rt, "end") {
	case 1:
		in.TTL = drawSeconds(rt, "ttl")
	case 2:
		in.NotAfter = now.Add(drawSeconds(rt, "not after"))
	}
	if rapid.Bool().Draw(rt, "has idle") {
		in.IdleTimeout = drawSeconds(rt, "idle")
	}
	for range rapid.IntRange(0, 3).Draw(rt, "roles") {
		r := policy.RoleInput{Role: drawRole(rt), Params: drawParams(rt)}
		if rapid.Bool().Draw(rt, "has role ttl") {
			r.TTL = drawSeconds(rt, "role ttl")
		}
		in.Roles = append(in.Roles, r)
	}
	return in
}

// TestSlicedIsFull: a slice with the facts that its statements read decides as all statements with all facts do, and
// both as cedar-go does, but for errors, which deny.
func TestSlicedIsFull(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEngine(t, rt)
		in := policy.IssueInput{
			Identity: drawIdentity(rt), Now: now, TTL: drawSeconds(rt, "ttl"), Params: drawParams(rt),
			Role: rapid.SampledFrom([]string{"orders-db-read", "ledger-api", "payroll-db", "static-key"}).Draw(rt, "role"),
			Task: task.Task{Purpose: rapid.SampledFrom([]string{"reconcile-invoices", "x"}).Draw(rt, "purpose")},
			Held: rapid.SliceOfN(rapid.SampledFrom([]string{"ledger-api", "payroll-db"}), 0, 2).Draw(rt, "held"),
		}
		profile := rapid.SampledFrom([]string{"invoice-agent", "other"}).Draw(rt, "profile")
		for _, open := range [][]string{nil, {"host"}} {
			sliced, full := e.Ask(in, profile, open), e.Full().Ask(in, profile, open)
			if diff := cmp.Diff(full, sliced); diff != "" {
				rt.Fatalf("open %v (-full +sliced):\n%s", open, diff)
			}
		}
		allow, failures := e.Shipped(in, profile)
		if got := e.Ask(in, profile, nil); got.Allow != (allow && failures == 0) || got.Failed != (failures > 0) {
			rt.Fatalf("got %+v, cedar-go says %v with %d errors", got, allow, failures)
		}
	})
}

// TestADroppedFactNeverWidens: without one attested fact the answer is a refusal.
func TestADroppedFactNeverWidens(t *testing.T) {
	drops := []func(*attestor.Identity){
		func(id *attestor.Identity) { id.ID = spiffeid.ID{} },
		func(id *attestor.Identity) { id.Method = "" },
		func(id *attestor.Identity) { id.NotBefore = time.Time{} },
		func(id *attestor.Identity) { id.NotAfter = time.Time{} },
	}
	rapid.Check(t, func(rt *rapid.T) {
		e, in := drawEngine(t, rt), drawDeclaration(rt)
		rapid.SampledFrom(drops).Draw(rt, "drop")(&in.Identity)
		if d, err := e.Declare(in); err == nil || d.Valid() {
			rt.Fatalf("%+v was allowed for %+v", d, in.Identity)
		}
		issue := policy.IssueInput{Identity: in.Identity, Task: declared(t, compile(t, resource.PermitCeiling, nil)), Role: "ledger-api", Now: now}
		if d, err := e.Issue(issue); err == nil || d.Valid() {
			rt.Fatalf("%+v was allowed for %+v", d, in.Identity)
		}
	})
}

// TestTheCeilingHolds: whatever policies say, a decision stays within the profile, the role and the task.
func TestTheCeilingHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e, in := drawEngine(t, rt), drawDeclaration(rt)
		d, err := e.Declare(in)
		if err != nil {
			if d.Valid() {
				rt.Fatal("refused and valid")
			}
			return
		}
		p, _ := e.Profile(in.Identity.ID)
		if d.NotAfter().After(now.Add(p.MaxTTL)) || !d.NotAfter().After(now) || len(d.Grants()) != len(in.Roles) {
			rt.Fatalf("task %+v beyond profile %s", d, p.Name)
		}
		if p.IdleTimeout > 0 && (d.IdleTimeout() > p.IdleTimeout || d.IdleTimeout() < time.Second) {
			rt.Fatalf("idle timeout %s beyond profile %s", d.IdleTimeout(), p.Name)
		}
		work := openTask(t, d)
		work.Agent, work.Purpose = in.Identity.ID.String(), in.Purpose
		for _, g := range d.Grants() {
			checkCeiling(rt, e, p, g)
			issueWithin(rt, e, p, work, policy.IssueInput{
				Identity: in.Identity, Role: g.Role, Params: drawParams(rt), TTL: max(0, drawSeconds(rt, "issue ttl")),
				Now: now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(rt, "later")) * time.Second),
			})
		}
	})
}

func issueWithin(rt *rapid.T, e *policy.Engine, p resource.Profile, work task.Task, in policy.IssueInput) {
	in.Task = work
	d, err := e.Issue(in)
	if err != nil {
		return
	}
	checkCeiling(rt, e, p, task.Grant{Role: in.Role, TTL: d.TTL(), Params: d.Params()})
	g, _ := work.Grant(in.Role)
	if d.TTL() > g.TTL || d.NotAfter().After(work.NotAfter) || d.NotAfter().After(in.Now.Add(g.TTL)) {
		rt.Fatalf("decision until %s beyond grant %+v of a task until %s", d.NotAfter(), g, work.NotAfter)
	}
	for name, value := range g.Params {
		if d.Params()[name] != value {
			rt.Fatalf("parameter %s was fixed as %q and is %q", name, value, d.Params()[name])
		}
	}
}

func checkCeiling(rt *rapid.T, e *policy.Engine, p resource.Profile, g task.Grant) {
	name, ttl := g.Role, g.TTL
	entry, listed := p.Role(name)
	role, known := e.Set().Role(name)
	if !listed || !known {
		rt.Fatalf("role %s is not in profile %s", name, p.Name)
	}
	if ttl > role.MaxTTL || (entry.MaxTTL > 0 && ttl > entry.MaxTTL) || ttl < time.Second || ttl%time.Second != 0 {
		rt.Fatalf("ttl %s of %s beyond its bounds", ttl, name)
	}
	for key, value := range g.Params {
		param, ok := role.Parameter(key)
		if narrow, bound := entry.Parameters[key]; !ok || param.CheckValue(value) != nil || (bound && !narrow.Match(value)) {
			rt.Fatalf("parameter %s of %s is %q", key, name, strconv.Quote(value))
		}
	}
}

// TestAFailingForbidAlwaysDenies: no permit outweighs a forbid that cannot be evaluated.
func TestAFailingForbidAlwaysDenies(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		text := cedarText(rt) + "forbid (principal, action, resource) when { " + overflows + " };\npermit (principal, action, resource);"
		e, problems := policy.Compile(fixture(t, resource.PermitCeiling, map[string]string{"p": text}))
		if len(problems) > 0 {
			rt.Skip(problems)
		}
		in := drawDeclaration(rt)
		if d, err := e.Declare(in); len(in.Roles) > 0 && (err == nil || d.Valid()) {
			rt.Fatal("allowed")
		}
	})
}

// TestStrictOnlyRefuses: what strict allows, it allows exactly as asked.
func TestStrictOnlyRefuses(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	rapid.Check(t, func(rt *rapid.T) {
		in := drawDeclaration(rt)
		in.Strict = true
		strict, err := e.Declare(in)
		if err != nil {
			return
		}
		in.Strict = false
		loose, err := e.Declare(in)
		if err != nil || len(strict.Clamps()) > 0 || len(loose.Clamps()) > 0 {
			rt.Fatalf("strict %+v, loose %+v, %v", strict, loose, err)
		}
		if diff := cmp.Diff(strict.Grants(), loose.Grants(), cmpopts.EquateEmpty()); diff != "" || !strict.NotAfter().Equal(loose.NotAfter()) {
			rt.Fatalf("(-strict +loose):\n%s", diff)
		}
	})
}
