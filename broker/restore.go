package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
)

// restoreRetry is when to ask a held broker again: people take minutes.
const restoreRetry = 30 * time.Second

// Held reports whether the broker may only be asked: its ledger is an older copy and nobody has confirmed that, or that was
// confirmed just now and Admit has yet to be called. Teardown asks it, too. Once it is false, it stays so.
func (b *Broker) Held() bool { return b.waits.Load() }

// Unheld refuses while the broker is held.
func (b *Broker) Unheld() error {
	if b.Held() {
		return heldFault()
	}
	return nil
}

// Admit lets a broker that was held go on, after its ledger was confirmed and what a start does with a ledger was done.
func (b *Broker) Admit() {
	if b.waits.CompareAndSwap(true, false) {
		close(b.admitted)
	}
}

func heldFault() *fault.Error {
	return fault.Wrap(fault.RestoreUnconfirmed, "the broker's ledger was restored from an older copy: nothing is issued, ended or changed "+
		"until an administrator confirms it with stint restore confirm; nothing was done", ledger.ErrHeld).Retry(restoreRetry)
}

// Restore is how a ledger stands that may be an older copy.
type Restore struct {
	// Held is nil unless the ledger is held.
	Held *ledger.Restored
	Head audit.Head
	// Newest is when the newest record was written; zero where there is none.
	Newest time.Time
	// OpenTasks are not CLOSED by this ledger; the deadline of OverdueTasks of them has passed. OpenLeases are not final.
	OpenTasks, OverdueTasks, OpenLeases int
}

// Restore says how the ledger stands. Where it is not held, only Head is set.
func (b *Broker) Restore(ctx context.Context) (Restore, error) {
	var out Restore
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		if out.Head, err = r.Head(); err != nil {
			return err
		}
		held, err := r.Restored()
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		out.Held = &held
		return out.count(r)
	})
	return out, storeFault(err)
}

// count reads what confirming is about.
func (x *Restore) count(r ledger.Reader) error {
	entries, err := r.Entries(max(0, x.Head.Size-1), 1, "")
	if err != nil {
		return err
	}
	for _, e := range entries {
		var rec audit.Record
		if err = json.Unmarshal(e.JSON, &rec); err != nil {
			return fmt.Errorf("read record %d: %w", e.Index, err)
		}
		x.Newest = rec.Time
	}
	stats, err := r.Stats()
	if err != nil {
		return err
	}
	for _, n := range stats.TasksByState {
		x.OpenTasks += n
	}
	for _, n := range stats.LeasesByState {
		x.OpenLeases += n
	}
	now := time.Now()
	due, err := r.DueTasks(now, math.MaxInt32)
	if err != nil {
		return err
	}
	for _, id := range due {
		t, err := r.Task(id)
		if err != nil {
			return err
		}
		if !now.Before(t.NotAfter) {
			x.OverdueTasks++
		}
	}
	return nil
}

// ConfirmRestore lets a held ledger go on. The size is that of the log which the caller has seen.
func (b *Broker) ConfirmRestore(ctx context.Context, c Caller, size int64, comment string) (Restore, error) {
	if head := b.ledger.Head(); head.Size != size {
		return Restore{}, fault.New(fault.InvalidArgument,
			"the ledger is not the one that was looked at; look again with stint restore show")
	}
	_, err := b.ledger.ConfirmRestore(ctx, audit.Record{
		V: 1, Time: time.Now().UTC(), Request: c.Request, Actor: c.actor(), Texts: commentText(comment),
	})
	if errors.Is(err, ledger.ErrNotHeld) {
		return Restore{}, fault.New(fault.InvalidArgument, "the ledger is not held; there is nothing to confirm")
	}
	if err != nil {
		return Restore{}, storeFault(err)
	}
	return b.Restore(ctx)
}
