package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
)

// suspensions is which agents are suspended. Rows of the ledger are the truth, which every transaction that admits
// something asks; the snapshot is what calls are held against.
type suspensions struct {
	// changing is taken while a change is committed and put in force, so that changes follow one another.
	changing turns
	snapshot atomic.Pointer[suspended]
}

// suspended is an immutable snapshot: the agents that are suspended, since when.
type suspended struct {
	since   map[string]time.Time
	changed chan struct{} // closed when another takes its place
}

// load reads the suspended agents from the ledger.
func (s *suspensions) load(ctx context.Context, l *ledger.Ledger) error {
	since := map[string]time.Time{}
	err := l.View(ctx, func(r ledger.Reader) error {
		agents, err := r.ListAgents(ledger.AgentFilter{State: ledger.AgentSuspended, Limit: math.MaxInt32})
		for _, a := range agents {
			since[a.ID] = a.Since
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read suspended agents: %w", err)
	}
	s.replace(since)
	return nil
}

// replace puts a snapshot in force and tells whoever looked at the last.
func (s *suspensions) replace(since map[string]time.Time) {
	if old := s.snapshot.Swap(&suspended{since: since, changed: make(chan struct{})}); old != nil {
		close(old.changed)
	}
}

// set puts the state of one agent in force.
func (s *suspensions) set(a ledger.Agent) {
	since := maps.Clone(s.snapshot.Load().since)
	delete(since, a.ID)
	if a.State == ledger.AgentSuspended {
		since[a.ID] = a.Since
	}
	s.replace(since)
}

// Admits refuses a caller that is a suspended agent. It asks memory only; transactions ask the ledger again.
func (b *Broker) Admits(c Caller) error {
	if c.Admin != "" || c.Identity.IsZero() {
		return nil
	}
	id := c.agent()
	if since, ok := b.suspensions.snapshot.Load().since[id]; ok {
		return suspendedFault(id, since)
	}
	return nil
}

// AgentsChanged returns a channel that is closed when the state of an agent next changes. Take it, ask Admits, then wait.
func (b *Broker) AgentsChanged() <-chan struct{} { return b.suspensions.snapshot.Load().changed }

func suspendedFault(id string, since time.Time) *fault.Error {
	at := since.UTC().Format(time.RFC3339)
	return fault.New(fault.AgentSuspended, id+" is suspended since "+at+"; its tasks were closed, and only an operator resumes it").
		With("since", at)
}

// notSuspended refuses, inside the transaction that would admit something, what is for a suspended agent.
func notSuspended(r ledger.Rows, id string) error {
	switch a, err := r.Agent(id); {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return err
	case a.State == ledger.AgentSuspended:
		return suspendedFault(id, a.Since)
	default:
		return nil
	}
}

// suspend makes an agent SUSPENDED in the caller's transaction and returns it. One that is suspended already stays as it is.
func suspend(tx *ledger.Tx, c Caller, id, comment string) (ledger.Agent, error) {
	a, err := tx.Agent(id)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return a, err
	}
	if a.State == ledger.AgentSuspended {
		return a, nil
	}
	return setAgent(tx, c, ledger.Agent{ID: id, State: ledger.AgentSuspended}, comment)
}

// setAgent writes the state of an agent and its record.
func setAgent(tx *ledger.Tx, c Caller, a ledger.Agent, comment string) (ledger.Agent, error) {
	a.Since, a.By = time.Now().UTC(), c.actor().ID
	rec := audit.Record{
		V: 1, Time: a.Since, Event: audit.AgentSuspended, Request: c.Request, Actor: c.actor(), Agent: a.ID, Texts: commentText(comment),
	}
	if a.State == ledger.AgentActive {
		rec.Event = audit.AgentResumed
	}
	var err error
	if a.Record, err = tx.Append(rec); err != nil {
		return a, err
	}
	return a, tx.PutAgent(a)
}

// commentText is an operator's comment as the text of a record, which keeps its salted hash.
func commentText(comment string) map[string]string {
	if comment == "" {
		return nil
	}
	return map[string]string{"comment": comment}
}

// ResumeAgent lets a suspended agent call again. What was ended stays ended. An agent that is not suspended stays as it is.
func (b *Broker) ResumeAgent(ctx context.Context, c Caller, id, comment string) (ledger.Agent, error) {
	if err := b.suspensions.changing.take(ctx); err != nil {
		return ledger.Agent{}, err
	}
	defer b.suspensions.changing.give()
	var a ledger.Agent
	_, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		var err error
		if a, err = tx.Agent(id); err != nil || a.State == ledger.AgentActive {
			return err
		}
		a, err = setAgent(tx, c, ledger.Agent{ID: id, State: ledger.AgentActive}, comment)
		return err
	})
	if errors.Is(err, ledger.ErrNotFound) {
		return a, fault.New(fault.NotFound, "nobody ever suspended "+id)
	}
	return a, b.settled(ctx, a, err)
}

// settled puts in force what a change of an agent came to. The caller has taken changing.
func (b *Broker) settled(ctx context.Context, a ledger.Agent, err error) error {
	switch {
	case err == nil:
		b.suspensions.set(a)
	case errors.Is(err, ledger.ErrOutcomeUnknown): // what is in force has to be what is stored
		err = errors.Join(err, b.suspensions.load(context.WithoutCancel(ctx), b.ledger))
	}
	return storeFault(err)
}

// Agents returns a page of the agents whose state somebody has set, by ID.
func (b *Broker) Agents(ctx context.Context, f ledger.AgentFilter) ([]ledger.Agent, error) {
	var agents []ledger.Agent
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		agents, err = r.ListAgents(f)
		return err
	})
	return agents, storeFault(err)
}
