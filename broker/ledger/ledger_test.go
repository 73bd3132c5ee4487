package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/task"
)

var errDisk = errors.New("disk on fire")

// faulty is a store whose faults a test controls.
type faulty struct {
	*sqlite.Store
	begin, put, commit, reopen atomic.Bool // fail once
	keep                       atomic.Bool // a failed commit commits all the same
	lost                       atomic.Bool // the next nested write loses the transaction
	groups                     atomic.Int64
}

func (f *faulty) Begin(ctx context.Context) (ledger.StoreTx, error) {
	if f.begin.Swap(false) {
		return nil, errDisk
	}
	f.groups.Add(1)
	tx, err := f.Store.Begin(ctx)
	return &faultyTx{StoreTx: tx, f: f}, err
}

func (f *faulty) Reopen(ctx context.Context) error {
	if f.reopen.Swap(false) {
		return errDisk
	}
	return f.Store.Reopen(ctx)
}

type faultyTx struct {
	ledger.StoreTx
	f *faulty
}

func (t *faultyTx) Nested(fn func() error) error {
	if t.f.lost.Swap(false) {
		return fmt.Errorf("%w: %w", ledger.ErrTxLost, errDisk)
	}
	return t.StoreTx.Nested(fn)
}

func (t *faultyTx) PutLog(a ledger.LogAppend) error {
	if t.f.put.Swap(false) {
		return errDisk
	}
	return t.StoreTx.PutLog(a)
}

func (t *faultyTx) Commit() error {
	if !t.f.commit.Swap(false) {
		return t.StoreTx.Commit()
	}
	if t.f.keep.Swap(false) {
		return errors.Join(errDisk, t.StoreTx.Commit())
	}
	return errors.Join(errDisk, t.Rollback())
}

// fixture is a ledger on a faulty store.
type fixture struct {
	*ledger.Ledger
	store *faulty
	key   audit.Key
	stop  func()
	ended chan error
}

func newStore(t *testing.T) *faulty {
	t.Helper()
	s, err := sqlite.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &faulty{Store: s}
}

func newKey(t *testing.T) audit.Key {
	t.Helper()
	key, err := audit.CreateKey(t.TempDir()+"/key", "test.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func open(t *testing.T, store ledger.Store, key audit.Key) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Config{Store: store, Signer: key.Signer, Verifier: key.Verifier, Origin: key.Signer.Name()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{store: newStore(t), key: newKey(t), ended: make(chan error, 1)}
	f.Ledger = open(t, f.store, f.key)
	ctx, cancel := context.WithCancel(t.Context())
	f.stop = cancel
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		f.ended <- f.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
	})
	return f
}

func newTask(t *testing.T, name string) task.Task {
	t.Helper()
	id, err := task.NewID()
	if err != nil {
		t.Fatal(err)
	}
	return task.Task{ID: id, ShortName: name, Agent: "a", State: task.Active, RequestID: name, NextAt: time.Now().Add(time.Hour)}
}

// insert writes a task with a record.
func (f *fixture) insert(t *testing.T, row task.Task) (ledger.Commit, error) {
	t.Helper()
	return f.Update(t.Context(), func(tx *ledger.Tx) error {
		if err := tx.InsertTask(row); err != nil {
			return err
		}
		_, err := tx.Append(audit.Record{
			Event: audit.TaskDeclared, Task: row.ID.String(), Texts: map[string]string{"description": "text of " + row.ShortName},
		})
		return err
	})
}

// verify checks the whole log, and which tasks there are.
func (f *fixture) verify(t *testing.T, tasks int) {
	t.Helper()
	err := f.View(t.Context(), func(r ledger.Reader) error {
		got, err := r.ListTasks(ledger.TaskFilter{Limit: 1000})
		if err != nil || len(got) != tasks {
			t.Errorf("%d tasks, want %d: %v", len(got), tasks, err)
		}
		rep, err := audit.VerifyLog(t.Context(), r, audit.LogCheck{VerifierKey: f.key.Text})
		if rep.Size != int64(tasks)+1 {
			t.Errorf("%d records, want %d", rep.Size, tasks+1)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var commits []ledger.Commit
	for n := range 3 {
		c, err := f.insert(t, newTask(t, fmt.Sprint("t", n)))
		if err != nil {
			t.Fatal(err)
		}
		cp, err := audit.OpenCheckpoint(c.Checkpoint, f.key.Verifier)
		if err != nil || cp.Size != c.Size || c.First != int64(n)+1 || c.Size != c.First+1 {
			t.Errorf("commit %+v, checkpoint %+v: %v", c, cp, err)
		}
		commits = append(commits, c)
	}
	own := errors.New("own")
	_, err := f.Update(t.Context(), func(tx *ledger.Tx) error {
		if err := tx.InsertTask(newTask(t, "undone")); err != nil {
			return err
		}
		if _, err := tx.Append(audit.Record{Event: audit.TaskDeclared}); err != nil {
			return err
		}
		return own
	})
	if err != own { //nolint:errorlint // it must come back as it is
		t.Errorf("own error: %v", err)
	}
	c, err := f.Update(t.Context(), func(tx *ledger.Tx) error {
		return tx.PutResource(ledger.Resource{Name: "roles/x"})
	})
	if err != nil || c.First != 4 || c.Size != 4 || string(c.Checkpoint) != string(commits[2].Checkpoint) {
		t.Errorf("an update without a record: %+v: %v", c, err)
	}
	f.verify(t, 3)
}

func TestTxIsOverAfterItsFunction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var leaked *ledger.Tx
	if _, err := f.Update(t.Context(), func(tx *ledger.Tx) error { leaked = tx; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := leaked.Append(audit.Record{Event: audit.TaskDeclared}); err == nil {
		t.Error("a record was appended to a transaction that is over")
	}
}

// TestGroups: many writers share few transactions, each gets its own index, and a failing one disturbs nobody.
func TestGroups(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const writers, each = 32, 8
	own := errors.New("own")
	var mu sync.Mutex
	indexes := map[int64]bool{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				c, err := f.insert(t, newTask(t, fmt.Sprintf("t-%d-%d", w, n)))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				if indexes[c.First] {
					t.Errorf("index %d was given twice", c.First)
				}
				indexes[c.First] = true
				mu.Unlock()
				_, err = f.Update(t.Context(), func(tx *ledger.Tx) error {
					_, err = tx.Append(audit.Record{Event: audit.TaskDenied})
					return errors.Join(own, err)
				})
				if !errors.Is(err, own) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	f.verify(t, writers*each)
	if n := f.store.groups.Load(); n > writers*each {
		t.Errorf("%d groups for %d updates", n, 2*writers*each)
	}
}

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

// TestWithdraw: a context that ends takes back what was not started, and waits for what was.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	store, key := newStore(t), newKey(t)
	l := open(t, store, key)
	ctx, cancel := context.WithCancel(t.Context())
	unstarted := make(chan error, 1)
	go func() {
		_, err := l.Update(ctx, func(*ledger.Tx) error { t.Error("a withdrawn function ran"); return nil })
		unstarted <- err
	}()
	cancel()
	if err := <-unstarted; !errors.Is(err, context.Canceled) {
		t.Errorf("withdrawn: %v", err)
	}

	runCtx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(runCtx) }()
	ctx, cancel = context.WithCancel(t.Context())
	if _, err := l.Update(ctx, func(tx *ledger.Tx) error {
		cancel()
		return tx.InsertTask(newTask(t, "started"))
	}); err != nil {
		t.Errorf("started: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := l.Update(t.Context(), func(*ledger.Tx) error { return nil }); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if err := l.Run(t.Context()); err == nil {
		t.Error("it ran twice")
	}
}

// TestDrain: when Run ends, everything queued is either durable or refused, and the caller knows which.
func TestDrain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const writers = 400
	var wrote, refused atomic.Int64
	var wg sync.WaitGroup
	for n := range writers {
		wg.Go(func() {
			switch _, err := f.insert(t, newTask(t, fmt.Sprint("t", n))); {
			case err == nil:
				wrote.Add(1)
			case errors.Is(err, ledger.ErrClosed):
				refused.Add(1)
			default:
				t.Error(err)
			}
			if n == writers/2 {
				f.stop()
			}
		})
	}
	wg.Wait()
	if wrote.Load()+refused.Load() != writers {
		t.Errorf("%d written, %d refused", wrote.Load(), refused.Load())
	}
	f.verify(t, int(wrote.Load()))
}

func TestWatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	row, other := newTask(t, "row"), newTask(t, "other")
	changed, cancel := f.Subscribe(row.ID)
	quiet, cancelQuiet := f.Subscribe(other.ID)
	defer cancelQuiet()
	grown := f.Grown()
	if _, err := f.insert(t, row); err != nil {
		t.Fatal(err)
	}
	<-changed
	<-grown
	select {
	case <-f.Kicked():
		t.Error("kicked for what is due in an hour")
	case <-quiet:
		t.Error("told of another task")
	default:
	}
	id, err := lease.NewID()
	if err != nil {
		t.Fatal(err)
	}
	due := lease.Lease{ID: id, Task: row.ID, State: lease.Revoking, NextAt: time.Now()}
	if _, err = f.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertLease(due) }); err != nil {
		t.Fatal(err)
	}
	<-changed
	<-f.Kicked()
	cancel()
	claimed := due
	claimed.Claim, claimed.ClaimUntil = 1, time.Now().Add(time.Minute)
	if _, err = f.Update(t.Context(), func(tx *ledger.Tx) error { return tx.UpdateLease(claimed, due) }); err != nil {
		t.Fatal(err)
	}
	_, err = f.Update(t.Context(), func(tx *ledger.Tx) error { return tx.UpdateTask(row, task.Closed) })
	if !errors.Is(err, ledger.ErrStale) {
		t.Error(err)
	}
	select {
	case <-changed:
		t.Error("told after cancel")
	case <-f.Kicked():
		t.Error("kicked for what is claimed")
	default:
	}
}

func TestErase(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	row, other := newTask(t, "row"), newTask(t, "other")
	row.Description, row.Labels = "text of row", map[string]string{"k": "v"}
	for _, r := range []task.Task{row, other} {
		if _, err := f.insert(t, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{1, 0} {
		n, err := f.Erase(t.Context(), audit.Actor{ID: "admin"}, row.ID)
		if err != nil || n != want {
			t.Errorf("erased %d, want %d: %v", n, want, err)
		}
	}
	err := f.View(t.Context(), func(r ledger.Reader) error {
		got, err := r.Task(row.ID)
		if got.Description != "" || got.Labels != nil {
			t.Errorf("task after erasing: %+v", got)
		}
		texts, err2 := r.Texts(1)
		rest, err3 := r.Texts(2)
		if len(texts) != 0 || len(rest) != 1 {
			t.Errorf("texts after erasing: %v and %v", texts, rest)
		}
		rep, err4 := audit.VerifyLog(t.Context(), r, audit.LogCheck{VerifierKey: f.key.Text})
		if rep.Size != 4 || rep.Erased != 1 || rep.Texts != 1 {
			t.Errorf("log after erasing: %+v", rep)
		}
		return errors.Join(err, err2, err3, err4)
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := f.Erase(t.Context(), audit.Actor{}, task.ID{1}); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("erase what is not there: %v", err)
	}
}

func TestLow(t *testing.T) {
	t.Parallel()
	store, key := newStore(t), newKey(t)
	var free uint64
	var fail error
	l, err := ledger.Open(t.Context(), ledger.Config{
		Store: store, Signer: key.Signer, Verifier: key.Verifier, Origin: key.Signer.Name(),
		StopIssuingBelow: 100, FreeBytes: func() (uint64, error) { return free, fail },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free uint64
		fail error
		want bool
	}{{100, nil, false}, {99, nil, true}, {100, nil, false}, {100, errDisk, true}} {
		if free, fail = c.free, c.fail; l.Low() != c.want {
			t.Errorf("%d bytes free, error %v: low is not %v", c.free, c.fail, c.want)
		}
	}
	if open(t, store, key).Low() {
		t.Error("low without a limit")
	}
}

// TestReceiptFromLedger: a receipt made from a real ledger verifies.
func TestReceiptFromLedger(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	row := newTask(t, "row")
	if _, err := f.insert(t, row); err != nil {
		t.Fatal(err)
	}
	_, key, err := note.GenerateKey(nil, "x")
	if err != nil {
		t.Fatal(err)
	}
	err = f.View(t.Context(), func(r ledger.Reader) error {
		doc, berr := audit.BuildReceipt(r, row.ID.String())
		if berr != nil {
			return berr
		}
		if _, bad := audit.VerifyReceipt(doc, key); !errors.Is(bad, audit.ErrReceipt) {
			t.Errorf("with another key: %v", bad)
		}
		rep, verr := audit.VerifyReceipt(doc, f.key.Text)
		if rep.Texts != 1 || rep.Records != 1 {
			t.Errorf("report %+v", rep)
		}
		return verr
	})
	if err != nil {
		t.Error(err)
	}
}
