package teardown

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// farOff is later than anything that is planned: by then all that is open is due.
const farOff = 100 * 365 * 24 * time.Hour

// replanLanes plans leases anew lane by lane, where they cannot be read as a whole. A lane that cannot be read now is not when its
// leases are due either, and holds up no other.
func (l *Loop) replanLanes(ctx context.Context, s shift) error {
	var lanes []string
	failed := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		lanes, err = r.DueLanes(s.now.Add(farOff))
		return err
	})
	for _, name := range lanes {
		_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
			all, err := tx.DueLeases(name, s.now.Add(farOff), everything)
			for _, from := range all {
				err = errors.Join(err, l.replanLease(tx, s, from))
			}
			return err
		})
		failed = errors.Join(failed, l.readable(err, zap.String("lane", name)))
	}
	return failed
}

// replanEach plans tasks anew one by one, where they cannot be read as a whole.
func (l *Loop) replanEach(ctx context.Context, s shift) error {
	var due []task.ID
	failed := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		due, err = r.DueTasks(s.now.Add(farOff), everything)
		return err
	})
	for _, id := range due {
		_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
			from, err := tx.Task(id)
			if err != nil {
				return err
			}
			return replanTask(tx, s, from)
		})
		failed = errors.Join(failed, l.readable(err, zap.Stringer("task", id)))
	}
	return failed
}

// readable tells what cannot be read, and returns every other error.
func (l *Loop) readable(err error, what zap.Field) error {
	if !errors.Is(err, ledger.ErrDamaged) {
		return err
	}
	l.cfg.Logger.Error("it cannot be read, and is not planned anew; restore the ledger", what, zap.Error(err))
	return nil
}
