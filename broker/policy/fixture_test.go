package policy_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// rolesAndProfile are two roles in the profile, one beside it, and the profile.
const rolesAndProfile = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: orders-db-read, description: Rows of the orders database}
spec:
  backend: memory/db
  memory: {ends: revocable}
  ttl: {default: 15m, max: 1h}
  parameters:
    - {name: schema, pattern: "[a-z]+", required: true}
    - {name: host, pattern: "db[0-9.]+"}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: ledger-api}
spec:
  backend: memory/ca
  memory: {ends: lapsing}
  ttl: {default: 5m, max: 15m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: payroll-db}
spec:
  backend: memory/db
  ttl: {max: 15m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: static-key}
spec:
  backend: memory/db
  memory: {ends: never}
  accept_permanent: true
  ttl: {max: 10m}
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: other}
spec:
  agents: ["spiffe://example.org/agent/other/**", "spiffe://example.org/agent/single"]
  owner: a@example.org
  sponsor: b@example.org
  purposes: [anything]
  roles: [{name: payroll-db}, {name: static-key}]
  permit: ceiling
---
`

const invoiceProfile = `
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: invoice-agent}
spec:
  agents: ["spiffe://example.org/agent/invoice/*"]
  owner: billing-platform@example.org
  sponsor: head-of-billing@example.org
  purposes: [reconcile-invoices, answer-invoice]
  roles:
    - {name: orders-db-read, max_ttl: 30m, parameters: {schema: "orders|invoices"}}
    - {name: ledger-api}
  task: {default_ttl: 20m, max_ttl: 1h, idle_timeout: 60s, max_live: 5, max_live_leases: 20}
  permit: `

var now = time.Date(2026, 11, 23, 10, 0, 0, 500_000_000, time.UTC)

// compile makes an engine of the fixture with policies by name; permit is the profile's.
func compile(tb testing.TB, permit resource.Permit, policies map[string]string) *policy.Engine {
	tb.Helper()
	e, problems := policy.Compile(fixture(tb, permit, policies))
	if len(problems) > 0 {
		tb.Fatalf("compile: %v", problems)
	}
	return e
}

func fixture(tb testing.TB, permit resource.Permit, policies map[string]string) resource.Set {
	tb.Helper()
	files := []resource.File{{Name: "fixture.yaml", YAML: rolesAndProfile + invoiceProfile + string(permit)}}
	for name, text := range policies {
		files = append(files, resource.File{Name: name + ".yaml", YAML: policyDoc(name, text)})
	}
	set, problems := resource.Parse(files, backends())
	if len(problems) > 0 {
		tb.Fatalf("parse: %v", problems)
	}
	return set
}

func backends() resource.Backends {
	return resource.Backends{"memory/db": backend{}, "memory/ca": backend{}}
}

// backend is one that only says what roles mean; nothing is ever issued here. Its section is "memory":
// {"ends": "revocable" (the default), "lapsing" or "never"}.
type backend struct{ plugins.Backend }

// Descriptor names the section.
func (backend) Descriptor() plugins.Descriptor {
	return plugins.Descriptor{Type: "memory", Section: "memory"}
}

// CheckRole reads the section.
func (backend) CheckRole(role plugins.Role) (plugins.RoleInfo, error) {
	var cfg struct {
		Ends string `json:"ends"`
	}
	if len(role.Config) > 0 {
		if err := json.Unmarshal(role.Config, &cfg); err != nil {
			return plugins.RoleInfo{}, fmt.Errorf("read section: %w", err)
		}
	}
	switch cfg.Ends {
	case "lapsing":
		exposure := plugins.Exposure{Bounded: true, Max: role.MaxTTL, UntilExpiry: true, Reason: "expires"}
		return plugins.RoleInfo{Ends: plugins.EndsLapsing, Exposure: exposure, Lane: "ca/"}, nil
	case "never":
		return plugins.RoleInfo{Ends: plugins.EndsNever, Exposure: plugins.Exposure{Reason: "static"}}, nil
	}
	return plugins.RoleInfo{Ends: plugins.EndsRevocable, Exposure: plugins.Exposure{Bounded: true, Reason: "revoked"}}, nil
}

// policyDoc writes a document with the Cedar text as a quoted scalar, so that any text can stand in it.
func policyDoc(name, text string) string {
	return "apiVersion: stint.dev/v1\nkind: Policy\nmetadata: {name: " + name + "}\nspec:\n  cedar: " + quote(text) + "\n"
}

func identity(tb testing.TB, id string) attestor.Identity {
	tb.Helper()
	return attestor.Identity{
		ID: spiffeid.RequireFromString(id), Method: attestor.MethodX509,
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(55 * time.Minute),
	}
}

func invoiceAgent(tb testing.TB) attestor.Identity {
	tb.Helper()
	return identity(tb, "spiffe://example.org/agent/invoice/eu1")
}

// declaration is one that the ceiling allows.
func declaration(tb testing.TB) policy.DeclareInput {
	tb.Helper()
	return policy.DeclareInput{
		Identity: invoiceAgent(tb), Purpose: "reconcile-invoices", Now: now,
		Roles: []policy.RoleInput{
			{Role: "orders-db-read", Params: map[string]string{"schema": "orders"}},
			{Role: "ledger-api"},
		},
	}
}

// openTask is the task of a decision.
func openTask(tb testing.TB, d policy.TaskDecision) task.Task {
	tb.Helper()
	id, err := task.NewID()
	if err != nil {
		tb.Fatal(err)
	}
	return task.Task{
		ID: id, ShortName: task.ShortName("reconcile-invoices", id, task.ShortLength), Agent: "spiffe://example.org/agent/invoice/eu1",
		Profile: d.Profile().Name, Purpose: "reconcile-invoices", Grants: d.Grants(), State: task.Active,
		NotAfter: d.NotAfter(), ManifestHash: task.Hash{1},
	}
}

func declared(tb testing.TB, e *policy.Engine) task.Task {
	tb.Helper()
	d, err := e.Declare(declaration(tb))
	if err != nil {
		tb.Fatalf("declare: %v", err)
	}
	return openTask(tb, d)
}

// wantReason stops the test unless the error has the reason.
func wantReason(tb testing.TB, err error, reason fault.Reason) {
	tb.Helper()
	if got := fault.ReasonOf(err); got != reason {
		tb.Fatalf("reason %q (%v), want %q", got, err, reason)
	}
}

// refused returns the refusal of an error, which must have the reason.
func refused(tb testing.TB, err error, reason fault.Reason) *fault.Error {
	tb.Helper()
	wantReason(tb, err, reason)
	return fault.As(err)
}

func equal(tb testing.TB, what string, got, want any) {
	tb.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func quote(s string) string {
	b := []byte{'"'}
	for _, c := range []byte(s) {
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}
