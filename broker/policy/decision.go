package policy

import (
	"slices"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// RoleInput is one role that a declaration asks for.
type RoleInput struct {
	Role   string
	Params map[string]string
	TTL    time.Duration // zero means the role's default
}

// DeclareInput is everything that a decision about a declaration may depend on.
type DeclareInput struct {
	Identity attestor.Identity
	Purpose  string
	Roles    []RoleInput
	// NotAfter is the task's end as asked for, or TTL its length; at most one of them. Neither means the profile's.
	NotAfter    time.Time
	TTL         time.Duration
	IdleTimeout time.Duration // zero means the profile's
	Strict      bool          // deny instead of clamping
	// Held are the roles of which the agent has live leases, where Engine.ReadsHeld asks for them.
	Held []string
	Now  time.Time
}

// IssueInput is everything that a decision about one credential may depend on.
type IssueInput struct {
	Identity attestor.Identity
	Task     task.Task
	Role     string
	// Params are the values of parameters that the declaration left open.
	Params map[string]string
	TTL    time.Duration // zero means what was granted
	// Held are the roles of which the agent has live leases, where Engine.ReadsHeld asks for them.
	Held []string
	Now  time.Time
}

// Clamp says that something was shortened, and by whom.
type Clamp struct {
	Field     string // as the API spells it: "ttl", "roles[1].ttl"
	Requested time.Duration
	Granted   time.Duration
	LimitedBy string // "profile invoice-agent", "role orders-db-read"
}

// String returns "ttl 8h would become 1h (profile invoice-agent)".
func (c Clamp) String() string {
	return c.Field + " " + short(c.Requested) + " would become " + short(c.Granted) + " (" + c.LimitedBy + ")"
}

// TaskDecision allows a declaration. Only this package can make one that is valid; the zero value is a denial.
type TaskDecision struct {
	valid     bool
	profile   resource.Profile
	asked     time.Time
	notAfter  time.Time
	idle      time.Duration
	grants    []task.Grant
	clamps    []Clamp
	policySet string
}

// Valid reports whether the declaration is allowed.
func (d TaskDecision) Valid() bool { return d.valid }

// Profile returns the profile that is the agent's ceiling.
func (d TaskDecision) Profile() resource.Profile { return d.profile }

// AskedNotAfter returns the end that was asked for, before any clamp, in whole seconds. The manifest holds it.
func (d TaskDecision) AskedNotAfter() time.Time { return d.asked }

// NotAfter returns the task's end in whole seconds, at most one second earlier than what was asked for or allowed.
func (d TaskDecision) NotAfter() time.Time { return d.notAfter }

// IdleTimeout returns the idle timeout; zero where there is none.
func (d TaskDecision) IdleTimeout() time.Duration { return d.idle }

// Grants returns the decision about each role, by name.
func (d TaskDecision) Grants() []task.Grant { return d.grants }

// Clamps returns what was shortened.
func (d TaskDecision) Clamps() []Clamp { return d.clamps }

// Policies returns the IDs of the policies that allowed it, sorted.
func (d TaskDecision) Policies() []string {
	var ids []string
	for _, g := range d.grants {
		ids = append(ids, g.Policies...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// PolicySet returns the hash of the policy set that decided.
func (d TaskDecision) PolicySet() string { return d.policySet }

// Decision allows one credential and holds all that delivery needs. Only this package can make one that is valid; the
// zero value is a denial.
type Decision struct {
	valid     bool
	profile   resource.Profile
	role      resource.Role
	task      task.Task
	params    map[string]string
	ttl       time.Duration
	notAfter  time.Time
	clamps    []Clamp
	policies  []string
	policySet string
}

// Valid reports whether the credential is allowed.
func (d Decision) Valid() bool { return d.valid }

// Profile returns the profile that is the agent's ceiling.
func (d Decision) Profile() resource.Profile { return d.profile }

// Role returns the role as its backend sees it.
func (d Decision) Role() plugins.Role { return d.role.Plugin }

// RoleInfo returns what the backend said that issuing by the role means.
func (d Decision) RoleInfo() plugins.RoleInfo { return d.role.Info }

// Backend returns the backend's instance: "vault/prod".
func (d Decision) Backend() string { return d.role.Backend }

// Lane names what fails together: "vault/prod database/creds/stint-orders-ro".
func (d Decision) Lane() string {
	if d.role.Info.Lane == "" {
		return d.role.Backend
	}
	return d.role.Backend + " " + d.role.Info.Lane
}

// Exposure returns what issuing exposes.
func (d Decision) Exposure() plugins.Exposure { return d.role.Info.Exposure }

// Params returns the values of all parameters, those fixed by the declaration included.
func (d Decision) Params() map[string]string { return d.params }

// TTL returns how long the credential may live, in whole seconds.
func (d Decision) TTL() time.Duration { return d.ttl }

// NotAfter returns the credential's end in whole seconds, never past the task's.
func (d Decision) NotAfter() time.Time { return d.notAfter }

// Clamps returns what was shortened.
func (d Decision) Clamps() []Clamp { return d.clamps }

// Policies returns the IDs of the policies that allowed it, sorted.
func (d Decision) Policies() []string { return d.policies }

// PolicySet returns the hash of the policy set that decided.
func (d Decision) PolicySet() string { return d.policySet }

// Request returns what the backend is asked for, under a lease. csr is a PKCS #10 request in DER, or nil.
func (d Decision) Request(lease plugins.LeaseID, csr []byte) plugins.Request {
	return plugins.Request{
		Lease: lease, TaskID: d.task.ID.String(), TaskName: d.task.ShortName, Agent: d.task.Agent,
		ManifestHash: d.task.ManifestHash, Role: d.role.Plugin, Params: d.params, NotAfter: d.notAfter, CSR: csr,
	}
}

// short writes a duration for people: "1h", "13m40s".
func short(d time.Duration) string {
	s := d.String()
	for _, cut := range []string{"m0s", "h0m"} {
		if len(s) > len(cut) && s[len(s)-len(cut):] == cut {
			s = s[:len(s)-len(cut)+1]
		}
	}
	return s
}
