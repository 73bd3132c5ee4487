package sqlite

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

// rows reads, and inside a tx writes, what ledger.Reader has.
type rows struct {
	s *session
}

// tx is the write transaction.
type tx struct {
	rows
}

var (
	_ ledger.Store   = (*Store)(nil)
	_ ledger.StoreTx = (*tx)(nil)
)

// Begin starts the write transaction.
func (s *Store) Begin(context.Context) (ledger.StoreTx, error) {
	c, err := s.current()
	if err != nil {
		return nil, err
	}
	if c.writer == nil {
		return nil, fmt.Errorf("%w: store is open for reading only", ledger.ErrUnavailable)
	}
	w := c.writer
	w.lost = nil
	if s.walLong.Swap(false) {
		if err := w.writeBack(); err != nil { //nolint:contextcheck // statements are short; a context each costs a goroutine each
			return nil, err
		}
	}
	if _, err := w.exec("BEGIN IMMEDIATE"); err != nil { //nolint:contextcheck // statements are short; a context each costs a goroutine each
		return nil, err
	}
	return &tx{rows{w}}, nil
}

// Nested runs fn in a savepoint. ErrTxLost means that only Rollback is left.
func (t *tx) Nested(fn func() error) error {
	if _, err := t.s.exec("SAVEPOINT nested"); err != nil {
		return lost(err)
	}
	err := fn()
	if err != nil {
		if _, rerr := t.s.exec("ROLLBACK TO nested"); rerr != nil {
			return lost(rerr)
		}
	}
	if _, rerr := t.s.exec("RELEASE nested"); rerr != nil {
		return lost(rerr)
	}
	return err
}

func lost(err error) error { return fmt.Errorf("%w: %w", ledger.ErrTxLost, err) }

// Commit makes everything durable: with synchronous=FULL the WAL is synced before it returns.
func (t *tx) Commit() error {
	_, err := t.s.exec("COMMIT")
	return err
}

// Rollback undoes everything. That SQLite may have done so by itself is no error.
func (t *tx) Rollback() error {
	gone := t.s.lost != nil
	t.s.lost = nil
	_, err := t.s.exec("ROLLBACK")
	t.s.lost = nil
	if gone {
		err = nil
	}
	return err
}

// PutLog writes entries, texts and the head, on the condition that the head is where the caller left it.
func (t *tx) PutLog(a ledger.LogAppend) error {
	size, epoch := a.OldSize+int64(len(a.Records)), a.Epoch
	if a.Begins != 0 {
		epoch = a.Begins
	}
	n, err := t.s.exec("UPDATE audit_head SET epoch = ?, size = ?, checkpoint = ? WHERE one = 1 AND epoch = ? AND size = ?",
		epoch, size, a.Checkpoint, a.Epoch, a.OldSize)
	if err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("append at %d in epoch %d: %w", a.OldSize, a.Epoch, audit.ErrFenced)
	}
	if a.Begins != 0 {
		if _, err := t.s.exec("DELETE FROM restored"); err != nil {
			return err
		}
	}
	hashes := a.Hashes
	for i, e := range a.Records {
		// Record n comes with its own hash and one for each subtree that it completes.
		count := 1 + bits.TrailingZeros64(uint64(a.OldSize)+uint64(i)+1) //nolint:gosec // a size is never negative
		if len(hashes) < count {
			return fmt.Errorf("append at %d: hashes are missing for record %d", a.OldSize, e.Index)
		}
		_, err := t.s.exec("INSERT INTO audit_entries (idx, event, task, hashes, json) VALUES (?, ?, ?, ?, ?)",
			e.Index, string(e.Event), e.Task, join(hashes[:count]), e.JSON)
		if err != nil {
			return err
		}
		hashes = hashes[count:]
	}
	for _, x := range a.Texts {
		_, err := t.s.exec("INSERT INTO audit_texts (idx, field, salt, text) VALUES (?, ?, ?, ?)",
			x.Index, x.Field, x.Salt[:], x.Text)
		if err != nil {
			return err
		}
	}
	for _, index := range a.Erase {
		if _, err := t.s.exec("DELETE FROM audit_texts WHERE idx = ?", index); err != nil {
			return err
		}
	}
	return nil
}

func join(hashes [][32]byte) []byte {
	b := make([]byte, 0, 32*len(hashes))
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}
