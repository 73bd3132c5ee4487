// Package audit is the tamper-evident record of every decision and state change: typed records as leaves of an RFC 6962
// Merkle log, checkpoints signed as C2SP notes, proofs, and receipts that verify with a public key alone.
//
// Free text and personal data enter a record only as salted hashes, so that they can be erased. Secrets never do.
package audit

import (
	"time"

	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// Event is what happened.
type Event string

// The events.
const (
	TaskDeclared    Event = "task.declared"
	TaskDenied      Event = "task.denied"
	TaskClosing     Event = "task.closing"
	TaskClosed      Event = "task.closed"
	LeaseIntent     Event = "lease.intent"
	LeaseActive     Event = "lease.active"
	LeaseDenied     Event = "lease.denied"
	LeaseFailed     Event = "lease.failed" // an issue call failed, or its answer was dropped
	LeaseEnding     Event = "lease.ending" // its end was asked for
	LeaseEnded      Event = "lease.ended"  // final, with proof
	LeaseStuck      Event = "lease.stuck"
	ResourceApplied Event = "resource.applied"
	ResourceDeleted Event = "resource.deleted"
	CallsRefused    Event = "calls.refused" // aggregated refusals
	LogStarted      Event = "log.started"   // the first record
	LogRestored     Event = "log.restored"  // the first record of a later epoch: an operator confirmed that the ledger was restored
	ServerStarted   Event = "server.started"
	ServerStopped   Event = "server.stopped"
	AgentSuspended  Event = "agent.suspended" // by an operator, until it is resumed
	AgentResumed    Event = "agent.resumed"
	StopAsked       Event = "stop.asked"        // by an operator: everything of what the record names
	InventoryDiffs  Event = "inventory.differs" // a backend and the ledger disagree
	StrayEnding     Event = "stray.ending"      // an operator ends what should not be alive at a backend
	StrayEnded      Event = "stray.ended"       // with proof
	ConfigReloaded  Event = "config.reloaded"
	ClockSet        Event = "clock.set" // of the machine: the reason says by how much
	TextErased      Event = "text.erased"
)

// Actor is who caused a record: a SPIFFE ID, a local user, or the broker itself ("stint").
type Actor struct {
	ID     string  `json:"id"`
	Method string  `json:"method,omitempty"`
	UID    *uint32 `json:"uid,omitempty"` // of a peer of the admin socket
}

// Proof is how an end is known.
type Proof struct {
	Kind           plugins.Proof `json:"kind"`
	At             time.Time     `json:"at"`
	UsableUntil    time.Time     `json:"usable_until,omitzero"`
	UncheckedUntil time.Time     `json:"unchecked_until,omitzero"`
	Detail         string        `json:"detail,omitempty"`
}

// Record is one leaf: who, what, why, outcome. Fields that do not apply are absent from its JSON.
type Record struct {
	V       int       `json:"v"` // format version, 1
	Time    time.Time `json:"time"`
	Event   Event     `json:"event"`
	Request string    `json:"request,omitempty"` // the request ID that correlates it with the log
	Actor   Actor     `json:"actor"`

	Agent   string `json:"agent,omitempty"`
	Profile string `json:"profile,omitempty"`
	Owner   string `json:"owner,omitempty"`
	Sponsor string `json:"sponsor,omitempty"`

	Task     string     `json:"task,omitempty"`
	TaskName string     `json:"task_name,omitempty"`
	Purpose  string     `json:"purpose,omitempty"`
	Manifest *task.Hash `json:"manifest,omitempty"`
	Roles    []string   `json:"roles,omitempty"`
	Lease    string     `json:"lease,omitempty"`
	Role     string     `json:"role,omitempty"`
	Backend  string     `json:"backend,omitempty"`
	Ref      string     `json:"ref,omitempty"` // a public reference at the backend
	NotAfter time.Time  `json:"not_after,omitzero"`

	PolicySet string   `json:"policy_set,omitempty"`
	Policies  []string `json:"policies,omitempty"` // those that decided
	Reason    string   `json:"reason,omitempty"`   // of a refusal or a close
	Proof     *Proof   `json:"proof,omitempty"`
	// Summary is of a closed task.
	Summary *task.Summary `json:"summary,omitempty"`
	// Count is of aggregated refusals.
	Count int64 `json:"count,omitempty"`
	// Restore is of a restored log.
	Restore *Restore `json:"restore,omitempty"`
	// Resource is what was applied or deleted; Etag its SHA-256.
	Resource string `json:"resource,omitempty"`
	Etag     string `json:"etag,omitempty"`
	// Hashes holds salted hashes of free text by field name: HMAC-SHA-256 of the text under a salt of its own.
	Hashes map[string]task.Hash `json:"hashes,omitempty"`

	// Texts holds the free text behind Hashes. It never enters the leaf: the log moves it to Hashes and keeps text and
	// salt beside the log, where they can be erased.
	Texts map[string]string `json:"-"`
}
