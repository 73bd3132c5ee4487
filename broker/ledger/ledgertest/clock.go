package ledgertest

import (
	"errors"
	"time"
	"unsafe"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// SetClock makes the ledger look as it does once the machine's clock was set forward by d: every instant of what is open
// is d further in the past than it was. A test cannot set its clock, neither the machine's nor a bubble's, and need not:
// what counts is where the clock stands against what is stored. Backends, whose clocks are their own, do not notice.
func SetClock(tx *ledger.Tx, d time.Duration) error {
	leases, err := tx.ListLeases(ledger.LeaseFilter{
		States: []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}, Limit: 100_000,
	})
	for _, from := range leases {
		next := from
		move(-d, &next.CreatedAt, &next.NotAfter, &next.SweepAt, &next.NextAt, &next.ClaimUntil, &next.AskedAt, &next.UsableUntil, &next.UncheckedUntil)
		err = errors.Join(err, tx.UpdateLease(next, from))
	}
	tasks, terr := tx.ListTasks(ledger.TaskFilter{States: []task.State{task.Active, task.Closing}, Limit: 100_000})
	for _, from := range tasks {
		next := from
		move(-d, &next.CreatedAt, &next.NotAfter, &next.NextAt, &next.ClosingAt, &next.LastSeen)
		terr = errors.Join(terr, tx.UpdateTask(next, from.State))
	}
	return errors.Join(err, terr)
}

func move(by time.Duration, instants ...*time.Time) {
	for _, at := range instants {
		if !at.IsZero() && !at.Equal(plugins.NoEnd()) {
			*at = at.Add(by)
		}
	}
}

// SetReading returns a reading of the clocks as it is when the wall clock was set by that much and the monotonic one goes on,
// in whole seconds. It has to be a reading of both: one of time.Now outside of a bubble.
func SetReading(read time.Time, by time.Duration) time.Time {
	// Package time has no way to make one. It keeps seconds since 1885 above 30 bits of nanoseconds, and the monotonic
	// reading in the next word.
	*(*uint64)(unsafe.Pointer(&read)) += uint64(by/time.Second) << 30 //nolint:gosec // see above; it wraps as it should
	return read
}
