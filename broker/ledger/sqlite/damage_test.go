package sqlite_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/task"
)

// pageSize is SQLite's.
const pageSize = 4096

// spoil overwrites every page of a file that holds a text, as a disk that fails would, and returns how many.
func spoil(t *testing.T, file, text string) int {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for at := 0; at+pageSize <= len(raw); at += pageSize {
		if page := raw[at : at+pageSize]; bytes.Contains(page, []byte(text)) {
			_, _ = rand.Read(page) // never fails
			n++
		}
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err != nil || n == 0 {
		t.Fatalf("%d pages hold %q: %v", n, text, err)
	}
	return n
}

// TestDamagedPage: a page that is overwritten under a running ledger is told, once and as what it is; nothing is
// acknowledged by it, and what is elsewhere goes on.
func TestDamagedPage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	core, logged := observer.New(zap.ErrorLevel)
	l := openLedgerOn(t, openStore(t, dir), zap.New(core))
	rows := make([]task.Task, 60)
	for i := range rows {
		rows[i] = newTask(t, fmt.Sprint("t", i))
		rows[i].Description = fmt.Sprintf("what task %d is about: %s", i, strings.Repeat("x", 1000))
		if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(rows[i]) }); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, sqlite.File)
	if _, err := raw(t, file).ExecContext(context.WithoutCancel(t.Context()), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	lost := rows[30]
	t.Logf("%d pages spoilt", spoil(t, file, "what task 30 is about"))
	read := func(r ledger.Reader) error {
		_, err := r.Task(lost.ID)
		return err
	}
	if l.Damaged() != nil {
		t.Errorf("damaged before it was looked at: %v", l.Damaged())
	}
	appendOne := func() {
		t.Helper()
		_, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
			_, err := tx.Append(audit.Record{Event: audit.TaskDenied})
			return err
		})
		if err != nil {
			t.Errorf("a write elsewhere: %v", err)
		}
	}
	// Another connection wrote: the readers look at the file again.
	appendOne()
	if err := l.View(t.Context(), read); !errors.Is(err, ledger.ErrDamaged) || !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("read what was spoilt: %v", err)
	}
	if !errors.Is(l.Damaged(), ledger.ErrDamaged) || logged.FilterMessageSnippet("damaged").Len() != 1 {
		t.Errorf("damaged: %v; logged %v", l.Damaged(), logged.All())
	}
	store, err := sqlite.OpenReader(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if err = store.Verify(t.Context()); !errors.Is(err, ledger.ErrDamaged) {
		t.Errorf("verify: %v", err)
	}
	if err = store.Close(); err != nil {
		t.Error(err)
	}
	size := l.Head().Size
	appendOne()
	if l.Head().Size != size+1 {
		t.Errorf("the log has %d records after %d and another", l.Head().Size, size)
	}
}

// TestVerifyFindsDamage: which damage is found, and by what.
func TestVerifyFindsDamage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ spoil, says string }{
		"nothing":                  {"SELECT 1", ""},
		"a body that is none":      {"UPDATE tasks SET body = x'7b' WHERE short_name = 'x'", "cannot be read"},
		"a body of another state":  {"UPDATE tasks SET body = CAST(replace(CAST(body AS TEXT), 'ACTIVE', 'CLOSED') AS BLOB) WHERE short_name = 'x'", "another state"},
		"an index that lacks rows": {"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE INDEX tasks_due ON tasks (due, state)' WHERE name = 'tasks_due'", "index tasks_due"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openStore(t, dir)
			tx, err := s.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done := newTask(t, "y")
			done.State, done.NextAt = task.Closed, done.ClosedAt
			if err = errors.Join(tx.InsertTask(newTask(t, "x")), tx.InsertTask(done), tx.Commit(), s.Close()); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, sqlite.File)
			if _, err = raw(t, file).ExecContext(t.Context(), tc.spoil); err != nil {
				t.Fatal(err)
			}
			r, err := sqlite.OpenReader(t.Context(), file)
			if err != nil {
				t.Fatal(err)
			}
			err = r.Verify(t.Context())
			if tc.says == "" && err != nil || tc.says != "" && (!errors.Is(err, ledger.ErrDamaged) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("verify: %v, want that it says %q", err, tc.says)
			}
			if err = r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadOnly: while SQLite says that nothing can be written, nothing is acknowledged, and everything can be read; afterwards it goes on.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	l := openLedgerOn(t, s, zap.NewNop())
	insert := func(name string) error {
		_, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
			if _, err := tx.Append(audit.Record{Event: audit.TaskDeclared}); err != nil {
				return err
			}
			return tx.InsertTask(newTask(t, name))
		})
		return err
	}
	if err := insert("before"); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false} {
		if err := sqlite.ReadOnly(s, on); err != nil {
			t.Fatal(err)
		}
		err := insert(fmt.Sprint("read only: ", on))
		if on && (!errors.Is(err, ledger.ErrUnavailable) || errors.Is(err, ledger.ErrDamaged)) || !on && err != nil {
			t.Errorf("write, read only %t: %v", on, err)
		}
	}
	err := l.View(t.Context(), func(r ledger.Reader) error {
		tasks, err := r.ListTasks(ledger.TaskFilter{Limit: 10})
		if len(tasks) != 2 || l.Damaged() != nil {
			t.Errorf("%d tasks, %v", len(tasks), l.Damaged())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
