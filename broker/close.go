package broker

import (
	"context"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
)

// Ended is a task and its leases as they stand, with the checkpoint that covers them.
type Ended struct {
	Task       task.Task
	Leases     []lease.Lease
	Checkpoint []byte
}

// Complete closes one of the caller's tasks and waits up to wait for its teardown, which goes on either way. Completing
// a task that is closed returns it as it is.
func (b *Broker) Complete(ctx context.Context, c Caller, ref TaskRef, why task.CloseReason, wait time.Duration) (Ended, error) {
	t, err := b.plainTask(ctx, c, ref)
	if err != nil {
		return Ended{}, err
	}
	return b.end(ctx, t.ID, teardown.Cause{Actor: c.actor(), Request: c.Request, Why: why}, wait)
}

// Stop closes anybody's task. The caller must be an administrator that may.
func (b *Broker) Stop(ctx context.Context, c Caller, ref TaskRef, comment string, wait time.Duration) (Ended, error) {
	t, err := b.AnyTask(ctx, ref)
	if err != nil {
		return Ended{}, err
	}
	cause := teardown.Cause{Actor: c.actor(), Request: c.Request, Why: task.Stopped, Comment: comment}
	return b.end(ctx, t.ID, cause, wait)
}

// end closes a task and waits.
func (b *Broker) end(ctx context.Context, id task.ID, cause teardown.Cause, wait time.Duration) (Ended, error) {
	changed, done := b.ledger.Subscribe(id)
	defer done()
	_, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		cause.Now = time.Now()
		err := teardown.Close(tx, id, cause)
		if errors.Is(err, task.ErrState) { // closing or closed already
			return nil
		}
		return err
	})
	if err != nil {
		return Ended{}, storeFault(err)
	}
	failpoint.Hit("close.committed")
	b.presence.Forget(id)
	return b.await(ctx, id, changed, wait)
}

// await waits until a task is CLOSED or the time is over, and returns how it stands.
func (b *Broker) await(ctx context.Context, id task.ID, changed <-chan struct{}, wait time.Duration) (Ended, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for over := wait <= 0; !over; { // its leases may be many: they are read once
		var t task.Task
		err := b.ledger.View(ctx, func(r ledger.Reader) (err error) {
			t, err = r.Task(id)
			return err
		})
		if err != nil {
			return Ended{}, storeFault(err)
		}
		if t.State == task.Closed {
			break
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			return Ended{}, ctx.Err()
		}
	}
	return b.ended(ctx, id)
}

func (b *Broker) ended(ctx context.Context, id task.ID) (Ended, error) {
	var out Ended
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		if out.Task, err = r.Task(id); err != nil {
			return err
		}
		if out.Leases, err = r.ListLeases(ledger.LeaseFilter{Task: id}); err != nil {
			return err
		}
		if out.Task.State != task.Closed {
			out.Task.Summary = lease.Summarise(out.Leases)
		}
		head, err := r.Head()
		out.Checkpoint = head.Checkpoint
		return err
	})
	return out, storeFault(err)
}

// RevokeLease ends one credential of the caller before its task ends, and waits up to wait for the end.
func (b *Broker) RevokeLease(ctx context.Context, c Caller, id lease.ID, wait time.Duration) (lease.Lease, []byte, error) {
	l, err := b.Lease(ctx, c, id)
	if err != nil {
		return l, nil, err
	}
	changed, done := b.ledger.Subscribe(l.Task)
	defer done()
	commit, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		return askLease(tx, c, id)
	})
	if err != nil {
		return l, nil, storeFault(err)
	}
	failpoint.Hit("revoke.asked")
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for over := wait <= 0; ; {
		if l, err = b.Lease(ctx, c, id); err != nil || over || l.State.Final() {
			return l, commit.Checkpoint, err
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			return l, nil, ctx.Err()
		}
	}
}

// askLease asks for the end of one lease, and records who did.
func askLease(tx *ledger.Tx, c Caller, id lease.ID) error {
	from, err := tx.Lease(id)
	if err != nil {
		return err
	}
	next := from.AskEnd(time.Now(), lease.Requested)
	if next.AskedAt.Equal(from.AskedAt) { // final, or asked for before
		return nil
	}
	t, err := tx.Task(from.Task)
	if err != nil {
		return err
	}
	rec := leaseRecord(c, audit.LeaseEnding, t, next)
	rec.Reason = string(next.Cause)
	if _, err = tx.Append(rec); err != nil {
		return err
	}
	return tx.UpdateLease(next, from)
}

// KeepAlive restarts a task's idle timeout and returns the task, and when it closes if nothing more is heard.
func (b *Broker) KeepAlive(ctx context.Context, c Caller, ref TaskRef) (task.Task, time.Time, error) {
	t, err := b.plainTask(ctx, c, ref)
	if err != nil || t.State != task.Active || t.IdleTimeout == 0 {
		return t, time.Time{}, err
	}
	idleAt := time.Now().Add(t.IdleTimeout)
	if t.NotAfter.Before(idleAt) {
		idleAt = t.NotAfter
	}
	return t, idleAt, nil
}

// errNotYours is what an unknown task or lease and somebody else's have in common.
func errNotYours(what string) error {
	return fault.New(fault.NotFound, "there is no such "+what+", or it is not yours")
}
