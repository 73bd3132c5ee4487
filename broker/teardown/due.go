package teardown

import (
	"context"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// closeDue closes tasks that have expired or whose agent is gone, and looks again later at the others.
func (l *Loop) closeDue(ctx context.Context) error {
	var due []task.Task
	err := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		due, err = r.DueTasks(time.Now(), taskBatch)
		return err
	})
	if err != nil || len(due) == 0 {
		return err
	}
	_, err = l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		for _, t := range due {
			if cause := l.visit(tx, t.ID, time.Now()); cause != nil {
				return cause
			}
		}
		return nil
	})
	failpoint.Hit("teardown.due")
	if len(due) == taskBatch {
		select {
		case l.more <- struct{}{}:
		default:
		}
	}
	return err
}

// visit closes one due task, or says when it is due again.
func (l *Loop) visit(tx *ledger.Tx, id task.ID, now time.Time) error {
	t, err := tx.Task(id)
	if err != nil || t.State != task.Active {
		return err
	}
	seen := l.cfg.Presence.LastSeen(id, now)
	var why task.CloseReason
	switch {
	case !now.Before(t.NotAfter):
		why = task.Expired
	case t.IdleTimeout > 0 && now.Sub(seen) >= t.IdleTimeout:
		why = task.Abandoned
	default:
		next := t
		next.NextAt = t.NotAfter
		if heard, ok := l.cfg.Presence.Heard(id, now); ok {
			next.LastSeen = heard
		}
		if idle := seen.Add(t.IdleTimeout); t.IdleTimeout > 0 && idle.Before(next.NextAt) {
			next.NextAt = idle
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
