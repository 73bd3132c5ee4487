package ledger

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker/audit"
)

// Restored says that a ledger is an older copy of what there was. As long as the store holds it, the ledger is held.
type Restored struct {
	// Found is how that is known.
	Found audit.Found
	// At is when the copy was made, or when it was found that the ledger is older.
	At time.Time
	// Known is the newest checkpoint of what was lost that was kept elsewhere; nil where none was.
	Known []byte
}

// Restored returns what the ledger is held for; false when it is not.
func (l *Ledger) Restored() (Restored, bool) {
	if r := l.restored.Load(); r != nil {
		return *r, true
	}
	return Restored{}, false
}

// Held reports whether the ledger takes no change until ConfirmRestore. Once it is false, it stays so.
func (l *Ledger) Held() bool { return l.restored.Load() != nil }

// Confirmed returns a channel that is closed when the ledger is not held, or no longer.
func (l *Ledger) Confirmed() <-chan struct{} { return l.confirmed }

// release lets changes in.
func (l *Ledger) release() {
	l.restored.Store(nil)
	select {
	case <-l.confirmed:
	default:
		close(l.confirmed)
	}
}

// hold finds out whether the ledger is an older copy, and notes it in the store: what it was found by may be gone at the
// next start.
func (l *Ledger) hold(ctx context.Context) error {
	held, known := l.restored.Load(), l.cfg.Known
	if known != nil {
		older, err := l.older(ctx, known)
		if err != nil {
			return err
		}
		if !older {
			known = nil
		}
	}
	switch {
	case held == nil && known == nil:
		l.release()
		return nil
	case held == nil:
		held = &Restored{Found: audit.FoundOlder, At: time.Now().UTC(), Known: known}
	case known == nil || string(held.Known) == string(known):
		return nil
	default:
		held = &Restored{Found: held.Found, At: held.At, Known: known}
	}
	tx, err := l.cfg.Store.Begin(ctx)
	if err != nil {
		return fmt.Errorf("note that the ledger is an older copy: %w", err)
	}
	if err = tx.PutRestored(*held); err != nil {
		return errors.Join(fmt.Errorf("note that the ledger is an older copy: %w", err), tx.Rollback())
	}
	if err = tx.Commit(); err != nil {
		return fmt.Errorf("note that the ledger is an older copy: %w", err)
	}
	l.restored.Store(held)
	return nil
}

// older reports whether a checkpoint that was kept elsewhere is of records that the ledger does not hold.
func (l *Ledger) older(ctx context.Context, signed []byte) (bool, error) {
	known, err := audit.OpenCheckpoint(signed, l.cfg.Verifier)
	if err != nil {
		return false, fmt.Errorf("the newest checkpoint kept outside the ledger: %w", err)
	}
	switch head, epoch := l.Head(), known.Epoch(); {
	case epoch != head.Epoch:
		return epoch > head.Epoch, nil // what became of an epoch before was confirmed
	case known.Size > head.Size:
		return true, nil
	}
	var edge audit.Edge
	err = l.ViewLog(ctx, func(r audit.Reader) error {
		var cause error
		edge, cause = audit.LoadEdge(r, known.Size)
		return cause
	})
	if err != nil {
		return false, fmt.Errorf("read the log's edge at %d records: %w", known.Size, err)
	}
	return edge.Root() != known.Root, nil
}

// ConfirmRestore lets a held ledger go on: a new epoch of its log begins with a record that says who confirmed it (actor,
// request, texts) and what is known of what was lost. It answers ErrNotHeld where there is nothing to confirm.
func (l *Ledger) ConfirmRestore(ctx context.Context, by audit.Record) (Commit, error) {
	return l.update(ctx, func(tx *Tx) error {
		held := l.restored.Load()
		if held == nil || tx.begun {
			return ErrNotHeld
		}
		restore, err := l.restoration(*held, tx.next)
		if err != nil {
			return err
		}
		by.Event, by.Restore = audit.LogRestored, &restore
		_, err = tx.Append(by)
		tx.begins = restore.Epoch
		return err
	})
}

// restoration is what the first record of the next epoch says.
func (l *Ledger) restoration(held Restored, size int64) (audit.Restore, error) {
	r := audit.Restore{At: held.At, Found: held.Found, Size: size, Epoch: l.Head().Epoch + 1}
	if held.Known == nil {
		return r, nil
	}
	known, err := audit.OpenCheckpoint(held.Known, l.cfg.Verifier)
	if err != nil {
		return r, fmt.Errorf("the newest checkpoint kept outside the ledger: %w", err)
	}
	r.KnownEpoch, r.KnownSize, r.KnownRoot = known.Epoch(), known.Size, hex.EncodeToString(known.Root[:])
	r.Epoch = max(r.Epoch, known.Epoch()+1)
	return r, nil
}
