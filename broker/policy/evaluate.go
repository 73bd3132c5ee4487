package policy

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/resource"
)

// question is what is asked of the policies: may this agent have a credential by this role, now.
type question struct {
	identity attestor.Identity
	profile  string
	role     resource.Role
	purpose  string
	ttl      time.Duration
	params   map[string]string
	open     bool // parameters are still to be filled
	held     []string
	now      time.Time
}

// verdict is the policies' answer. Its zero value is a denial that nobody decided.
type verdict struct {
	allow bool
	// policies are those that decided, sorted: the permits of an allow, the forbids of a denial, those that failed of
	// an error.
	policies []string
	// err says that a policy could not be evaluated, which denies. It is for the log.
	err error
}

// evaluate asks the policies. It allows only if a permit matches, no forbid does, and none of them failed: Cedar skips
// a forbid that fails, and would answer allow.
func (e *Engine) evaluate(q question) verdict {
	statements := e.statements.view(profileUID(q.profile), roleUID(q.role.Name), backendUID(q.role.Backend))
	statements.open = q.open
	agent := cedar.NewEntityUID(typeAgent, cedar.String(q.identity.ID.String()))
	decision, diag := cedar.Authorize(statements,
		world{agent: e.agentEntity(agent, q), others: e.entities},
		cedar.Request{Principal: agent, Action: actionUID(), Resource: roleUID(q.role.Name), Context: e.context(q)})
	var v verdict
	if len(diag.Errors) > 0 {
		var errs []error
		for _, f := range diag.Errors {
			v.policies = append(v.policies, string(f.PolicyID))
			errs = append(errs, errors.New(f.String()))
		}
		slices.Sort(v.policies)
		v.err = errors.Join(errs...)
		return v
	}
	for _, r := range diag.Reasons {
		v.policies = append(v.policies, string(r.PolicyID))
	}
	slices.Sort(v.policies)
	v.allow = decision == cedar.Allow && len(v.policies) > 0
	return v
}

// world is the entities of one request: its agent, and everything else. It implements cedar.EntityGetter.
type world struct {
	agent  cedar.Entity
	others cedar.EntityMap
}

// Get returns an entity.
func (w world) Get(uid cedar.EntityUID) (cedar.Entity, bool) {
	if uid == w.agent.UID {
		return w.agent, true
	}
	return w.others.Get(uid)
}

// agentEntity builds the agent's entity with the attributes that some policy reads.
func (e *Engine) agentEntity(uid cedar.EntityUID, q question) cedar.Entity {
	out := cedar.Entity{UID: uid, Parents: e.parents[q.profile]}
	if !e.readsAgent {
		return out
	}
	id, path := q.identity.ID, q.identity.ID.Path()
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	attrs := cedar.RecordMap{}
	set := func(name string, v cedar.Value) {
		if e.reads.attrs[name] {
			attrs[cedar.String(name)] = v
		}
	}
	set("id", cedar.String(id.String()))
	set("trust_domain", cedar.String(id.TrustDomain().Name()))
	set("path", cedar.String(path))
	set("name", cedar.String(segments[len(segments)-1]))
	set("depth", cedar.Long(len(segments)))
	for i, s := range segments[:min(len(segments), maxSegments)] {
		set(segmentAttr(i), cedar.String(s))
	}
	out.Attributes = cedar.NewRecord(attrs)
	return out
}

// context builds the request's context with the attributes that some policy reads.
func (e *Engine) context(q question) cedar.Record {
	attrs := cedar.RecordMap{}
	reads := func(name string) bool { return e.reads.whole || e.reads.context[name] }
	set := func(name string, v cedar.Value) {
		if reads(name) {
			attrs[cedar.String(name)] = v
		}
	}
	set("purpose", cedar.String(q.purpose))
	set("ttl", cedar.NewDuration(q.ttl))
	set("method", cedar.String(q.identity.Method))
	set("svid_age", cedar.NewDuration(q.identity.Age(q.now)))
	set("time", cedar.NewDatetime(q.now))
	exposure := q.role.Info.Exposure
	set("until_expiry", cedar.Boolean(exposure.UntilExpiry))
	if exposure.Bounded {
		set("exposure", cedar.NewDuration(exposure.Max))
	}
	if reads("held") {
		var held []cedar.Value
		for _, name := range q.held {
			held = append(held, roleUID(name))
		}
		set("held", cedar.NewSet(held...))
	}
	if reads(parametersAttr) {
		params := cedar.RecordMap{}
		for name, value := range q.params {
			params[cedar.String(name)] = cedar.String(value)
		}
		set(parametersAttr, cedar.NewRecord(params))
	}
	return cedar.NewRecord(attrs)
}
