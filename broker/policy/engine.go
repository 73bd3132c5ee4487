// Package policy decides, purely: (identity, task, role, now) in, a decision or a refusal out. It does no I/O, holds no
// credential, and denies by default. docs/policy.md describes what policies can read.
package policy

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/resource"
)

// Engine decides by one set of resources. It is immutable and safe for concurrent use.
type Engine struct {
	set      resource.Set
	hash     string
	warnings []string
}

// Compile makes an Engine. Either there are no problems, or no engine.
func Compile(set resource.Set) (*Engine, []resource.Problem) {
	return &Engine{set: set, hash: set.Hash()}, nil
}

// Hash returns the hash of the policy set: SHA-256 in lower-case hex over all roles, profiles and policies.
func (e *Engine) Hash() string { return e.hash }

// Set returns the resources that the engine decides by.
func (e *Engine) Set() resource.Set { return e.set }

// Warnings returns what is valid but likely not meant, such as a role that no policy can ever permit.
func (e *Engine) Warnings() []string { return e.warnings }

// ReadsHeld reports whether any policy reads context.held, so that callers need not look up what nobody asks for.
func (e *Engine) ReadsHeld() bool { return false }

// RoleView is a role as one agent sees it.
type RoleView struct {
	resource.Role // with the narrower of the role's and the profile's TTLs
}

// Profile returns the profile of an agent.
func (e *Engine) Profile(spiffeid.ID) (resource.Profile, bool) { return resource.Profile{}, false }

// Available returns the roles that an agent may ask for, by name: those of its profile.
func (e *Engine) Available(spiffeid.ID) []RoleView { return nil }

// Declare decides about a whole declaration, or returns a [*fault.Error] that names all faults at once.
func (e *Engine) Declare(DeclareInput) (TaskDecision, error) {
	return TaskDecision{}, fault.New(fault.NoProfile, "no profile names this agent")
}

// Issue decides about one credential of a task, or returns a [*fault.Error].
func (e *Engine) Issue(IssueInput) (Decision, error) {
	return Decision{}, fault.New(fault.NoProfile, "no profile names this agent")
}
