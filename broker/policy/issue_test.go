package policy_test

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

func TestIssueHoldsAllThatDeliveryNeeds(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	work := declared(t, e)
	d, err := e.Issue(policy.IssueInput{
		Identity: invoiceAgent(t), Task: work, Role: "orders-db-read", Params: map[string]string{"host": "db1"}, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	params := map[string]string{"schema": "orders", "host": "db1"}
	role := plugins.Role{
		Name: "orders-db-read", Backend: "memory/db", Config: []byte(`{"ends":"revocable"}`), MaxTTL: time.Hour,
		Parameters: []string{"host", "schema"},
	}
	equal(t, "valid", d.Valid(), true)
	equal(t, "profile", d.Profile().Name, "invoice-agent")
	equal(t, "role", d.Role(), role)
	equal(t, "info", d.RoleInfo().Ends, plugins.EndsRevocable)
	equal(t, "backend", d.Backend(), "memory/db")
	equal(t, "lane", d.Lane(), "memory/db")
	equal(t, "exposure", d.Exposure(), plugins.Exposure{Bounded: true, Reason: "revoked"})
	equal(t, "params", d.Params(), params)
	equal(t, "ttl", d.TTL(), 15*time.Minute)
	equal(t, "not after", d.NotAfter(), now.Truncate(time.Second).Add(15*time.Minute))
	equal(t, "clamps", d.Clamps(), []policy.Clamp(nil))
	equal(t, "policies", d.Policies(), []string{"profile/invoice-agent"})
	equal(t, "policy set", d.PolicySet(), e.Hash())
	equal(t, "request", d.Request(plugins.LeaseID{7}, []byte("csr")), plugins.Request{
		Lease: plugins.LeaseID{7}, TaskID: work.ID.String(), TaskName: work.ShortName, Agent: work.Agent,
		ManifestHash: work.ManifestHash, Role: role, Params: params, NotAfter: d.NotAfter(), CSR: []byte("csr"),
	})
	if d, err = e.Issue(policy.IssueInput{Identity: invoiceAgent(t), Task: work, Role: "ledger-api", Now: now}); err != nil {
		t.Fatal(err)
	}
	equal(t, "lane", d.Lane(), "memory/ca ca/")
}

func TestTheZeroDecisionsDeny(t *testing.T) {
	equal(t, "decision", policy.Decision{}.Valid(), false)
	equal(t, "task decision", policy.TaskDecision{}.Valid(), false)
}

func TestIssueTimes(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	work := declared(t, e)
	whole := now.Truncate(time.Second)
	tests := map[string]struct {
		ttl, later, want time.Duration
		notAfter         time.Time
		limitedBy        string
	}{
		"as granted":       {0, 0, 5 * time.Minute, whole.Add(5 * time.Minute), ""},
		"shorter":          {90500 * time.Millisecond, 0, 90 * time.Second, whole.Add(90 * time.Second), ""},
		"longer":           {time.Hour, 0, 5 * time.Minute, whole.Add(5 * time.Minute), "the task's grant"},
		"near the end":     {0, 18 * time.Minute, 119 * time.Second, whole.Add(18*time.Minute + 119*time.Second), ""},
		"asked at the end": {3 * time.Minute, 18 * time.Minute, 119 * time.Second, whole.Add(18*time.Minute + 119*time.Second), "the task's end"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := e.Issue(policy.IssueInput{
				Identity: invoiceAgent(t), Task: work, Role: "ledger-api", TTL: tt.ttl, Now: now.Add(tt.later),
			})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "ttl", d.TTL(), tt.want)
			equal(t, "not after", d.NotAfter(), tt.notAfter)
			by := ""
			for _, c := range d.Clamps() {
				by = c.LimitedBy
			}
			equal(t, "limited by", by, tt.limitedBy)
		})
	}
}

func TestIssueRefusals(t *testing.T) {
	e := compile(t, resource.PermitCeiling, nil)
	tests := map[string]struct {
		change func(*policy.IssueInput)
		reason fault.Reason
		text   string
	}{
		"somebody else's task": {
			func(in *policy.IssueInput) { in.Task.Agent = "spiffe://example.org/agent/invoice/eu2" },
			fault.NotFound, "no such task",
		},
		"no task":      {func(in *policy.IssueInput) { in.Task = task.Task{} }, fault.NotFound, "no such task"},
		"closing task": {func(in *policy.IssueInput) { in.Task.State = task.Closing }, fault.TaskClosed, "the task is closing"},
		"task's end": {
			func(in *policy.IssueInput) { in.Now = in.Task.NotAfter }, fault.TaskExpired, "the task ended at 2026-11-23T10:20:00Z",
		},
		"task's last second": {
			func(in *policy.IssueInput) { in.Now = in.Task.NotAfter.Add(-time.Millisecond) },
			fault.DeadlineTooClose, "the task ends at 2026-11-23T10:20:00Z",
		},
		"role not in the task": {
			func(in *policy.IssueInput) { in.Role, in.Task.Grants = "ledger-api", in.Task.Grants[1:] },
			fault.RoleNotInTask, "ledger-api; the task has orders-db-read. Nothing was issued.",
		},
		"task without roles": {
			func(in *policy.IssueInput) { in.Role, in.Task.Grants = "ledger-api", nil },
			fault.RoleNotInTask, "ledger-api; the task has none. Nothing was issued.",
		},
		"role left the profile": {
			func(in *policy.IssueInput) {
				in.Role = "payroll-db"
				in.Task.Grants = append(in.Task.Grants, task.Grant{Role: "payroll-db", TTL: time.Hour})
			},
			fault.RoleOutsideProfile, "payroll-db; profile invoice-agent allows ledger-api, orders-db-read. Nothing was issued.",
		},
		"purpose left the profile": {
			func(in *policy.IssueInput) { in.Task.Purpose = "payroll" },
			fault.PurposeOutsideProfile, "payroll; profile invoice-agent allows answer-invoice, reconcile-invoices. Nothing was issued.",
		},
		"fixed parameter": {
			func(in *policy.IssueInput) { in.Params = map[string]string{"schema": "invoices"} },
			fault.ParameterInvalid, "parameters.schema was fixed by the declaration. Nothing was issued.",
		},
		"missing parameter": {
			func(in *policy.IssueInput) { in.Task.Grants[1].Params = nil },
			fault.ParameterInvalid, "parameters.schema is required, and must match [a-z]+. Nothing was issued.",
		},
		"fixed by a pattern of yesterday": {
			func(in *policy.IssueInput) { in.Task.Grants[1].Params = map[string]string{"schema": "payroll"} },
			fault.ParameterInvalid, "parameters.schema must match orders|invoices, says the profile. Nothing was issued.",
		},
		"too short": {
			func(in *policy.IssueInput) { in.TTL = 999 * time.Millisecond },
			fault.InvalidArgument, "ttl must be at least 1s. Nothing was issued.",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := policy.IssueInput{Identity: invoiceAgent(t), Task: declared(t, e), Role: "orders-db-read", Now: now}
			tt.change(&in)
			d, err := e.Issue(in)
			f := refused(t, err, tt.reason)
			equal(t, "message", f.Message, tt.text)
			equal(t, "decision", d.Valid(), false)
		})
	}
}

func TestIssueAsksPoliciesAnew(t *testing.T) {
	work := declared(t, compile(t, resource.PermitCeiling, nil))
	e := compile(t, resource.PermitCeiling, map[string]string{
		"no-vault": `forbid (principal, action, resource in Stint::Backend::"memory/db");`,
	})
	in := policy.IssueInput{Identity: invoiceAgent(t), Task: work, Role: "orders-db-read", Now: now}
	_, err := e.Issue(in)
	equal(t, "policies", refused(t, err, fault.PolicyDenied).Metadata[policy.MetaPolicies], "policy/no-vault")
	in.Params = map[string]string{"schema": "orders"} // the value that is fixed may be repeated
	_, err = e.Issue(in)
	wantReason(t, err, fault.PolicyDenied)
}
