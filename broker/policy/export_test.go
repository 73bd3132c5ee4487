package policy

import (
	"maps"
	"slices"

	"github.com/cedar-policy/cedar-go"
)

// Full returns the engine with every statement in one slice, and with every fact in every request.
func (e *Engine) Full() *Engine {
	full := *e
	full.statements = sliced{{}: slices.Concat(slices.Collect(maps.Values(e.statements))...)}
	full.reads = newFacts()
	full.reads.whole, full.readsAgent = true, true
	for _, name := range agentAttrs() {
		full.reads.attrs[name] = true
	}
	return &full
}

// Answer is an engine's verdict.
type Answer struct {
	Allow    bool
	Policies []string
	Failed   bool
}

// Ask asks the policies alone, without the profile's ceiling.
func (e *Engine) Ask(in IssueInput, profile string, open []string) Answer {
	role, _ := e.set.Role(in.Role)
	v := e.evaluate(question{
		identity: in.Identity, profile: profile, role: role, purpose: in.Task.Purpose, ttl: in.TTL, params: in.Params,
		open: len(open) > 0, held: in.Held, now: in.Now,
	})
	return Answer{v.allow, v.policies, v.err != nil}
}

// Shipped asks cedar-go about all statements, as it comes.
func (e *Engine) Shipped(in IssueInput, profile string) (bool, int) {
	all := cedar.NewPolicySet()
	for id, st := range e.byID {
		all.Add(cedar.PolicyID(id), st.policy)
	}
	full := e.Full()
	role, _ := e.set.Role(in.Role)
	q := question{
		identity: in.Identity, profile: profile, role: role, purpose: in.Task.Purpose, ttl: in.TTL, params: in.Params,
		held: in.Held, now: in.Now,
	}
	agent := cedar.NewEntityUID(typeAgent, cedar.String(in.Identity.ID.String()))
	ok, diag := cedar.Authorize(all, world{agent: full.agentEntity(agent, q), others: e.entities}, cedar.Request{
		Principal: agent, Action: actionUID(), Resource: roleUID(in.Role), Context: full.context(q),
	})
	return ok == cedar.Allow, len(diag.Errors)
}
