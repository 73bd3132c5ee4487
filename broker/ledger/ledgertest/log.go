package ledgertest

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

// appendLog makes n records and writes them as one group. Every third is of the task.
func appendLog(tb testing.TB, tx ledger.StoreTx, edge *audit.Edge, n int, task string) ([]audit.Entry, error) {
	tb.Helper()
	head, err := tx.Head()
	if err != nil {
		return nil, err
	}
	a := ledger.LogAppend{Epoch: head.Epoch, OldSize: head.Size}
	for i := range n {
		r := audit.Record{Event: audit.LeaseActive, Time: base(), Actor: audit.Actor{ID: "x"}}
		if (head.Size+int64(i))%3 == 0 {
			r.Task, r.Texts = task, map[string]string{"a": fmt.Sprintf("text %d", i), "b": "other"}
		}
		e, texts, err := audit.Encode(r, head.Size+int64(i))
		if err != nil {
			return nil, err
		}
		a.Records, a.Texts = append(a.Records, e), append(a.Texts, texts...)
		a.Hashes = edge.Append(a.Hashes, e.JSON)
	}
	a.Checkpoint = fmt.Appendf(nil, "checkpoint %d", edge.Size())
	return a.Records, tx.PutLog(a)
}

// testLog: entries come back as they were, and hashes as tlog computes them.
func testLog(t *testing.T, s *suite) {
	t.Helper()
	s.read(t, func(r ledger.Reader) error {
		head, err := r.Head()
		same(t, "head of an empty log", head, audit.Head{Epoch: head.Epoch})
		entries, err2 := r.Entries(0, 10, "")
		wants(t, "entries", err2, nil)
		same(t, "entries of an empty log", len(entries), 0)
		return err
	})
	var edge audit.Edge
	var all []audit.Entry
	for _, n := range []int{1, 2, 7, 1, 30} {
		s.write(t, func(tx ledger.StoreTx) error {
			entries, err := appendLog(t, tx, &edge, n, "some-task")
			all = append(all, entries...)
			return err
		})
	}
	s.read(t, func(r ledger.Reader) error {
		head, err := r.Head()
		wants(t, "head", err, nil)
		same(t, "size", head.Size, int64(len(all)))
		same(t, "checkpoint", string(head.Checkpoint), fmt.Sprintf("checkpoint %d", len(all)))
		got, err := r.Entries(0, 1000, "")
		wants(t, "entries", err, nil)
		same(t, "all entries", got, all)
		got, err = r.Entries(3, 4, "")
		wants(t, "entries", err, nil)
		same(t, "some entries", got, all[3:7])
		loaded, err := audit.LoadEdge(r, head.Size)
		wants(t, "load edge", err, nil)
		same(t, "root of the loaded edge", loaded.Root(), edge.Root())
		return nil
	})
	var want [][32]byte
	for i, e := range all {
		hashes, err := tlog.StoredHashes(int64(i), e.JSON, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			out := make([]tlog.Hash, len(indexes))
			for j, index := range indexes {
				out[j] = want[index]
			}
			return out, nil
		}))
		wants(t, "stored hashes", err, nil)
		for _, h := range hashes {
			want = append(want, h)
		}
	}
	indexes := make([]int64, len(want))
	for i := range indexes {
		indexes[i] = int64(i)
	}
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Hashes(indexes)
		same(t, "stored hashes", got, want)
		_, missing := r.Hashes([]int64{tlog.StoredHashIndex(0, int64(len(all)))})
		if missing == nil {
			t.Error("a hash past the end was found")
		}
		return err
	})
}

func testLogTasks(t *testing.T, s *suite) {
	t.Helper()
	var edge audit.Edge
	s.write(t, func(tx ledger.StoreTx) error {
		_, err := appendLog(t, tx, &edge, 10, "some-task")
		return err
	})
	indexes := func(entries []audit.Entry) []int64 {
		var out []int64
		for _, e := range entries {
			out = append(out, e.Index)
		}
		return out
	}
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Entries(0, 10, "some-task")
		wants(t, "entries", err, nil)
		same(t, "entries of the task", indexes(got), []int64{0, 3, 6, 9})
		got, err = r.Entries(1, 2, "some-task")
		wants(t, "entries", err, nil)
		same(t, "page of the task", indexes(got), []int64{3, 6})
		got, err = r.Entries(0, 10, "no-task")
		same(t, "entries of another task", len(got), 0)
		return err
	})
}

func testTexts(t *testing.T, s *suite) {
	t.Helper()
	var edge audit.Edge
	s.write(t, func(tx ledger.StoreTx) error {
		_, err := appendLog(t, tx, &edge, 4, "some-task")
		return err
	})
	fields := func(index int64) []string {
		var out []string
		s.read(t, func(r ledger.Reader) error {
			texts, err := r.Texts(index)
			entries, err2 := r.Entries(index, 1, "")
			wants(t, "entries", err2, nil)
			for _, x := range texts {
				hash := audit.HashOf(x.Salt, x.Text).String()
				if !bytes.Contains(entries[0].JSON, []byte(hash)) {
					t.Errorf("text %s at %d is not what was hashed", x.Field, index)
				}
				out = append(out, x.Field)
			}
			return err
		})
		return out
	}
	same(t, "texts at 0", fields(0), []string{"a", "b"})
	same(t, "texts at 1", len(fields(1)), 0)
	s.write(t, func(tx ledger.StoreTx) error {
		head, err := tx.Head()
		wants(t, "head", err, nil)
		e, _, err := audit.Encode(audit.Record{Event: audit.TextErased, Time: base()}, head.Size)
		wants(t, "encode", err, nil)
		return tx.PutLog(ledger.LogAppend{
			Epoch: head.Epoch, OldSize: head.Size, Records: []audit.Entry{e}, Hashes: edge.Append(nil, e.JSON),
			Checkpoint: []byte("x"), Erase: []int64{0},
		})
	})
	same(t, "texts at 0 after erasing", len(fields(0)), 0)
	same(t, "texts at 3 after erasing those at 0", fields(3), []string{"a", "b"})
}

// testFencing: an append from where the head is not changes nothing.
func testFencing(t *testing.T, s *suite) {
	t.Helper()
	var edge audit.Edge
	s.write(t, func(tx ledger.StoreTx) error {
		_, err := appendLog(t, tx, &edge, 3, "")
		return err
	})
	s.write(t, func(tx ledger.StoreTx) error {
		head, err := tx.Head()
		wants(t, "head", err, nil)
		e, _, err := audit.Encode(audit.Record{Event: audit.LogStarted, Time: base()}, 2)
		wants(t, "encode", err, nil)
		hashes := edge.Append(nil, e.JSON)
		for _, a := range []ledger.LogAppend{
			{Epoch: head.Epoch, OldSize: 2}, {Epoch: head.Epoch, OldSize: 4}, {Epoch: head.Epoch + 1, OldSize: 3},
		} {
			a.Records, a.Hashes, a.Checkpoint = []audit.Entry{e}, hashes, []byte("fenced")
			wants(t, "append", tx.PutLog(a), audit.ErrFenced)
		}
		return nil
	})
	s.read(t, func(r ledger.Reader) error {
		head, err := r.Head()
		same(t, "size", head.Size, int64(3))
		same(t, "checkpoint", string(head.Checkpoint), "checkpoint 3")
		return err
	})
}
