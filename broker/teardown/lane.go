package teardown

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

const (
	// tripAfter is how many different leases of a lane have to fail, with no success between them, before it is held.
	// Fewer are kept apart by their own back-off.
	tripAfter = 5
	// firstProbe and maxProbe bound the jittered time between two attempts in a lane that is held.
	firstProbe = 500 * time.Millisecond
	maxProbe   = 10 * time.Second
	// tellBatch is how many leases of a lane that is held one transaction tells what they wait for.
	tellBatch = 200
	// roundMax is how many tasks a round of a lane remembers.
	roundMax = 1000
	// aloneFor is for how long a task that was found alone in its lane is not looked past.
	aloneFor = 100 * time.Millisecond
)

// outcome is how a worker's attempt came out.
type outcome struct {
	lane  string
	lease lease.ID
	err   error
}

// lane is what fails together: a mount or a database of one backend. It belongs to the goroutine of Run.
type lane struct {
	busy   int                   // attempts under way
	failed map[lease.ID]struct{} // leases that failed since the last success
	probes int                   // failed attempts since the lane is held
	probe  time.Time             // when a lane that is held may be asked again
	why    string                // its last failure
	turns  turns
}

// held reports whether the lane does not answer, and is asked by one attempt at a time.
func (l *lane) held() bool { return len(l.failed) >= tripAfter }

// free is how many attempts may start now.
func (l *lane) free(now time.Time) int {
	switch {
	case !l.held():
		return slots - l.busy
	case l.busy > 0 || now.Before(l.probe):
		return 0
	}
	return 1
}

// record takes the outcome of an attempt, and says whether the lane came to be held or was let go.
func (l *lane) record(o outcome, now time.Time) (changed bool) {
	was := l.held()
	l.busy--
	if !ofLane(o.err) {
		l.failed, l.probes = nil, 0
		return was
	}
	if l.failed == nil {
		l.failed = map[lease.ID]struct{}{}
	}
	if !was {
		l.failed[o.lease] = struct{}{}
	}
	l.why = reason(o.err)
	if l.held() {
		wait := min(maxProbe, firstProbe<<min(l.probes, 6))
		l.probe = now.Add(wait/2 + rand.N(wait/2)) //nolint:gosec // jitter needs no unpredictability
		l.probes++
	}
	return !was && l.held()
}

// ofLane reports whether an error is of the kind that every lease of a lane would meet: no answer, an answer that nothing
// can be done now, or a refusal that only an operator can mend.
func ofLane(err error) bool {
	return errors.Is(err, plugins.ErrUnavailable) || errors.Is(err, plugins.ErrMisconfigured) || errors.Is(err, context.DeadlineExceeded)
}

// turns lets the tasks of a lane take turns, so that one with ten thousand leases does not hold up another with one. A
// round ends when every task that waits has had its turn.
type turns struct {
	had   []task.ID // in this round
	alone time.Time // until then nobody else waits
}

// pick returns up to limit due leases of a lane: of tasks that had no turn in this round, and then of all.
func (t *turns) pick(q ledger.Queue, name string, now time.Time, limit int) ([]lease.Lease, error) {
	if len(t.had) == 0 || now.Before(t.alone) {
		due, err := q.DueLeases(name, now, limit)
		t.took(due)
		return due, err
	}
	due, err := q.DueLeases(name, now, limit, t.had...)
	if err != nil || len(due) == limit {
		t.took(due)
		return due, err
	}
	if len(due) == 0 && len(t.had) == 1 {
		t.alone = now.Add(aloneFor)
	}
	t.had = nil
	seen := map[lease.ID]struct{}{}
	for _, l := range due {
		seen[l.ID] = struct{}{}
	}
	all, err := q.DueLeases(name, now, limit)
	for _, l := range all {
		if _, ok := seen[l.ID]; !ok && len(due) < limit {
			due = append(due, l)
		}
	}
	t.took(due)
	return due, err
}

// took notes whose turn it was.
func (t *turns) took(leases []lease.Lease) {
	for _, l := range leases {
		if n := len(t.had); n == 0 || t.had[n-1] != l.Task {
			t.had = append(t.had, l.Task)
		}
	}
	if len(t.had) > roundMax {
		t.had = nil
	}
}

// tell writes on the leases that wait for a lane that is held what they wait for, and that they are overdue once they are:
// nobody tries to end them, and whoever looks at one should see why. Those told are due again when the lane is next asked.
func (l *Loop) tell(ctx context.Context, name string, now time.Time) error {
	at := l.lane[name]
	news := func(q ledger.Queue) ([]lease.Lease, error) {
		all, err := q.DueLeases(name, now, tellBatch)
		return slices.DeleteFunc(all, func(from lease.Lease) bool {
			return from.State != lease.Revoking || (from.LastError != "" && l.overdue(from, now) == from.Stuck)
		}), err
	}
	var some []lease.Lease
	err := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		some, err = news(r)
		return err
	})
	if err != nil || len(some) == 0 {
		return err
	}
	_, err = l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		some, err = news(tx)
		if err != nil {
			return err
		}
		for _, from := range some {
			next := from
			next.LastError, next.NextAt, next.Stuck = at.why, now.Add(at.probe.Sub(now)), from.Stuck || l.overdue(from, now)
			if err = l.flag(tx, next, from, now); err != nil {
				return err
			}
			if err = tx.UpdateLease(next, from); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// overdue reports whether the end of a lease was asked for so long ago that it is stuck.
func (l *Loop) overdue(from lease.Lease, now time.Time) bool {
	return from.AskedAt.Before(now.Add(-time.Duration(l.stuckAfter.Load())))
}
