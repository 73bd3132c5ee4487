package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
)

// errTxDone is returned to who uses a Tx after its function has returned.
var errTxDone = errors.New("transaction is over")

// Commit says where the audit log stands after an update.
type Commit struct {
	// First is the index of the first record that the update appended; Size when it appended none.
	First int64
	// Size is how many records the log holds, and Checkpoint the signed note over them.
	Size       int64
	Checkpoint []byte
}

// Tx is the transaction of one update: rows to read and write, and records to append. It lives as long as its function,
// and belongs to its goroutine.
type Tx struct {
	Rows
	log audit.Reader

	next    int64 // the index of the next record
	entries []audit.Entry
	texts   []audit.Text
	erase   []int64
	touched []task.ID
	kick    bool
	now     time.Time
	done    bool
	begins  int64 // the epoch that its record begins; zero for none
	begun   bool  // another transaction of the group began one
}

// Append adds a record to the audit log, which commits with the rows. A zero time becomes now. It returns the index that
// the record has once the update succeeds.
func (t *Tx) Append(r audit.Record) (int64, error) {
	if t.done {
		return 0, errTxDone
	}
	if r.Time.IsZero() {
		r.Time = t.now
	}
	entry, texts, err := audit.Encode(r, t.next)
	if err != nil {
		return 0, fmt.Errorf("append audit record: %w", err)
	}
	t.entries, t.texts = append(t.entries, entry), append(t.texts, texts...)
	t.next++
	return entry.Index, nil
}

// InsertTask adds a task, or answers ErrExists.
func (t *Tx) InsertTask(row task.Task) error {
	return t.wrote(row.ID, row.NextAt, t.Rows.InsertTask(row))
}

// UpdateTask replaces a task if it is still in the state from, else ErrStale.
func (t *Tx) UpdateTask(row task.Task, from task.State) error {
	return t.wrote(row.ID, row.NextAt, t.Rows.UpdateTask(row, from))
}

// InsertLease adds a lease, or answers ErrExists.
func (t *Tx) InsertLease(row lease.Lease) error {
	return t.wrote(row.Task, row.NextAt, t.Rows.InsertLease(row))
}

// UpdateLease replaces a lease if state and claim are still those of from, else ErrStale.
func (t *Tx) UpdateLease(row, from lease.Lease) error {
	due := row.NextAt
	if row.ClaimUntil.After(due) {
		due = row.ClaimUntil
	}
	return t.wrote(row.Task, due, t.Rows.UpdateLease(row, from))
}

// wrote notes whom a successful write concerns.
func (t *Tx) wrote(id task.ID, due time.Time, err error) error {
	if err != nil {
		return err
	}
	t.touched = append(t.touched, id)
	t.kick = t.kick || (!due.IsZero() && due.Before(t.now.Add(KickWithin)))
	return nil
}

// work is one update on its way through the writer.
type work struct {
	fn     func(*Tx) error
	taken  atomic.Bool // by the writer, or by a caller that gave up
	done   chan struct{}
	commit Commit
	err    error
}

// finish tells the caller. The writer calls it once for each work that it took.
func (w *work) finish(c Commit, err error) {
	w.commit, w.err = c, err
	close(w.done)
}

// Update runs fn in the next group's transaction and returns when that is durable. What fn returns as an error undoes
// what it wrote and comes back unchanged; ErrUnavailable and ErrClosed mean that nothing was written, ErrOutcomeUnknown
// that it may have been. A context that ends before fn was started withdraws it; once started, the outcome is waited for.
//
// The function runs on the writer's goroutine: it must do nothing but read, decide, and write. It runs at most once. A
// ledger that is held answers ErrHeld.
func (l *Ledger) Update(ctx context.Context, fn func(tx *Tx) error) (Commit, error) {
	if l.Held() {
		return Commit{}, ErrHeld
	}
	return l.update(ctx, fn)
}

// update is Update, also for a ledger that is held.
func (l *Ledger) update(ctx context.Context, fn func(tx *Tx) error) (Commit, error) {
	w := &work{fn: fn, done: make(chan struct{})}
	select {
	case <-l.closing:
		return Commit{}, l.closed()
	default:
	}
	select {
	case l.queue <- w:
	case <-l.closing:
		return Commit{}, l.closed()
	case <-ctx.Done():
		return Commit{}, ctx.Err()
	}
	select {
	case <-w.done:
		return w.commit, w.err
	case <-l.stopped:
		return l.withdraw(w, l.closed())
	case <-ctx.Done():
		return l.withdraw(w, ctx.Err())
	}
}

// withdraw takes back work that was not started, and waits for the outcome of work that was.
func (l *Ledger) withdraw(w *work, err error) (Commit, error) {
	if w.taken.CompareAndSwap(false, true) {
		return Commit{}, err
	}
	<-w.done
	return w.commit, w.err
}

// closed says why no more work is taken.
func (l *Ledger) closed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return fmt.Errorf("%w: %w", ErrClosed, l.cause)
	}
	return ErrClosed
}
