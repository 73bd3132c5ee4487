package ledgertest

import (
	"errors"
	"testing"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

// testRestored: the note that a ledger is an older copy lasts until an append begins an epoch, which takes effect as a whole
// or not at all, and only from where the caller left the head.
func testRestored(t *testing.T, s *suite) {
	t.Helper()
	var edge audit.Edge
	s.write(t, func(tx ledger.StoreTx) error {
		_, err := appendLog(t, tx, &edge, 3, "")
		return err
	})
	noted := func(what string, want ledger.Restored, sentinel error) {
		t.Helper()
		s.read(t, func(r ledger.Reader) error {
			got, err := r.Restored()
			wants(t, what, err, sentinel)
			if sentinel == nil {
				same(t, what, got, want)
			}
			return nil
		})
	}
	noted("before any note", ledger.Restored{}, ledger.ErrNotFound)
	plain := ledger.Restored{Found: audit.FoundCopy, At: base()}
	s.write(t, func(tx ledger.StoreTx) error { return tx.PutRestored(plain) })
	noted("a note", plain, nil)
	note := ledger.Restored{Found: audit.FoundOlder, At: base().Add(1), Known: []byte("a checkpoint")}
	own := errors.New("own")
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "nested", tx.Nested(func() error { return errors.Join(tx.PutRestored(note), own) }), own)
		return nil
	})
	noted("a note that was undone", plain, nil)
	s.write(t, func(tx ledger.StoreTx) error { return tx.PutRestored(note) })
	s.close(t)
	s.store = s.open(t, s.dir)
	noted("a note that took another's place, after Close and Open", note, nil)

	e, _, err := audit.Encode(audit.Record{Event: audit.LogRestored, Time: base()}, 3)
	wants(t, "encode", err, nil)
	begin := ledger.LogAppend{
		Epoch: 1, OldSize: 3, Begins: 4, Records: []audit.Entry{e}, Hashes: edge.Append(nil, e.JSON), Checkpoint: []byte("epoch 4"),
	}
	s.write(t, func(tx ledger.StoreTx) error {
		for _, stale := range []ledger.LogAppend{{Epoch: 1, OldSize: 2}, {Epoch: 2, OldSize: 3}, {Epoch: 4, OldSize: 3}} {
			stale.Begins, stale.Records, stale.Hashes, stale.Checkpoint = begin.Begins, begin.Records, begin.Hashes, begin.Checkpoint
			wants(t, "begin an epoch from elsewhere", tx.PutLog(stale), audit.ErrFenced)
		}
		return nil
	})
	noted("after appends that were fenced", note, nil)
	s.write(t, func(tx ledger.StoreTx) error { return tx.PutLog(begin) })
	noted("after an epoch began", ledger.Restored{}, ledger.ErrNotFound)
	s.write(t, func(tx ledger.StoreTx) error {
		head, err := tx.Head()
		same(t, "head", head, audit.Head{Epoch: 4, Size: 4, Checkpoint: []byte("epoch 4")})
		begin.OldSize = 4
		wants(t, "an append of the old epoch", tx.PutLog(begin), audit.ErrFenced)
		_, err2 := appendLog(t, tx, &edge, 2, "")
		return errors.Join(err, err2)
	})
	s.read(t, func(r ledger.Reader) error {
		head, err := r.Head()
		same(t, "epoch after another append", head.Epoch, int64(4))
		same(t, "size after another append", head.Size, int64(6))
		return err
	})
}
