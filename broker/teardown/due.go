package teardown

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// closeDue closes tasks that have expired or whose agent is gone, and looks again later at the others.
func (l *Loop) closeDue(ctx context.Context, now time.Time) error {
	var due []task.ID
	err := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		due, err = r.DueTasks(now, taskBatch, l.unread...)
		return err
	})
	if err != nil || len(due) == 0 {
		return err
	}
	_, err = l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		for _, id := range due {
			if cause := l.visit(tx, id, now); cause != nil {
				return cause
			}
		}
		return nil
	})
	if errors.Is(err, ledger.ErrDamaged) {
		err = l.closeEach(ctx, due, now)
	}
	failpoint.Hit("teardown.due")
	if len(due) == taskBatch {
		select {
		case l.more <- struct{}{}:
		default:
		}
	}
	return err
}

// closeEach is closeDue one by one: what cannot be read of one task, or of its leases, holds up no other. Its leases end by their
// own ends.
func (l *Loop) closeEach(ctx context.Context, due []task.ID, now time.Time) error {
	var failed error
	for _, id := range due {
		_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error { return l.visit(tx, id, now) })
		if errors.Is(err, ledger.ErrDamaged) {
			l.unread = append(l.unread, id)
			l.cfg.Logger.Error("a task that is due cannot be read, and is not closed; restore the ledger",
				zap.Stringer("task", id), zap.Error(err))
			continue
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// visit closes one due task, or says when it is due again.
func (l *Loop) visit(tx *ledger.Tx, id task.ID, now time.Time) error {
	t, err := tx.Task(id)
	if err != nil || t.State != task.Active {
		return err
	}
	why, again := judge(t, l.cfg.Presence.LastSeen(id, now), now)
	if why == "" {
		next := t
		next.NextAt = again
		if heard, ok := l.cfg.Presence.Heard(id, now); ok {
			next.LastSeen = heard
		}
		return tx.UpdateTask(next, t.State)
	}
	err = Close(tx, id, Cause{Actor: Stint(), Why: why, Now: now})
	if errors.Is(err, task.ErrState) {
		return nil
	}
	l.cfg.Presence.Forget(id)
	return err
}

// judge says why a task ends now, or when to look again. How long its agent has been silent goes by the monotonic clock,
// which both times carry as a rule; what the wall clock said when it was heard of may be of before it was set.
func judge(t task.Task, seen, now time.Time) (why task.CloseReason, again time.Time) {
	left := t.IdleTimeout - now.Sub(seen)
	switch {
	case !now.Before(t.NotAfter):
		return task.Expired, time.Time{}
	case t.IdleTimeout <= 0:
		return "", t.NotAfter
	case left <= 0:
		return task.Abandoned, time.Time{}
	}
	return "", earlier(t.NotAfter, now.Add(left))
}
