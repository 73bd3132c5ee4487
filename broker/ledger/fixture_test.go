package ledger_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
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

// copyFile puts a copy of a ledger into a new directory.
func copyFile(t *testing.T, from, dir string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, sqlite.File), b, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// unmark makes a backup look like a plain copy of the file.
func unmark(t *testing.T, dir string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.File))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), "DELETE FROM restored")
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}
