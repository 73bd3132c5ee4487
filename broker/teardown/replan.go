package teardown

import (
	"context"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// replanBatch is how many rows one transaction plans anew.
const replanBatch = 256

// shift is what the plans in the ledger have to follow: the wall clock says now, and was set by jump.
type shift struct {
	now  time.Time
	jump time.Duration
}

// replan plans everything that is open anew, intents first, and records that the clock was set.
func (l *Loop) replan(ctx context.Context, s shift) error {
	leases := l.replanLeases(ctx, s, []lease.State{lease.Intent})
	if leases == nil {
		leases = l.replanLeases(ctx, s, []lease.State{lease.Active, lease.Revoking, lease.Lapsing})
	}
	if errors.Is(leases, ledger.ErrDamaged) {
		leases = l.replanLanes(ctx, s)
	}
	if leases != nil {
		return leases
	}
	tasks := l.replanTasks(ctx, s)
	if errors.Is(tasks, ledger.ErrDamaged) {
		tasks = l.replanEach(ctx, s)
	}
	if tasks != nil {
		return tasks
	}
	_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		by := s.jump.Round(time.Millisecond).String()
		if s.jump > 0 {
			by = "+" + by
		}
		_, err := tx.Append(audit.Record{V: 1, Time: s.now.UTC(), Event: audit.ClockSet, Actor: Stint(), Reason: by})
		return err
	})
	return err
}

func (l *Loop) replanLeases(ctx context.Context, s shift, states []lease.State) error {
	filter := ledger.LeaseFilter{States: states, Limit: replanBatch}
	for {
		read := 0
		_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
			page, err := tx.ListLeases(filter)
			if err != nil {
				return err
			}
			for _, from := range page {
				filter.Before = from.ID
				if err := l.replanLease(tx, s, from); err != nil {
					return err
				}
			}
			read = len(page)
			return nil
		})
		if err != nil || read < replanBatch {
			return err
		}
	}
}

func (l *Loop) replanLease(tx *ledger.Tx, s shift, from lease.Lease) error {
	next := s.lease(from, l.horizon(from))
	if next.NextAt.Equal(from.NextAt) && next.ClaimUntil.Equal(from.ClaimUntil) {
		return nil
	}
	return tx.UpdateLease(next, from)
}

func (l *Loop) replanTasks(ctx context.Context, s shift) error {
	filter := ledger.TaskFilter{States: []task.State{task.Active}, Limit: replanBatch}
	for {
		read := 0
		_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
			page, err := tx.ListTasks(filter)
			if err != nil {
				return err
			}
			for _, from := range page {
				filter.Before = from.ID
				if err := replanTask(tx, s, from); err != nil {
					return err
				}
			}
			read = len(page)
			return nil
		})
		if err != nil || read < replanBatch {
			return err
		}
	}
}

func replanTask(tx *ledger.Tx, s shift, from task.Task) error {
	next := s.task(from)
	if next.NextAt.Equal(from.NextAt) {
		return nil
	}
	return tx.UpdateTask(next, from.State)
}

// horizon is for how long after its deadline the issue of a lease may still have effects. That of a backend which is not
// configured is what it was when the issue began.
func (l *Loop) horizon(of lease.Lease) time.Duration {
	if at, ok := l.cfg.Backends().Find(of.Backend); ok {
		return at.Backend.Descriptor().Horizon
	}
	return max(0, of.SweepAt.Sub(of.CreatedAt)-lease.IssueTimeout)
}

// lease plans a lease anew. What was asked to end goes on at once; what would end by the clock is held.
func (s shift) lease(l lease.Lease, horizon time.Duration) lease.Lease {
	l.ClaimUntil = earlier(l.ClaimUntil, s.now.Add(claimFor))
	switch l.State {
	case lease.Intent: // its call may have begun just now, or be answered only at its horizon: all of that is waited for
		l.SweepAt = s.now.Add(lease.IssueTimeout + horizon)
		l.NextAt = l.SweepAt
	case lease.Active:
		if !l.NotAfter.IsZero() {
			l.NextAt = later(l.NotAfter, s.now.Add(holdFor))
		}
	case lease.Revoking:
		l.NextAt = earlier(l.NextAt, s.now.Add(backOff(l.Attempts)))
	case lease.Lapsing:
		l.NextAt = s.lapse(l)
	case lease.Revoked, lease.Lapsed, lease.Disclosed:
	}
	return l
}

// lapse returns when a lease that ends by itself may be called lapsed: when it is over by the clock as it was and by the
// clock as it is. One that began to lapse after the clock was set knows only the new one.
func (s shift) lapse(l lease.Lease) time.Time {
	if l.AskedAt.After(s.now.Add(-s.jump)) && s.jump > 0 {
		return l.NextAt
	}
	return later(l.UsableUntil, l.NextAt.Add(s.jump))
}

// task plans an ACTIVE task anew. How long its agent is silent is measured by the monotonic clock, and found out when it is
// looked at.
func (s shift) task(t task.Task) task.Task {
	held := s.now.Add(holdFor)
	t.NextAt = later(t.NotAfter, held)
	if t.IdleTimeout > 0 {
		t.NextAt = held
	}
	return t
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
