package policy_test

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

func TestDeclareGrantsWhatTheCeilingHolds(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	d, err := e.Declare(declaration(t))
	if err != nil {
		t.Fatal(err)
	}
	whole := now.Truncate(time.Second)
	equal(t, "valid", d.Valid(), true)
	equal(t, "profile", d.Profile().Name, "invoice-agent")
	equal(t, "not after", d.NotAfter(), whole.Add(20*time.Minute))
	equal(t, "asked", d.AskedNotAfter(), whole.Add(20*time.Minute))
	equal(t, "idle", d.IdleTimeout(), time.Minute)
	equal(t, "policies", d.Policies(), []string{"profile/invoice-agent"})
	equal(t, "policy set", d.PolicySet(), e.Hash())
	equal(t, "clamps", d.Clamps(), []policy.Clamp(nil))
	equal(t, "grants", d.Grants(), []task.Grant{
		{
			Role: "ledger-api", TTL: 5 * time.Minute, Params: map[string]string{}, Policies: []string{"profile/invoice-agent"},
			Exposure: plugins.Exposure{Bounded: true, Max: 15 * time.Minute, UntilExpiry: true, Reason: "expires"},
		},
		{
			Role: "orders-db-read", TTL: 15 * time.Minute, Params: map[string]string{"schema": "orders"},
			Policies: []string{"profile/invoice-agent"}, Exposure: plugins.Exposure{Bounded: true, Reason: "revoked"},
		},
	})
}

func TestDeclareWithoutRoles(t *testing.T) {
	in := declaration(t)
	in.Roles = nil
	d, err := compile(t, resource.PermitNone, nil).Declare(in)
	if err != nil || !d.Valid() || len(d.Grants()) != 0 || len(d.Policies()) != 0 {
		t.Errorf("got %+v, %v; want a task without grants", d, err)
	}
}

func TestDeclareTimes(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	whole := now.Truncate(time.Second)
	tests := map[string]struct {
		change       func(*policy.DeclareInput)
		after, asked time.Duration // from the whole second
		idle         time.Duration
		clamps       []policy.Clamp
	}{
		"ttl": {func(in *policy.DeclareInput) { in.TTL = 90 * time.Second }, 90 * time.Second, 90 * time.Second, time.Minute, nil},
		"fraction of a second": {
			func(in *policy.DeclareInput) { in.TTL = 1900 * time.Millisecond },
			time.Second, 2 * time.Second, time.Minute, nil,
		},
		"longer than the profile allows": {
			func(in *policy.DeclareInput) { in.TTL = 8 * time.Hour },
			time.Hour, 8 * time.Hour, time.Minute,
			[]policy.Clamp{{Field: "ttl", Requested: 8 * time.Hour, Granted: time.Hour, LimitedBy: "profile invoice-agent"}},
		},
		"absolute": {
			func(in *policy.DeclareInput) { in.NotAfter = now.Add(10 * time.Minute) },
			10 * time.Minute, 10 * time.Minute, time.Minute, nil,
		},
		"absolute, a hair longer than allowed": {
			func(in *policy.DeclareInput) { in.NotAfter, in.Strict = now.Add(time.Hour+400*time.Millisecond), true },
			time.Hour, time.Hour, time.Minute, nil,
		},
		"absolute, longer": {
			func(in *policy.DeclareInput) { in.NotAfter = now.Add(2 * time.Hour) },
			time.Hour, 2 * time.Hour, time.Minute,
			[]policy.Clamp{{Field: "not_after", Requested: 2 * time.Hour, Granted: time.Hour, LimitedBy: "profile invoice-agent"}},
		},
		"shorter idle timeout": {
			func(in *policy.DeclareInput) { in.IdleTimeout = 10 * time.Second },
			20 * time.Minute, 20 * time.Minute, 10 * time.Second, nil,
		},
		"longer idle timeout": {
			func(in *policy.DeclareInput) { in.IdleTimeout = 10 * time.Minute },
			20 * time.Minute, 20 * time.Minute, time.Minute,
			[]policy.Clamp{{Field: "idle_timeout", Requested: 10 * time.Minute, Granted: time.Minute, LimitedBy: "profile invoice-agent"}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := declaration(t)
			in.Roles = nil
			tt.change(&in)
			d, err := e.Declare(in)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "not after", d.NotAfter(), whole.Add(tt.after))
			equal(t, "asked", d.AskedNotAfter(), whole.Add(tt.asked))
			equal(t, "idle", d.IdleTimeout(), tt.idle)
			equal(t, "clamps", d.Clamps(), tt.clamps)
		})
	}
}

func TestDeclareClampsRoles(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	in := declaration(t)
	in.TTL = 25 * time.Minute
	in.Roles[0].TTL, in.Roles[1].TTL = time.Hour, time.Hour
	d, err := e.Declare(in)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "clamps", d.Clamps(), []policy.Clamp{
		{Field: "roles[0].ttl", Requested: time.Hour, Granted: 25 * time.Minute, LimitedBy: "the task's end"},
		{Field: "roles[1].ttl", Requested: time.Hour, Granted: 15 * time.Minute, LimitedBy: "role ledger-api"},
	})
	in.TTL = 40 * time.Minute
	if d, err = e.Declare(in); err != nil {
		t.Fatal(err)
	}
	equal(t, "limited by the profile", d.Clamps()[0].String(), "roles[0].ttl 1h would become 30m (profile invoice-agent)")

	in.TTL, in.Roles[0].TTL, in.Roles[1].TTL = 2*time.Minute, 0, 0 // defaults are shortened without a word
	if d, err = e.Declare(in); err != nil {
		t.Fatal(err)
	}
	equal(t, "no clamps", d.Clamps(), []policy.Clamp(nil))
	for _, g := range d.Grants() {
		equal(t, g.Role, g.TTL, 2*time.Minute)
	}
}

func TestDeclareRefusals(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	tests := map[string]struct {
		change func(*policy.DeclareInput)
		reason fault.Reason
		text   string // of the message
		fields []fault.Field
		meta   map[string]string // part of it
	}{
		"role outside": {
			func(in *policy.DeclareInput) {
				in.Roles, in.TTL = []policy.RoleInput{{Role: "payroll-db"}}, 8*time.Hour
			},
			fault.RoleOutsideProfile, "payroll-db; profile invoice-agent allows ledger-api, orders-db-read. Nothing was created.",
			[]fault.Field{{Name: "roles[0].role", Problem: "payroll-db is not in profile invoice-agent"}},
			map[string]string{
				policy.MetaRoles: "ledger-api,orders-db-read", policy.MetaOwner: "billing-platform@example.org",
				policy.MetaNotes: "ttl 8h would become 1h (profile invoice-agent)", policy.MetaClasses: "role",
			},
		},
		"purpose outside": {
			func(in *policy.DeclareInput) { in.Purpose = "pay\x1b[31m" },
			fault.PurposeOutsideProfile,
			`"pay\x1b[31m"; profile invoice-agent allows answer-invoice, reconcile-invoices. Nothing was created.`,
			[]fault.Field{{Name: "purpose", Problem: `"pay\x1b[31m" is not in profile invoice-agent`}},
			map[string]string{policy.MetaPurposes: "answer-invoice,reconcile-invoices", policy.MetaClasses: "purpose"},
		},
		"asked for twice": {
			func(in *policy.DeclareInput) { in.Roles = append(in.Roles, policy.RoleInput{Role: "ledger-api"}) },
			fault.InvalidArgument, "roles[2].role ledger-api is asked for twice. Nothing was created.",
			[]fault.Field{{Name: "roles[2].role", Problem: "ledger-api is asked for twice"}},
			nil,
		},
		"strict": {
			func(in *policy.DeclareInput) { in.TTL, in.Strict = 8*time.Hour, true },
			fault.TTLTooLong, "ttl 8h is longer than 1h, the most that profile invoice-agent allows. Nothing was created.",
			[]fault.Field{{Name: "ttl", Problem: "8h is longer than 1h, the most that profile invoice-agent allows"}},
			map[string]string{policy.MetaClasses: "ttl"},
		},
		"too short": {
			func(in *policy.DeclareInput) { in.Roles[1].TTL = time.Millisecond },
			fault.InvalidArgument, "roles[1].ttl must be at least 1s. Nothing was created.",
			[]fault.Field{{Name: "roles[1].ttl", Problem: "must be at least 1s"}},
			nil,
		},
		"negative": {
			func(in *policy.DeclareInput) { in.IdleTimeout = -time.Hour },
			fault.InvalidArgument, "idle_timeout must be at least 1s. Nothing was created.",
			[]fault.Field{{Name: "idle_timeout", Problem: "must be at least 1s"}},
			nil,
		},
		"in the past": {
			func(in *policy.DeclareInput) { in.NotAfter = now.Add(400 * time.Millisecond) },
			fault.InvalidArgument, "not_after must be at least 1s from now, 2026-11-23T10:00:00Z. Nothing was created.",
			[]fault.Field{{Name: "not_after", Problem: "must be at least 1s from now, 2026-11-23T10:00:00Z"}},
			nil,
		},
		"both ends": {
			func(in *policy.DeclareInput) { in.NotAfter, in.TTL = now.Add(time.Hour), time.Hour },
			fault.InvalidArgument, "ttl cannot be given together with not_after. Nothing was created.",
			[]fault.Field{{Name: "ttl", Problem: "cannot be given together with not_after"}},
			nil,
		},
		"everything at once": {
			func(in *policy.DeclareInput) {
				in.Purpose, in.TTL, in.Strict = "payroll", 8*time.Hour, true
				in.Roles = append(in.Roles, policy.RoleInput{Role: strings.Repeat("x", 90)})
				in.Roles[0].Params = map[string]string{"schema": "payroll", "color": "red"}
			},
			fault.PurposeOutsideProfile,
			`payroll; profile invoice-agent allows answer-invoice, reconcile-invoices. also ROLE_OUTSIDE_PROFILE "` +
				strings.Repeat("x", 63) + `"; profile invoice-agent allows ledger-api, orders-db-read. also PARAMETER_INVALID ` +
				`roles[0].parameters.color is not a parameter of role orders-db-read; known are host, schema, ` +
				`roles[0].parameters.schema must match orders|invoices, says the profile. also TTL_TOO_LONG ` +
				`ttl 8h is longer than 1h, the most that profile invoice-agent allows. Nothing was created.`,
			[]fault.Field{
				{Name: "purpose", Problem: "payroll is not in profile invoice-agent"},
				{Name: "roles[2].role", Problem: `"` + strings.Repeat("x", 63) + `" is not in profile invoice-agent`},
				{Name: "roles[0].parameters.color", Problem: "is not a parameter of role orders-db-read; known are host, schema"},
				{Name: "roles[0].parameters.schema", Problem: "must match orders|invoices, says the profile"},
				{Name: "ttl", Problem: "8h is longer than 1h, the most that profile invoice-agent allows"},
			},
			map[string]string{
				policy.MetaReasons: "PARAMETER_INVALID,PURPOSE_OUTSIDE_PROFILE,ROLE_OUTSIDE_PROFILE,TTL_TOO_LONG",
				policy.MetaClasses: "parameter,purpose,role,ttl",
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := declaration(t)
			tt.change(&in)
			d, err := e.Declare(in)
			f := refused(t, err, tt.reason)
			equal(t, "decision", d.Valid(), false)
			equal(t, "message", f.Message, tt.text)
			equal(t, "fields", f.Fields, tt.fields)
			for key, want := range tt.meta {
				equal(t, key, f.Metadata[key], want)
			}
			equal(t, "policy set", f.Metadata[policy.MetaPolicySet], e.Hash())
		})
	}
}

// TestNoOracle holds a role that there is against one that there is not: a caller sees no difference but the name.
func TestNoOracle(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	answer := func(role string) *fault.Error {
		in := declaration(t)
		in.Roles = []policy.RoleInput{{Role: role, Params: map[string]string{"a": "b"}, TTL: time.Hour}}
		_, err := e.Declare(in)
		f := refused(t, err, fault.RoleOutsideProfile)
		f.Message = strings.ReplaceAll(f.Message, role, "ROLE")
		for i := range f.Fields {
			f.Fields[i].Problem = strings.ReplaceAll(f.Fields[i].Problem, role, "ROLE")
		}
		return f
	}
	there, notThere := answer("payroll-db"), answer("no-such-role")
	equal(t, "message", there.Message, notThere.Message)
	equal(t, "fields", there.Fields, notThere.Fields)
	equal(t, "metadata", there.Metadata, notThere.Metadata)
}

func TestAdmit(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	tests := map[string]struct {
		change func(*policy.DeclareInput)
		reason fault.Reason
	}{
		"stranger":      {func(in *policy.DeclareInput) { in.Identity = identity(t, "spiffe://example.org/agent/x") }, fault.NoProfile},
		"deeper path":   {func(in *policy.DeclareInput) { in.Identity = identity(t, "spiffe://example.org/agent/invoice/a/b") }, fault.NoProfile},
		"other domain":  {func(in *policy.DeclareInput) { in.Identity = identity(t, "spiffe://example.com/agent/invoice/eu1") }, fault.NoProfile},
		"expired":       {func(in *policy.DeclareInput) { in.Now = now.Add(time.Hour) }, fault.SVIDExpired},
		"not yet valid": {func(in *policy.DeclareInput) { in.Now = now.Add(-time.Hour) }, fault.Unauthenticated},
		"no time":       {func(in *policy.DeclareInput) { in.Now = time.Time{} }, fault.Internal},
		"local peer":    {func(in *policy.DeclareInput) { in.Identity.Method = attestor.MethodLocal }, fault.Unauthenticated},
		"nobody":        {func(in *policy.DeclareInput) { in.Identity = attestor.Identity{} }, fault.Unauthenticated},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := declaration(t)
			tt.change(&in)
			_, err := e.Declare(in)
			wantReason(t, err, tt.reason)
			_, err = e.Issue(policy.IssueInput{Identity: in.Identity, Task: declared(t, e), Role: "ledger-api", Now: in.Now})
			wantReason(t, err, tt.reason)
		})
	}
	in := declaration(t)
	in.Identity = identity(t, "spiffe://example.org/agent/single")
	in.Purpose, in.Roles = "anything", []policy.RoleInput{{Role: "static-key"}}
	if _, err := e.Declare(in); err != nil {
		t.Errorf("an exact pattern: %v", err)
	}
}

func TestParametersStayInTheirSegment(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	for _, value := range []string{
		"", "a/b", "..", "db1..2", "db*", "db+", "db%2f", "db\x00", "db\n", "db 1", "\xff", "xdb1", "db1x", `db\`,
		strings.Repeat("1", 300),
	} {
		in := declaration(t)
		in.Roles[0].Params = map[string]string{"schema": "orders", "host": value}
		_, err := e.Declare(in)
		f := refused(t, err, fault.ParameterInvalid)
		equal(t, value, f.Fields[0].Name, "roles[0].parameters.host")
		if value != "" && strings.Contains(f.Message, value) && len(value) > 3 {
			t.Errorf("the message repeats the value: %q", f.Message)
		}
	}
	in := declaration(t)
	in.Roles[1].Params = map[string]string{"x": "y"}
	_, err := e.Declare(in)
	equal(t, "none known", refused(t, err, fault.ParameterInvalid).Fields[0].Problem,
		"is not a parameter of role ledger-api, which has none")
}

func TestPoliciesDecideDeclarations(t *testing.T) {
	forbid := `forbid (principal, action == Stint::Action::"issue", resource == Stint::Role::"orders-db-read")
unless { context.purpose == "reconcile-invoices" && context has exposure && context.exposure <= duration("60s") };`
	e := compile(t, resource.PermitCeiling, map[string]string{"orders": forbid})
	if _, err := e.Declare(declaration(t)); err != nil {
		t.Fatalf("the purpose that is allowed: %v", err)
	}
	in := declaration(t)
	in.Purpose = "answer-invoice"
	_, err := e.Declare(in)
	f := refused(t, err, fault.PolicyDenied)
	equal(t, "message", f.Message, "orders-db-read is forbidden by policy/orders. Nothing was created.")
	equal(t, "fields", f.Fields, []fault.Field{{Name: "roles[0].role", Problem: "orders-db-read is forbidden by policy/orders"}})
	equal(t, "metadata", f.Metadata, map[string]string{
		policy.MetaProfile: "invoice-agent", policy.MetaOwner: "billing-platform@example.org", policy.MetaPolicySet: e.Hash(),
		policy.MetaClasses: "policy", policy.MetaReasons: "POLICY_DENIED", policy.MetaPolicies: "policy/orders",
		policy.MetaConditions: "exposure,purpose",
	})

	e = compile(t, resource.PermitNone, nil)
	_, err = e.Declare(declaration(t))
	f = refused(t, err, fault.PolicyDenied)
	equal(t, "nobody permits", f.Message, "no policy permits orders-db-read, no policy permits ledger-api. Nothing was created.")
	equal(t, "policies", f.Metadata[policy.MetaPolicies], "")
}

// TestErrorsDeny has a forbid that cannot be evaluated: Cedar skips it, and would allow.
func TestErrorsDeny(t *testing.T) {
	overflow := `forbid (principal, action, resource) when { principal.depth * 9223372036854775807 > 0 };`
	permit := `permit (principal, action, resource);`
	e := compile(t, resource.PermitCeiling, map[string]string{"overflow": overflow, "all": permit})
	_, err := e.Declare(declaration(t))
	f := refused(t, err, fault.PolicyError)
	equal(t, "policies", f.Metadata[policy.MetaPolicies], "policy/overflow")
	if f.Cause == nil || strings.Contains(f.Message, "overflow was") || !strings.Contains(f.Cause.Error(), "overflow") {
		t.Errorf("message %q, cause %v; want the cause in the log alone", f.Message, f.Cause)
	}
	clean := compile(t, resource.PermitCeiling, nil)
	_, err = e.Issue(policy.IssueInput{Identity: invoiceAgent(t), Task: declared(t, clean), Role: "ledger-api", Now: now})
	wantReason(t, err, fault.PolicyError)

	broken := compile(t, resource.PermitCeiling, map[string]string{"permit": strings.Replace(overflow, "forbid", "permit", 1)})
	_, err = broken.Declare(declaration(t))
	wantReason(t, err, fault.PolicyError)
	if errors.Unwrap(err) == nil {
		t.Error("a permit that fails leaves no cause")
	}
}

// TestContext asks for each fact that a policy can read.
func TestContext(t *testing.T) {
	const permit = `permit (principal, action, resource) when { `
	yes := map[string]string{
		"purpose":      `context.purpose == "reconcile-invoices"`,
		"ttl":          `context.ttl == duration("5m")`,
		"exposure":     `context has exposure && context.exposure == duration("15m")`,
		"until expiry": `context.until_expiry`,
		"method":       `context.method == "x509-svid"`,
		"age":          `context.svid_age == duration("5m")`,
		"held":         `context.held == [Stint::Role::"orders-db-read", Stint::Role::"payroll-db"]`,
		"time":         `context.time.toDate() == datetime("2026-11-23")`,
		"parameters":   `!(context.parameters has schema)`,
		"id":           `principal.id == "spiffe://example.org/agent/invoice/eu1"`,
		"agent":        `principal == Stint::Agent::"spiffe://example.org/agent/invoice/eu1"`,
		"path":         `principal.path like "/agent/invoice/*"`,
		"segments": `principal.depth == 3 && principal has segment2 && principal.segment2 == "invoice" &&
			!(principal has segment4) && principal.name == "eu1" && principal.trust_domain == "example.org"`,
		"role":    `resource.name == "ledger-api" && resource.ends == "lapsing"`,
		"backend": `resource in Stint::Backend::"memory/ca" && Stint::Backend::"memory/ca".type == "memory"`,
		"profile": `principal in Stint::Profile::"invoice-agent" && Stint::Profile::"other".name == "other"`,
	}
	in := declaration(t)
	in.Held = []string{"payroll-db"}
	for name, condition := range yes {
		others := `permit (principal, action, resource == Stint::Role::"orders-db-read");`
		for want, text := range map[bool]string{true: condition, false: "!(" + condition + ")"} {
			e := compile(t, resource.PermitNone, map[string]string{"others": others, "p": permit + text + " };"})
			_, err := e.Declare(in)
			_, issued := e.Issue(policy.IssueInput{
				Identity: in.Identity, Task: declared(t, compile(t, resource.PermitCeiling, nil)), Role: "ledger-api",
				Held: []string{"payroll-db", "orders-db-read"}, Now: now,
			})
			if (err == nil) != want || (issued == nil) != want {
				t.Errorf("%s: %s: declare %v, issue %v", name, text, err, issued)
			}
		}
	}
}

func TestExposureIsAbsentWhereUnbounded(t *testing.T) {
	e := compile(t, resource.PermitCeiling, map[string]string{
		"p": `forbid (principal, action, resource) unless { context has exposure };`,
		"q": `forbid (principal, action, resource) unless { resource.ends == "never" };`,
	})
	in := declaration(t)
	in.Identity = identity(t, "spiffe://example.org/agent/single")
	in.Purpose, in.Roles = "anything", []policy.RoleInput{{Role: "static-key"}}
	_, err := e.Declare(in)
	equal(t, "policies", refused(t, err, fault.PolicyDenied).Metadata[policy.MetaPolicies], "policy/p")
}

// TestOpenParameters declares with a parameter that policies read still open: what depends on it is decided at issue.
func TestOpenParameters(t *testing.T) {
	e := compile(t, resource.PermitNone, map[string]string{
		"ledger": `permit (principal, action, resource == Stint::Role::"ledger-api");`,
		"host": `permit (principal, action, resource == Stint::Role::"orders-db-read")
			when { context.purpose == "reconcile-invoices" }
			when { context.parameters has host && context.parameters.host == "db1" };`,
		"not-db2": `forbid (principal, action, resource) when { context.parameters has host && context.parameters.host == "db2" };`,
		"whole":   `forbid (principal, action, resource) when { [context].contains(context) && context.parameters has host && context.parameters.host == "db3" };`,
	})
	d, err := e.Declare(declaration(t))
	if err != nil {
		t.Fatalf("declare with an open parameter: %v", err)
	}
	issue := func(host string) error {
		_, issueErr := e.Issue(policy.IssueInput{
			Identity: invoiceAgent(t), Task: openTask(t, d), Role: "orders-db-read", Now: now,
			Params: map[string]string{"host": host},
		})
		return issueErr
	}
	if err = issue("db1"); err != nil {
		t.Errorf("issue with the value that is permitted: %v", err)
	}
	for _, host := range []string{"db2", "db3", "db4"} {
		wantReason(t, issue(host), fault.PolicyDenied)
	}
	in := declaration(t)
	in.Roles[0].Params = map[string]string{"schema": "orders", "host": "db4"}
	_, err = e.Declare(in)
	wantReason(t, err, fault.PolicyDenied)
	in = declaration(t)
	in.Purpose = "answer-invoice" // a condition that reads no parameter counts at once
	_, err = e.Declare(in)
	wantReason(t, err, fault.PolicyDenied)
}

func TestHeldRolesOfADeclaration(t *testing.T) {
	e := compile(t, resource.PermitCeiling, map[string]string{"sod": `forbid (principal, action, resource == Stint::Role::"ledger-api")
		when { context.held.contains(Stint::Role::"orders-db-read") };`})
	equal(t, "reads held", e.ReadsHeld(), true)
	equal(t, "reads held", compile(t, resource.PermitCeiling, nil).ReadsHeld(), false)
	_, err := e.Declare(declaration(t))
	wantReason(t, err, fault.PolicyDenied)
	in := declaration(t)
	in.Roles = in.Roles[1:]
	if _, err = e.Declare(in); err != nil {
		t.Errorf("ledger-api alone: %v", err)
	}
	in.Held = []string{"orders-db-read"}
	_, err = e.Declare(in)
	wantReason(t, err, fault.PolicyDenied)
}

func TestInputsAreLeftAlone(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	in := declaration(t)
	before := maps.Clone(in.Roles[0].Params)
	d, err := e.Declare(in)
	if err != nil {
		t.Fatal(err)
	}
	d.Grants()[1].Params["schema"] = "changed"
	equal(t, "params", in.Roles[0].Params, before)
}
