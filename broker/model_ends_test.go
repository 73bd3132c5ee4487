package broker_test

import (
	"context"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/stop"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// modelIdle is the idle timeout of the tasks that have one, and promptly how long what ends by itself takes at most to be
// ended, in a model whose ledger may fail now and then.
const (
	modelIdle = 40 * time.Second
	promptly  = 15 * time.Second
)

// modelKinds are the roles of the model: with each way to end.
func modelKinds() []string { return append(kinds(), "lapsing-horizon", "static") }

// heard is when the agent of a task was heard of last: at the least, and at the most.
type heard struct{ least, most time.Time }

// declareOne declares a task: some have an idle timeout, some a short life.
func (m *model) declareOne(o op) {
	d := declaration(newID(m.tb), modelKinds()...)
	if o.Pick%3 == 0 {
		d.IdleTimeout = modelIdle
	}
	if o.Pick%4 == 0 {
		d.TTL = time.Minute
	}
	at := time.Now()
	out, err := m.broker.Declare(m.tb.Context(), agent("a"), d)
	if err != nil {
		return
	}
	m.admitted("declared", "")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tasks = append(m.tasks, out.Task)
	m.open[out.Task.ID] = true
	if d.IdleTimeout > 0 {
		m.heard[out.Task.ID] = heard{least: at, most: time.Now()}
	}
}

// hear notes that a task's agent may have called just now, and that it did at an instant, where that is not zero.
func (m *model) hear(id task.ID, called time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.heard[id]
	if !ok {
		return
	}
	if !called.IsZero() {
		h.least = called
	}
	h.most = time.Now()
	m.heard[id] = h
}

// startedAnew notes that everybody counts as heard of now.
func (m *model) startedAnew() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, h := range m.heard {
		h.most = time.Now()
		m.heard[id] = h
	}
}

// maySilent says that a task may have been abandoned by now. The caller holds mu, or is alone.
func (m *model) maySilent(id task.ID) bool {
	h, ok := m.heard[id]
	return ok && time.Since(h.least) > modelIdle-2*time.Second
}

// admitted fails the test if what was admitted just now must not have been.
func (m *model) admitted(what, role string) {
	switch {
	case m.suspended:
		m.tb.Errorf("%s for an agent that is suspended", what)
	case role != "" && role == m.removed:
		m.tb.Errorf("%s by role %s, which was removed", what, role)
	}
}

// doubt forgets credentials: from now on they may or may not work.
func (m *model) doubt(which func(given) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, g := range m.given {
		if which(g) {
			delete(m.given, id)
		}
	}
}

// suspend suspends the agent. Where the answer is an error it is not known whether it is; some of its tasks may be closed.
func (m *model) suspend(o op) {
	m.doubt(func(given) bool { return true })
	order := broker.StopOrder{Target: stop.Target{Kind: stop.Agent, Name: agentA}, Suspend: true, Wait: time.Duration(o.Pick%2) * time.Second}
	err := m.broker.StopAll(m.tb.Context(), operator(), order, func(broker.Stopping) error { return nil })
	if err != nil {
		return
	}
	m.suspended = true
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.open)
}

// resume lets the agent call again, and asks until it may.
func (m *model) resume() {
	m.suspended = false
	for range 20 {
		_, err := m.broker.ResumeAgent(m.tb.Context(), operator(), agentA, "")
		if err == nil || fault.ReasonOf(err) == fault.NotFound || m.store.isDead() {
			return
		}
		pass(time.Second)
	}
	m.tb.Errorf("the agent cannot be resumed")
}

// remove takes a role out of the resources, which ends what was issued by it.
func (m *model) remove(o op) {
	m.doubt(func(g given) bool { return g.role == o.Role })
	m.removed = ""
	if _, err := m.catalog.Apply(m.tb.Context(), operator(), allBut(o.Role)); err == nil {
		m.removed = o.Role
	}
}

// restoreRoles makes the resources what they were in the beginning.
func (m *model) restoreRoles() {
	m.removed = ""
	_, _ = m.catalog.Apply(m.tb.Context(), operator(), allBut()) // or the next time
}

// checkEnds holds against the ledger that what has to end by itself or by an operator's word is asked to.
func (m *model) checkEnds(at string, leases map[lease.ID]lease.Lease) {
	for _, l := range leases {
		if l.State == lease.Active && l.Role == m.removed {
			m.tb.Errorf("%s: lease %s of removed role %s is ACTIVE", at, l.ID, l.Role)
		}
	}
	calm := m.setAt.IsZero() || time.Since(m.setAt) > clockHeld+10*time.Second+modelIdle+promptly
	for _, t := range m.tasks {
		now := m.task(t.ID)
		if now.State != task.Active {
			continue
		}
		if m.suspended {
			m.tb.Errorf("%s: task %s of a suspended agent is ACTIVE", at, t.ShortName)
		}
		if h, ok := m.heard[t.ID]; ok && calm && time.Since(h.most) > modelIdle+promptly {
			m.tb.Errorf("%s: task %s is ACTIVE, and nothing was heard of its agent for %s", at, t.ShortName, time.Since(h.most))
		}
		if calm && time.Since(now.NotAfter) > promptly {
			m.tb.Errorf("%s: task %s is ACTIVE, and its time is over since %s", at, t.ShortName, time.Since(now.NotAfter))
		}
	}
}

var errDead = errors.New("the process is dead")

// mortal is a backend as one process sees it: once that is dead, none of its calls gets there any more. What was on its way
// goes on.
type mortal struct {
	plugins.Backend

	dead func() bool
}

// mortalPreparer is mortal for one that prepares.
type mortalPreparer struct {
	mortal

	preparer plugins.Preparer
}

func mortals(backends map[string]plugins.Backend, dead func() bool) map[string]plugins.Backend {
	out := map[string]plugins.Backend{}
	for name, b := range backends {
		out[name] = mortal{b, dead}
		if p, ok := b.(plugins.Preparer); ok {
			out[name] = mortalPreparer{mortal{b, dead}, p}
		}
	}
	return out
}

func (m mortal) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	if m.dead() {
		return plugins.Credential{}, errDead
	}
	return m.Backend.Issue(ctx, req)
}

func (m mortal) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	if m.dead() {
		return plugins.Ending{}, errDead
	}
	return m.Backend.Revoke(ctx, held)
}

func (m mortalPreparer) Prepare(ctx context.Context, req plugins.Request) (plugins.Prepared, error) {
	if m.dead() {
		return plugins.Prepared{}, errDead
	}
	return m.preparer.Prepare(ctx, req)
}
