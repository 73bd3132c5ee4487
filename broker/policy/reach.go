package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/batch"
	"github.com/cedar-policy/cedar-go/x/exp/eval"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/resource"
)

// WarningKind says what a Warning is about.
type WarningKind int

// The kinds of warnings.
const (
	// UnusedBackend is a statement about a backend that no role uses.
	UnusedBackend WarningKind = iota + 1
	// RoleUnlisted is a role that no profile lists.
	RoleUnlisted
	// RoleNeverPermitted is a role of a profile that no agent of that profile can ever be issued.
	RoleNeverPermitted
)

// Warning is something valid that is likely not meant.
type Warning struct {
	resource.Problem
	Kind          WarningKind
	Role, Profile string // what it is about, where it is about that
	// Forbids are the policies that always forbid the role; empty where there is just none that permits it.
	Forbids []string
}

// unreachable warns about roles that nobody can ever be issued: those of no profile, and for each profile those that no
// policy can permit to any of its agents.
func unreachable(set resource.Set, statements sliced, entities cedar.EntityMap) []Warning {
	var out []Warning
	listed := map[string]bool{}
	for _, p := range set.Profiles() {
		for _, pr := range p.Roles {
			listed[pr.Name] = true
			role, _ := set.Role(pr.Name) // a set holds every role that its profiles list
			if w := newReach(p, role, statements, entities).warning(pr.At); w.Kind != 0 {
				out = append(out, w)
			}
		}
	}
	for _, r := range set.Roles() {
		if !listed[r.Name] {
			out = append(out, Warning{
				Problem: resource.Problem{At: r.At, Message: "no profile lists role " + r.Name}, Kind: RoleUnlisted, Role: r.Name,
			})
		}
	}
	return out
}

// reach asks the policies about one role for every agent of one profile at once. What the profile and the role settle is
// known: its purposes, the role's exposure, that the agent is in the profile. All else is ignored: what reads it may go
// either way. So it never says "never" of what some request could be allowed, and may miss what no request ever is.
type reach struct {
	profile    resource.Profile
	role       resource.Role
	statements []reached
	entities   world
}

// reached is a statement that may apply. One that names agents is asked without knowing who is meant.
type reached struct {
	statement
	tree        *ast.Policy
	namesAgents bool
}

func newReach(p resource.Profile, r resource.Role, statements sliced, entities cedar.EntityMap) reach {
	out := reach{profile: p, role: r, entities: world{agent: anyAgent(p.Name), others: entities}}
	for _, list := range statements.view(profileUID(p.Name), roleUID(r.Name), backendUID(r.Backend)).lists {
		for _, st := range list {
			tree := (*ast.Policy)(st.policy.AST())
			names := slices.ContainsFunc(named(tree), func(uid cedar.EntityUID) bool { return uid.Type == typeAgent })
			out.statements = append(out.statements, reached{statement: st, tree: tree, namesAgents: names})
		}
	}
	return out
}

// anyAgent is an agent of a profile of which nothing else is known.
func anyAgent(profile string) cedar.Entity {
	attrs := cedar.RecordMap{}
	for _, name := range agentAttrs() {
		attrs[cedar.String(name)] = batch.Ignore()
	}
	return cedar.Entity{
		UID: cedar.NewEntityUID(typeAgent, ""), Parents: cedar.NewEntityUIDSet(profileUID(profile)), Attributes: cedar.NewRecord(attrs),
	}
}

// warning is zero where some agent may be issued the role for some purpose.
func (r reach) warning(at resource.Position) Warning {
	var forbids []string
	for _, purpose := range r.profile.Purposes {
		permitted, forbidding := r.ask(purpose)
		if permitted && len(forbidding) == 0 {
			return Warning{}
		}
		if permitted {
			forbids = append(forbids, forbidding...)
		}
	}
	w := Warning{
		Kind: RoleNeverPermitted, Role: r.role.Name, Profile: r.profile.Name,
		Problem: resource.Problem{At: at, Message: fmt.Sprintf("no policy can ever permit role %s for profile %s", r.role.Name, r.profile.Name)},
	}
	if slices.Sort(forbids); len(forbids) > 0 {
		w.Forbids = slices.Compact(forbids)
		w.Message += ": always forbidden by " + strings.Join(w.Forbids, ", ")
	}
	return w
}

// ask reports whether a permit may match for this purpose, and which statements certainly forbid.
func (r reach) ask(purpose string) (permitted bool, forbidding []string) {
	for _, st := range r.statements {
		permit := st.policy.Effect() == cedar.Permit
		switch {
		case permit && permitted: // one is enough
		case permit:
			permitted = r.mayMatch(st, purpose)
		case r.mustMatch(st, purpose):
			forbidding = append(forbidding, string(st.id))
		}
	}
	return permitted, forbidding
}

// mayMatch reports whether a statement may match a request.
func (r reach) mayMatch(st reached, purpose string) bool {
	if id, ok := scopedAgent(st.tree); ok && !slices.ContainsFunc(r.profile.Agents, func(p attestor.Pattern) bool { return p.Match(id) }) {
		return false
	}
	_, may := r.partial(st, purpose)
	return may
}

// mustMatch reports whether a statement matches every request. One that names agents may be about others.
func (r reach) mustMatch(st reached, purpose string) bool {
	if st.namesAgents {
		return false
	}
	left, may := r.partial(st, purpose)
	return may && left != nil && len(left.Conditions) == 0
}

// partial evaluates a statement with what is known, and returns what is left of it: nil where it cannot be said. The
// whole context is never known, so neither is what compares it.
func (r reach) partial(st reached, purpose string) (*ast.Policy, bool) {
	if st.reads.whole {
		return nil, true
	}
	env := eval.Env{Entities: r.entities, Principal: r.entities.agent.UID, Action: actionUID(), Resource: roleUID(r.role.Name), Context: r.context(purpose)}
	if st.namesAgents {
		env.Principal = batch.Ignore()
	}
	return eval.PartialPolicy(env, st.tree)
}

// context holds every attribute of the schema.
func (r reach) context(purpose string) cedar.Record {
	attrs := cedar.RecordMap{"purpose": cedar.String(purpose), "until_expiry": cedar.Boolean(r.role.Info.Exposure.UntilExpiry)}
	if r.role.Info.Exposure.Bounded {
		attrs["exposure"] = cedar.NewDuration(r.role.Info.Exposure.Max)
	}
	for _, name := range []cedar.String{"ttl", "method", "svid_age", "held", "time", parametersAttr} {
		attrs[name] = batch.Ignore()
	}
	return cedar.NewRecord(attrs)
}

// scopedAgent returns the one agent that a statement's scope is about.
func scopedAgent(p *ast.Policy) (spiffeid.ID, bool) {
	var uid cedar.EntityUID
	switch sc := p.Principal.(type) {
	case ast.ScopeTypeEq:
		uid = sc.Entity
	case ast.ScopeTypeIn:
		uid = sc.Entity
	case ast.ScopeTypeIsIn:
		uid = sc.Entity
	}
	id, err := spiffeid.FromString(string(uid.ID)) // compile refuses another
	return id, uid.Type == typeAgent && err == nil
}
