package reconcile

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/teardown"
)

const (
	// firstRun is how long after its start the broker first looks by itself, so that a revocation that was lost meanwhile is
	// made again soon, and secondRun how long after it: by then nothing of a restored ledger seems in flight.
	firstRun  = 10 * time.Second
	secondRun = 70 * time.Second
	// againAfter is how long after one that left something to do the next comparison is, twice as long after each that does,
	// and at most againMax.
	againAfter = 15 * time.Second
	againMax   = time.Hour
)

// Run compares all backends now and then until ctx is done, and soon again where not all could be compared, or what has ended is
// alive still. What has ended by the ledger and is alive is ended again: that it has to end was decided long ago. It acts on
// nothing else, and on nothing while the ledger is held.
func (r *Reconciler) Run(ctx context.Context) error {
	began, again := time.Now(), time.Duration(0)
	looks := []time.Time{began.Add(firstRun), began.Add(secondRun)}
	for {
		var due <-chan time.Time
		if every := time.Duration(r.every.Load()); every > 0 {
			due = time.After(soonest(every, again, looks))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
			continue
		case <-due:
		}
		looks = slices.DeleteFunc(looks, func(at time.Time) bool { return !time.Now().Before(at) })
		if r.once(ctx) {
			again = 0
		} else {
			again = max(againAfter, min(2*again, againMax))
		}
	}
}

// soonest returns how long it is until the next comparison: one that was planned, or again where that is not zero.
func soonest(every, again time.Duration, looks []time.Time) time.Duration {
	if again > 0 {
		every = min(every, again)
	}
	for _, at := range looks {
		every = min(every, time.Until(at))
	}
	return every
}

// once compares all backends, and reports whether nothing is left that looking again soon could do better.
func (r *Reconciler) once(ctx context.Context) bool {
	all, err := r.Reconcile(ctx, Order{Actor: teardown.Stint(), RevokeEnded: !r.cfg.Ledger.Held()})
	if err != nil {
		if ctx.Err() == nil {
			r.cfg.Logger.Error("backends not compared with the ledger; it is tried again", zap.Error(err))
		}
		return false
	}
	names := make([]string, 0, len(all))
	for _, inv := range all {
		names = append(names, inv.Backend)
	}
	r.cfg.Meter.Only(names)
	return !slices.ContainsFunc(all, func(inv Inventory) bool { return !inv.complete() || inv.Open().Ended > 0 })
}
