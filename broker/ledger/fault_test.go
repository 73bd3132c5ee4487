package ledger_test

import (
	"errors"
	"testing"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

func TestFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fault func(s *faulty)
		want  error
		kept  int
	}{
		"begin fails":              {func(s *faulty) { s.begin.Store(true) }, ledger.ErrUnavailable, 0},
		"transaction lost":         {func(s *faulty) { s.lost.Store(true) }, ledger.ErrUnavailable, 0},
		"log fails":                {func(s *faulty) { s.put.Store(true) }, ledger.ErrUnavailable, 0},
		"commit fails":             {func(s *faulty) { s.commit.Store(true) }, ledger.ErrOutcomeUnknown, 0},
		"commit fails, but it was": {func(s *faulty) { s.commit.Store(true); s.keep.Store(true) }, ledger.ErrOutcomeUnknown, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			if _, err := f.insert(t, newTask(t, "before")); err != nil {
				t.Fatal(err)
			}
			test.fault(f.store)
			if _, err := f.insert(t, newTask(t, "meanwhile")); !errors.Is(err, test.want) || !errors.Is(err, errDisk) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if _, err := f.insert(t, newTask(t, "after")); err != nil {
				t.Errorf("after the fault: %v", err)
			}
			f.verify(t, 2+test.kept)
		})
	}
}

func TestReopenFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := f.insert(t, newTask(t, "before")); err != nil {
		t.Fatal(err)
	}
	f.store.commit.Store(true)
	f.store.reopen.Store(true)
	if _, err := f.insert(t, newTask(t, "x")); !errors.Is(err, ledger.ErrOutcomeUnknown) {
		t.Errorf("update: %v", err)
	}
	if err := <-f.ended; !errors.Is(err, errDisk) {
		t.Errorf("run: %v", err)
	}
	if _, err := f.insert(t, newTask(t, "y")); !errors.Is(err, ledger.ErrClosed) || !errors.Is(err, errDisk) {
		t.Errorf("update after the end: %v", err)
	}
}

// TestFenced: when somebody else writes to the log, nothing is written any more.
func TestFenced(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := f.insert(t, newTask(t, "x")); err != nil {
		t.Fatal(err)
	}
	tx, err := f.store.Store.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err = tx.PutLog(ledger.LogAppend{
		Epoch: 1, OldSize: 2, Records: []audit.Entry{{Index: 2, JSON: []byte("{}")}}, Hashes: make([][32]byte, 4), Checkpoint: []byte("x"),
	}); err != nil {
		t.Fatal(err)
	}
	if err = tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err = f.insert(t, newTask(t, "y")); !errors.Is(err, audit.ErrFenced) {
		t.Errorf("update: %v", err)
	}
	if err = <-f.ended; !errors.Is(err, audit.ErrFenced) {
		t.Errorf("run: %v", err)
	}
	if _, err = f.insert(t, newTask(t, "z")); !errors.Is(err, ledger.ErrClosed) || !errors.Is(err, audit.ErrFenced) {
		t.Errorf("update after the end: %v", err)
	}
	_, err = ledger.Open(t.Context(), ledger.Config{
		Store: f.store, Signer: f.key.Signer, Verifier: f.key.Verifier, Origin: f.key.Signer.Name(),
	})
	if !errors.Is(err, ledger.ErrMismatch) {
		t.Errorf("open what somebody else wrote to: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := f.insert(t, newTask(t, "x")); err != nil {
		t.Fatal(err)
	}
	other := newKey(t)
	_, err := ledger.Open(t.Context(), ledger.Config{Store: f.store, Signer: other.Signer, Verifier: other.Verifier, Origin: other.Signer.Name()})
	if !errors.Is(err, ledger.ErrMismatch) {
		t.Errorf("with another key: %v", err)
	}
	_, err = ledger.Open(t.Context(), ledger.Config{Store: f.store, Signer: f.key.Signer, Verifier: f.key.Verifier, Origin: "other"})
	if err == nil {
		t.Error("with an origin that is not the key's name: no error")
	}
	if _, err = ledger.Open(t.Context(), ledger.Config{Store: f.store}); err == nil {
		t.Error("without a key: no error")
	}
	f.stop()
	if err = <-f.ended; err != nil {
		t.Error(err)
	}
	if again := open(t, f.store, f.key); again.Head().Size != 2 {
		t.Errorf("opened again at %d", again.Head().Size)
	}
}
