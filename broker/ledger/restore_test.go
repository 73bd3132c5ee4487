package ledger_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

// lineage is a ledger with an older copy of it.
type lineage struct {
	key    audit.Key
	dir    string
	copied string
	known  [][]byte // a checkpoint after each task
}

// newLineage writes two tasks, copies the ledger, and writes two more.
func newLineage(t *testing.T) *lineage {
	t.Helper()
	x := &lineage{key: newKey(t), dir: t.TempDir()}
	x.copied = x.dir + "/copied.db"
	x.with(t, x.dir+"/lost", nil, func(f *fixture) {
		for i, name := range []string{"one", "two", "three", "four"} {
			commit, err := f.insert(t, newTask(t, name))
			if err != nil {
				t.Fatal(err)
			}
			x.known = append(x.known, commit.Checkpoint)
			if i == 1 {
				if err := f.store.Backup(t.Context(), x.copied); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	return x
}

// with opens the ledger of a directory, runs it, and closes it after fn.
func (x *lineage) with(t *testing.T, dir string, known []byte, fn func(f *fixture)) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{store: &faulty{Store: s}, key: x.key}
	f.Ledger, err = ledger.Open(t.Context(), ledger.Config{
		Store: f.store, Signer: x.key.Signer, Verifier: x.key.Verifier, Origin: x.key.Signer.Name(), Known: known,
	})
	if err != nil {
		t.Fatal(errors.Join(err, s.Close()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	fn(f)
	cancel()
	running.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// put puts the older copy in a directory of its own.
func (x *lineage) put(t *testing.T, name string) string {
	t.Helper()
	dir := x.dir + "/" + name
	copyFile(t, x.copied, dir)
	return dir
}

// putPlain is put of a plain file, which does not say that it is a copy.
func (x *lineage) putPlain(t *testing.T, name string) string {
	t.Helper()
	dir := x.put(t, name)
	unmark(t, dir)
	return dir
}

func (f *fixture) confirm(t *testing.T) (ledger.Commit, error) {
	t.Helper()
	uid := uint32(1000)
	return f.ConfirmRestore(t.Context(), audit.Record{Actor: audit.Actor{ID: "uid:1000", UID: &uid}})
}

// TestHeldUntilConfirmed: a ledger that is an older copy takes no change, however it is known that it is one, and also after
// another start without what it was known by. Confirmed, it goes on in a new epoch that verifies.
func TestHeldUntilConfirmed(t *testing.T) {
	t.Parallel()
	x := newLineage(t)
	for name, c := range map[string]struct {
		dir   string
		known []byte
		want  audit.Restore
	}{
		"a copy by its own word":         {x.put(t, "word"), nil, audit.Restore{Epoch: 2, Found: audit.FoundCopy, Size: 3}},
		"a copy, and what was lost":      {x.put(t, "both"), x.known[3], audit.Restore{Epoch: 2, Found: audit.FoundCopy, Size: 3, KnownEpoch: 1, KnownSize: 5}},
		"a plain file, and a greater":    {x.putPlain(t, "plain"), x.known[3], audit.Restore{Epoch: 2, Found: audit.FoundOlder, Size: 3, KnownEpoch: 1, KnownSize: 5}},
		"an empty one, and a greater":    {x.dir + "/empty", x.known[3], audit.Restore{Epoch: 2, Found: audit.FoundOlder, Size: 0, KnownEpoch: 1, KnownSize: 5}},
		"other records of the same size": {x.rewritten(t), x.known[1], audit.Restore{Epoch: 2, Found: audit.FoundOlder, Size: 3, KnownEpoch: 1, KnownSize: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x.with(t, c.dir, c.known, func(f *fixture) { heldStill(t, f) })
			x.with(t, c.dir, nil, func(f *fixture) {
				heldStill(t, f)
				commit, err := f.confirm(t)
				if err != nil || commit.First != c.want.Size {
					t.Fatalf("confirmed at %d: %v", commit.First, err)
				}
				<-f.Confirmed()
				if _, err := f.confirm(t); !errors.Is(err, ledger.ErrNotHeld) {
					t.Errorf("confirmed again: %v", err)
				}
				if _, err := f.insert(t, newTask(t, "after")); err != nil || f.Held() {
					t.Errorf("after the confirmation: %v", err)
				}
			})
			x.with(t, c.dir, c.known, func(f *fixture) { x.verifies(t, f, c.want) })
		})
	}
}

// heldStill expects a ledger that takes no change and did not grow.
func heldStill(t *testing.T, f *fixture) {
	t.Helper()
	before := f.Head()
	if _, err := f.insert(t, newTask(t, "meanwhile")); !errors.Is(err, ledger.ErrHeld) || !f.Held() {
		t.Errorf("a held ledger took a change: %v", err)
	}
	select {
	case <-f.Confirmed():
		t.Error("nobody confirmed")
	default:
	}
	if after := f.Head(); after.Size != before.Size || after.Epoch != before.Epoch {
		t.Errorf("it went from %d to %d", before.Size, after.Size)
	}
}

// verifies expects a log in its second epoch that verifies against every checkpoint of the first.
func (x *lineage) verifies(t *testing.T, f *fixture, want audit.Restore) {
	t.Helper()
	if f.Held() || f.Head().Epoch != want.Epoch {
		t.Fatalf("held %v, in epoch %d", f.Held(), f.Head().Epoch)
	}
	known := x.known
	if want.KnownSize == want.Size {
		known = nil // of a log that was forked, which no checkpoint forgives
	}
	err := f.ViewLog(t.Context(), func(r audit.Reader) error {
		rep, err := audit.VerifyLog(t.Context(), r, audit.LogCheck{VerifierKey: x.key.Text, Known: known})
		if len(rep.Restores) != 1 {
			t.Fatalf("restores %+v, %v", rep.Restores, err)
		}
		got := rep.Restores[0]
		if got.Actor.UID == nil || *got.Actor.UID != 1000 || (got.KnownSize > 0) != (got.KnownRoot != "") {
			t.Errorf("the record says %+v", got)
		}
		got.At, got.KnownRoot = time.Time{}, ""
		if got.Restore != want {
			t.Errorf("the record says %+v, want %+v", got.Restore, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRestoredTwice: a second restore, to before the first, begins an epoch after both; and what is found outside of the
// epoch that was confirmed holds nothing.
func TestRestoredTwice(t *testing.T) {
	t.Parallel()
	x := newLineage(t)
	first := x.putPlain(t, "first")
	var second []byte
	x.with(t, first, x.known[3], func(f *fixture) {
		commit, err := f.confirm(t)
		if err != nil {
			t.Fatal(err)
		}
		second = commit.Checkpoint
	})
	x.with(t, first, x.known[3], func(f *fixture) { // the crash came before the new epoch was exported
		if f.Held() {
			t.Error("held again for what was confirmed to be lost")
		}
	})
	x.known = append(x.known, second)
	again := x.putPlain(t, "again")
	x.with(t, again, second, func(f *fixture) {
		heldStill(t, f)
		if _, err := f.confirm(t); err != nil {
			t.Fatal(err)
		}
		x.verifies(t, f, audit.Restore{Epoch: 3, Found: audit.FoundOlder, Size: 3, KnownEpoch: 2, KnownSize: 4})
	})
}

// TestNotHeld: what is known elsewhere and is in the ledger holds nothing; what is no checkpoint of it is refused.
func TestNotHeld(t *testing.T) {
	t.Parallel()
	x := newLineage(t)
	for i, known := range append(x.known, nil) {
		x.with(t, x.dir+"/lost", known, func(f *fixture) {
			if f.Held() {
				t.Errorf("held for checkpoint %d", i)
			}
			if _, err := f.confirm(t); !errors.Is(err, ledger.ErrNotHeld) {
				t.Errorf("confirmed what was not held: %v", err)
			}
		})
	}
	s, err := sqlite.Open(t.Context(), x.dir+"/lost")
	if err != nil {
		t.Fatal(err)
	}
	_, err = ledger.Open(t.Context(), ledger.Config{
		Store: s, Signer: x.key.Signer, Verifier: x.key.Verifier, Origin: x.key.Signer.Name(), Known: []byte("nonsense"),
	})
	if err = errors.Join(err, s.Close()); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("a checkpoint that is none: %v", err)
	}
}

// TestConfirmFails: a confirmation whose commit fails is not taken for one unless it is on disk.
func TestConfirmFails(t *testing.T) {
	t.Parallel()
	x := newLineage(t)
	for name, keep := range map[string]bool{"undone": false, "kept": true} {
		x.with(t, x.put(t, name), nil, func(f *fixture) {
			f.store.commit.Store(true)
			f.store.keep.Store(keep)
			if _, err := f.confirm(t); !errors.Is(err, ledger.ErrOutcomeUnknown) {
				t.Errorf("%s: %v", name, err)
			}
			if f.Held() == keep {
				t.Errorf("%s: held is %v", name, f.Held())
			}
			if !keep {
				heldStill(t, f)
				return
			}
			<-f.Confirmed()
			if _, err := f.insert(t, newTask(t, "after")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestConfirmedAtOnce: of many who confirm, one does.
func TestConfirmedAtOnce(t *testing.T) {
	t.Parallel()
	x := newLineage(t)
	x.with(t, x.put(t, "many"), nil, func(f *fixture) {
		outcomes := make(chan error)
		for range 20 {
			go func() {
				_, err := f.ConfirmRestore(t.Context(), audit.Record{Actor: audit.Actor{ID: "uid:0"}})
				outcomes <- err
			}()
		}
		confirmed := 0
		for range 20 {
			switch err := <-outcomes; {
			case err == nil:
				confirmed++
			case !errors.Is(err, ledger.ErrNotHeld):
				t.Error(err)
			}
		}
		if confirmed != 1 || f.Head().Size != 4 || f.Head().Epoch != 2 {
			t.Errorf("%d confirmed; the log has %d records in epoch %d", confirmed, f.Head().Size, f.Head().Epoch)
		}
	})
}

// rewritten returns a ledger with as many records as the copy, and others.
func (x *lineage) rewritten(t *testing.T) string {
	t.Helper()
	dir := x.dir + "/rewritten"
	x.with(t, dir, nil, func(f *fixture) {
		for _, name := range []string{"a", "b"} {
			if _, err := f.insert(t, newTask(t, name)); err != nil {
				t.Fatal(err)
			}
		}
	})
	return dir
}
