// Package policy decides, purely: (identity, task, role, now) in, a decision or a refusal out. It does no I/O, holds no
// credential, and denies by default. docs/policy.md describes what policies can read.
package policy

import (
	"github.com/cedar-policy/cedar-go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/resource"
)

// Engine decides by one set of resources. It is immutable and safe for concurrent use.
type Engine struct {
	set        resource.Set
	hash       string
	warnings   []Warning
	profiles   profiles
	entities   cedar.EntityMap
	statements sliced
	byID       map[string]statement
	reads      facts                         // of all statements together
	readsAgent bool                          // whether any of them reads an attribute that an agent has
	parents    map[string]cedar.EntityUIDSet // of an agent, by its profile
}

// Hash returns the hash of the policy set: SHA-256 in lower-case hex over all roles, profiles and policies.
func (e *Engine) Hash() string { return e.hash }

// Set returns the resources that the engine decides by.
func (e *Engine) Set() resource.Set { return e.set }

// Warnings returns what is valid but likely not meant, such as a role that no policy can ever permit. Those of the set
// come beside them.
func (e *Engine) Warnings() []Warning { return e.warnings }

// ReadsHeld reports whether any policy reads context.held, so that callers need not look up what nobody asks for.
func (e *Engine) ReadsHeld() bool { return e.reads.whole || e.reads.context["held"] }

// Profile returns the profile of an agent. There is at most one: a set with overlapping profiles is refused.
func (e *Engine) Profile(agent spiffeid.ID) (resource.Profile, bool) { return e.profiles.find(agent) }

// RoleView is a role as one agent sees it: with the narrower of the role's and the profile's TTLs and patterns.
type RoleView struct {
	resource.Role
}

// Available returns the roles that an agent may ask for, by name: those of its profile. Policies may still forbid one.
func (e *Engine) Available(agent spiffeid.ID) []RoleView {
	p, _ := e.Profile(agent)
	out := make([]RoleView, 0, len(p.Roles))
	for _, pr := range p.Roles {
		role, _ := e.set.Role(pr.Name) // a set holds every role that its profiles list
		if pr.MaxTTL > 0 {
			role.MaxTTL = min(role.MaxTTL, pr.MaxTTL)
			role.DefaultTTL = min(role.DefaultTTL, role.MaxTTL)
		}
		params := make([]resource.Parameter, 0, len(role.Parameters))
		for _, param := range role.Parameters {
			if narrow, ok := pr.Parameters[param.Name]; ok {
				param.Pattern = narrow
			}
			params = append(params, param)
		}
		role.Parameters = params
		out = append(out, RoleView{Role: role})
	}
	return out
}

// profiles finds an agent's profile: by its ID where a pattern is exact, else among the patterns of its trust domain.
type profiles struct {
	exact    map[spiffeid.ID]resource.Profile
	patterns map[spiffeid.TrustDomain][]profilePattern
}

type profilePattern struct {
	pattern attestor.Pattern
	profile resource.Profile
}

func newProfiles(all []resource.Profile) profiles {
	ps := profiles{exact: map[spiffeid.ID]resource.Profile{}, patterns: map[spiffeid.TrustDomain][]profilePattern{}}
	for _, p := range all {
		for _, pattern := range p.Agents {
			if id, ok := pattern.Exact(); ok {
				ps.exact[id] = p
				continue
			}
			td := pattern.TrustDomain()
			ps.patterns[td] = append(ps.patterns[td], profilePattern{pattern, p})
		}
	}
	return ps
}

func (ps profiles) find(agent spiffeid.ID) (resource.Profile, bool) {
	if p, ok := ps.exact[agent]; ok {
		return p, true
	}
	for _, pp := range ps.patterns[agent.TrustDomain()] {
		if pp.pattern.Match(agent) {
			return pp.profile, true
		}
	}
	return resource.Profile{}, false
}
