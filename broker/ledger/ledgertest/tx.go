package ledgertest

import (
	"errors"
	"testing"

	"github.com/stint-dev/stint/broker/ledger"
)

func testNested(t *testing.T, s *suite) {
	t.Helper()
	kept, undone, after := newTask(t, 1, "a"), newTask(t, 2, "a"), newTask(t, 3, "a")
	own := errors.New("own")
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "nested", tx.Nested(func() error { return tx.InsertTask(kept) }), nil)
		err := tx.Nested(func() error {
			wants(t, "insert", tx.InsertTask(undone), nil)
			_, err := tx.Task(undone.ID)
			wants(t, "own write is seen", err, nil)
			return own
		})
		if err != own { //nolint:errorlint // it must come back as it is
			t.Errorf("nested: %v, want %v", err, own)
		}
		wants(t, "nested after an error", tx.Nested(func() error { return tx.InsertTask(after) }), nil)
		wants(t, "a taken key inside", tx.Nested(func() error {
			wants(t, "insert", tx.InsertTask(kept), ledger.ErrExists)
			return nil
		}), nil)
		return nil
	})
	s.read(t, func(r ledger.Reader) error {
		_, err := r.Task(kept.ID)
		wants(t, "kept", err, nil)
		_, err = r.Task(undone.ID)
		wants(t, "undone", err, ledger.ErrNotFound)
		_, err = r.Task(after.ID)
		wants(t, "after", err, nil)
		return nil
	})
}

func testRollback(t *testing.T, s *suite) {
	t.Helper()
	row := newTask(t, 1, "a")
	tx, err := s.store.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "insert", tx.InsertTask(row), nil)
	wants(t, "rollback", tx.Rollback(), nil)
	s.read(t, func(r ledger.Reader) error {
		_, err := r.Task(row.ID)
		wants(t, "rolled back", err, ledger.ErrNotFound)
		return nil
	})
	s.write(t, func(tx ledger.StoreTx) error { return tx.InsertTask(row) })
}

// testSnapshot: a view sees only what is committed, and goes on seeing that.
func testSnapshot(t *testing.T, s *suite) {
	t.Helper()
	first, second := newTask(t, 1, "a"), newTask(t, 2, "a")
	s.write(t, func(tx ledger.StoreTx) error { return tx.InsertTask(first) })
	tx, err := s.store.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "insert", tx.InsertTask(second), nil)
	s.read(t, func(r ledger.Reader) error {
		_, err = r.Task(second.ID)
		wants(t, "before the commit", err, ledger.ErrNotFound)
		wants(t, "commit beside a view", tx.Commit(), nil)
		_, err = r.Task(second.ID)
		wants(t, "in the same view after the commit", err, ledger.ErrNotFound)
		return nil
	})
	own := errors.New("own")
	err = s.store.View(t.Context(), func(r ledger.Reader) error {
		_, err = r.Task(second.ID)
		wants(t, "in a new view", err, nil)
		return own
	})
	wants(t, "the function's own error", err, own)
}

func testReopen(t *testing.T, s *suite) {
	t.Helper()
	row := newTask(t, 1, "a")
	s.write(t, func(tx ledger.StoreTx) error { return tx.InsertTask(row) })
	check := func(what string) {
		t.Helper()
		s.read(t, func(r ledger.Reader) error {
			got, err := r.Task(row.ID)
			same(t, what, got, row)
			return err
		})
	}
	if err := s.store.Reopen(t.Context()); err != nil {
		t.Fatalf("reopen: %v", err)
	}
	check("after Reopen")
	tx, err := s.store.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "insert", tx.InsertTask(newTask(t, 2, "a")), nil)
	if err := s.store.Reopen(t.Context()); err != nil {
		t.Fatalf("reopen in the middle of a transaction: %v", err)
	}
	s.read(t, func(r ledger.Reader) error {
		tasks, err := r.ListTasks(ledger.TaskFilter{Limit: 10})
		same(t, "tasks after a discarded transaction", len(tasks), 1)
		return err
	})
	s.write(t, func(tx ledger.StoreTx) error { return tx.InsertTask(newTask(t, 3, "a")) })
	s.close(t)
	s.store = s.open(t, s.dir)
	check("after Close and Open")
}
