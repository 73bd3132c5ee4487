package broker

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/stop"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
)

// stopTick is how often a stop at most counts anew what it chose. Counting that takes long is done less often.
const stopTick = 250 * time.Millisecond

// StopOrder asks for the end of everything of a target.
type StopOrder struct {
	Target stop.Target
	// Suspend also suspends the agent that the target names.
	Suspend bool
	Comment string
	// Wait is for how long progress is reported after everything was chosen.
	Wait time.Duration
	// DryRun counts and changes nothing.
	DryRun bool
}

// Stopping is how a stop goes on.
type Stopping struct {
	stop.Progress

	// Chosen: everything was chosen, and its end is committed. Done: this is the last report.
	Chosen, Done bool
	// Agent is set where the order suspends one.
	Agent      *ledger.Agent
	Checkpoint []byte
}

// StopAll is the kill switch. It asks for the end of everything of the target, page by page, and reports how teardown goes
// on. The caller must be an administrator that may. Once begun it chooses to the end even if ctx is done or report fails:
// who pulls it and loses the connection has pulled it. It gives up between two pages only where the broker stops; what was
// committed goes on after the restart.
func (b *Broker) StopAll(ctx context.Context, c Caller, o StopOrder, report func(Stopping) error) error {
	if o.Suspend && o.Target.Kind != stop.Agent {
		f := fault.New(fault.InvalidArgument, "suspend: only an agent can be suspended")
		f.Fields = []fault.Field{{Name: "suspend", Problem: "only an agent can be suspended"}}
		return f
	}
	if !o.Suspend { // who was never seen can be suspended all the same
		if err := b.known(ctx, o.Target); err != nil {
			return err
		}
	}
	if o.DryRun {
		preview, err := b.preview(ctx, o.Target)
		if err != nil {
			return err
		}
		return report(Stopping{Progress: preview, Chosen: true, Done: true, Checkpoint: b.ledger.Head().Checkpoint})
	}
	chosen, err := b.chooseAll(ctx, c, o, report)
	if err != nil {
		return err
	}
	failpoint.Hit("stop.chosen")
	return b.followStop(ctx, chosen, o.Wait, report)
}

// preview counts what a stop would choose.
func (b *Broker) preview(ctx context.Context, t stop.Target) (stop.Progress, error) {
	s := stop.New(t)
	for more := true; more; {
		err := b.ledger.View(ctx, func(r ledger.Reader) error {
			var err error
			more, err = s.Look(r)
			return err
		})
		if err != nil {
			return stop.Progress{}, storeFault(err)
		}
	}
	return s.Progress(time.Now()), nil
}

// known refuses a name that nothing goes by: who mistypes it must not believe that something was stopped.
func (b *Broker) known(ctx context.Context, t stop.Target) error {
	found := true
	switch set := b.catalog.Engine().Set(); t.Kind {
	case stop.Profile, stop.Role:
		_, found = set.Document(t.String())
	case stop.Backend:
		_, found = b.catalog.Backends().Find(t.Name)
	case stop.Agent:
		tasks, err := b.AllTasks(ctx, ledger.TaskFilter{Agent: t.Name, Limit: 1})
		if err != nil {
			return err
		}
		found = len(tasks) > 0
	case stop.Task, stop.All:
	}
	if found {
		return nil
	}
	open, err := b.preview(ctx, t) // of a name that is gone something may still be open
	if err == nil && open.Tasks+open.Leases == 0 {
		err = fault.New(fault.NotFound, "there is no "+t.String()+", and nothing of that name is open")
	}
	return err
}

// chosen is a stop that has chosen everything.
type chosen struct {
	stop *stop.Stop
	last Stopping
}

// chooseAll asks for the end of every page.
func (b *Broker) chooseAll(ctx context.Context, c Caller, o StopOrder, report func(Stopping) error) (chosen, error) {
	out := chosen{stop: stop.New(o.Target)}
	work := context.WithoutCancel(ctx)
	var gone error // the listener is
	for first, more := true, true; more; first = false {
		if err := stopped(ctx); err != nil {
			return out, err
		}
		var commit ledger.Commit
		var err error
		if first {
			commit, more, err = b.firstPage(work, c, o, &out)
		} else {
			commit, more, err = b.endPage(work, c, o, out.stop, nil)
		}
		if err != nil {
			return out, err
		}
		failpoint.Hit("stop.page")
		out.last.Progress, out.last.Checkpoint = out.stop.Progress(time.Now()), commit.Checkpoint
		if more && gone == nil {
			gone = report(out.last)
		}
	}
	out.last.Chosen = true
	if gone == nil {
		gone = ctx.Err()
	}
	return out, gone
}

// stopped says that the broker stops; nothing else keeps a stop from choosing.
func stopped(ctx context.Context) error {
	if f, ok := errors.AsType[*fault.Error](context.Cause(ctx)); ok && f.Reason == fault.ShuttingDown {
		return f
	}
	return nil
}

// firstPage is endPage with the record of the order, and with the suspension, which is in force when it returns.
func (b *Broker) firstPage(ctx context.Context, c Caller, o StopOrder, out *chosen) (ledger.Commit, bool, error) {
	var agent ledger.Agent
	if o.Suspend {
		if err := b.suspensions.changing.take(ctx); err != nil {
			return ledger.Commit{}, false, err
		}
		defer b.suspensions.changing.give()
	}
	commit, more, err := b.endPage(ctx, c, o, out.stop, func(tx *ledger.Tx) error {
		_, err := tx.Append(audit.Record{
			V: 1, Time: time.Now().UTC(), Event: audit.StopAsked, Request: c.Request, Actor: c.actor(), Resource: o.Target.String(),
			Texts: commentText(o.Comment),
		})
		if err == nil && o.Suspend {
			agent, err = suspend(tx, c, o.Target.Name, o.Comment)
		}
		return err
	})
	if o.Suspend {
		failpoint.Hit("stop.suspended")
		err = b.settled(ctx, agent, err)
		out.last.Agent = &agent
	}
	return commit, more, err
}

// endPage asks for the end of one page, in one transaction with what comes before it.
func (b *Broker) endPage(
	ctx context.Context, c Caller, o StopOrder, s *stop.Stop, before func(*ledger.Tx) error,
) (commit ledger.Commit, more bool, err error) {
	cause := teardown.Cause{Actor: c.actor(), Request: c.Request, Why: task.Stopped, Comment: o.Comment}
	if o.Suspend {
		cause.Why = task.AgentSuspended
	}
	var closed []task.ID
	commit, err = b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		cause.Now = time.Now()
		var failed error
		if before != nil {
			failed = before(tx)
		}
		if failed == nil {
			closed, more, failed = s.End(tx, cause)
		}
		return failed
	})
	if err != nil {
		return commit, false, storeFault(err)
	}
	for _, id := range closed {
		b.presence.Forget(id)
	}
	return commit, more, nil
}

// followStop reports how what was chosen ends, until all has or the time is over.
func (b *Broker) followStop(ctx context.Context, c chosen, wait time.Duration, report func(Stopping) error) error {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for over := wait <= 0; ; {
		grown, began := b.ledger.Grown(), time.Now()
		if err := c.stop.Refresh(ctx, b.ledger); err != nil {
			return storeFault(err)
		}
		c.last.Progress = c.stop.Progress(time.Now())
		c.last.Done = over || c.last.Open == 0
		if c.last.Done {
			c.last.Checkpoint = b.ledger.Head().Checkpoint
		}
		if err := report(c.last); err != nil || c.last.Done {
			return err
		}
		var err error
		if over, err = pause(ctx, max(stopTick, 4*time.Since(began)), deadline.C, grown); err != nil {
			return err
		}
	}
}

// pause waits for a time and then until the log has grown. over is true when the deadline came first.
func pause(ctx context.Context, least time.Duration, deadline <-chan time.Time, grown <-chan struct{}) (over bool, err error) {
	timer := time.NewTimer(least)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-deadline:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case <-grown:
		return false, nil
	case <-deadline:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// finishSuspensions closes tasks of suspended agents that were left open between two pages: by a crash, or by a ledger that
// failed. What fails again is left to the next call.
func (b *Broker) finishSuspensions(ctx context.Context) {
	for id := range b.suspensions.snapshot.Load().since {
		left, err := b.AllTasks(ctx, ledger.TaskFilter{Agent: id, States: []task.State{task.Active}, Limit: 1})
		if err == nil && len(left) == 0 {
			continue
		}
		o := StopOrder{Target: stop.Target{Kind: stop.Agent, Name: id}, Suspend: true}
		s := stop.New(o.Target)
		for more := true; more; {
			var err error
			if _, more, err = b.endPage(ctx, Caller{}, o, s, nil); err != nil {
				b.log.Error("tasks of a suspended agent not closed; they are tried again", zap.String("agent", id), zap.Error(err))
			}
			failpoint.Hit("suspension.page")
		}
	}
}
