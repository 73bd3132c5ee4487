package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

func TestLock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	first := openStore(t, dir)
	_, err := sqlite.Open(t.Context(), dir)
	if !errors.Is(err, sqlite.ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second open: %v, want the process that holds it", err)
	}
	if err := first.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), dir); !errors.Is(err, sqlite.ErrLocked) {
		t.Errorf("open after Reopen: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openStore(t, dir).Close(); err != nil {
		t.Errorf("open after Close: %v", err)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	l := openLedger(t, dir)
	if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(newTask(t, "x")) }); err != nil {
		t.Fatal(err)
	}
	modes := map[string]os.FileMode{".": 0o700, "lock": 0o600, sqlite.File: 0o600, sqlite.File + "-wal": 0o600, sqlite.File + "-shm": 0o600}
	for name, want := range modes {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("mode of %s is not %o: %v", name, want, err)
		}
	}
}

// raw opens the file beside the store.
func raw(t *testing.T, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, sqlite.File)
	if _, err := raw(t, file).ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (77, 1)"); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, sqlite.ErrVersion) || !strings.Contains(err.Error(), "77") || !strings.Contains(err.Error(), "knows 4") {
			t.Errorf("%s: %v, want both versions", what, err)
		}
	}
	_, err := sqlite.Open(t.Context(), dir)
	refused("open", err)
	_, err = sqlite.OpenReader(t.Context(), file)
	refused("open for reading", err)
}

// TestDiskFull: what does not fit is refused whole, and what fits goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	l := openLedger(t, t.TempDir())
	limit := func(pages int) {
		t.Helper()
		if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error { return sqlite.LimitPages(tx.Rows, pages) }); err != nil {
			t.Fatal(err)
		}
	}
	limit(60)
	written := 0
	var err error
	for ; err == nil && written < 1000; written++ {
		_, err = l.Update(t.Context(), func(tx *ledger.Tx) error {
			if _, err = tx.Append(audit.Record{Event: audit.TaskDeclared}); err != nil {
				return err
			}
			row := newTask(t, fmt.Sprint("t", written))
			row.Description = strings.Repeat("x", 2000)
			return tx.InsertTask(row)
		})
	}
	if !errors.Is(err, ledger.ErrUnavailable) {
		t.Fatalf("after %d writes: %v, want that nothing was written", written, err)
	}
	check := func(want int) {
		t.Helper()
		err := l.View(t.Context(), func(r ledger.Reader) error {
			tasks, err := r.ListTasks(ledger.TaskFilter{Limit: 1000})
			head, err2 := r.Head()
			if len(tasks) != want || head.Size != int64(want)+1 {
				t.Errorf("%d tasks and %d records, want %d", len(tasks), head.Size, want)
			}
			return errors.Join(err, err2)
		})
		if err != nil {
			t.Error(err)
		}
	}
	check(written - 1)
	limit(1 << 20)
	if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
		if _, err := tx.Append(audit.Record{Event: audit.TaskDeclared}); err != nil {
			return err
		}
		return tx.InsertTask(newTask(t, "after"))
	}); err != nil {
		t.Errorf("with room again: %v", err)
	}
	check(written)
}

// TestIgnoredFault: a function that ignores a fault which ended the transaction cannot commit the rest of its writes.
func TestIgnoredFault(t *testing.T) {
	t.Parallel()
	l := openLedger(t, t.TempDir())
	_, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
		if err := sqlite.LimitPages(tx.Rows, 1); err != nil { // below what there is: the file may grow no more
			return err
		}
		big := newTask(t, "big")
		big.Description = strings.Repeat("x", 1<<20)
		if err := tx.InsertTask(big); !errors.Is(err, ledger.ErrUnavailable) {
			t.Errorf("a write to a full disk: %v", err)
		}
		if err := tx.InsertTask(newTask(t, "small")); !errors.Is(err, ledger.ErrTxLost) {
			t.Errorf("a write after the fault: %v", err)
		}
		return nil
	})
	if !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("update: %v", err)
	}
	err = l.View(t.Context(), func(r ledger.Reader) error {
		tasks, lerr := r.ListTasks(ledger.TaskFilter{Limit: 10})
		if len(tasks) != 0 {
			t.Errorf("%d tasks were written", len(tasks))
		}
		return lerr
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBackup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLedger(t, filepath.Join(dir, "data"))
	put := func(name string) {
		t.Helper()
		if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(newTask(t, name)) }); err != nil {
			t.Fatal(err)
		}
	}
	put("before")
	live, err := sqlite.OpenReader(t.Context(), filepath.Join(dir, "data", sqlite.File))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "copy.db")
	if err = live.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	put("after")
	if info, serr := os.Stat(copied); serr != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the backup is not 600: %v", serr)
	}
	if err = live.Backup(t.Context(), copied); !errors.Is(err, os.ErrExist) {
		t.Errorf("a backup over another: %v", err)
	}
	if _, err = live.Begin(t.Context()); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("a write to what is open for reading: %v", err)
	}
	if err = live.Close(); err != nil {
		t.Error(err)
	}
	backup, err := sqlite.OpenReader(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	err = backup.View(t.Context(), func(r ledger.Reader) error {
		tasks, lerr := r.ListTasks(ledger.TaskFilter{Limit: 10})
		if len(tasks) != 1 || tasks[0].ShortName != "before" {
			t.Errorf("the backup holds %v", tasks)
		}
		return lerr
	})
	if err = errors.Join(err, backup.Close()); err != nil {
		t.Error(err)
	}
	if _, err := sqlite.OpenReader(t.Context(), filepath.Join(dir, "none.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open what is not there: %v", err)
	}
}

// TestBackupSaysThatItIsOne, and what it is made of does not; nothing is left beside it.
func TestBackupSaysThatItIsOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	live, err := sqlite.Open(t.Context(), filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "copy.db")
	if err = live.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	read := func(s *sqlite.Store) (restored ledger.Restored, err error) {
		err = s.View(t.Context(), func(r ledger.Reader) error {
			var cause error
			restored, cause = r.Restored()
			return cause
		})
		return restored, errors.Join(err, s.Close())
	}
	if _, err = read(live); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the live ledger was marked as a copy: %v", err)
	}
	backup, err := sqlite.OpenReader(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	if restored, err := read(backup); err != nil || restored.Found != audit.FoundCopy || time.Since(restored.At).Abs() > time.Minute {
		t.Errorf("the backup says %+v of itself, %v", restored, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "copy.db?*")); err != nil || len(left) > 0 {
		t.Errorf("beside the copy: %v, %v", left, err)
	}
}

// TestWALStaysShort: a writer that never rests does not let the WAL grow with it.
func TestWALStaysShort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := sqlite.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 40
	sqlite.LimitWAL(s, limit)
	longest := int64(0)
	for n := range 200 {
		tx, berr := s.Begin(t.Context())
		if berr != nil {
			t.Fatal(berr)
		}
		sqlite.WriteBack(t.Context(), s) // beside the writer, so that it never sees the end
		if err = errors.Join(tx.InsertTask(newTask(t, fmt.Sprint("t", n))), tx.Commit()); err != nil {
			t.Fatal(err)
		}
		info, serr := os.Stat(filepath.Join(dir, sqlite.File+"-wal"))
		if serr != nil {
			t.Fatal(serr)
		}
		longest = max(longest, info.Size())
	}
	if longest > 4*limit*4096 {
		t.Errorf("the WAL grew to %d bytes", longest)
	}
	if err = s.Close(); err != nil {
		t.Error(err)
	}
}

// TestErasedTextIsGone: an erased text is in no file of the ledger once the WAL is written back.
func TestErasedTextIsGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const personal = "a-very-personal-text"
	l, row := openLedger(t, dir), newTask(t, "x")
	row.Description = personal
	_, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
		if _, err := tx.Append(audit.Record{Event: audit.TaskDeclared, Task: row.ID.String(), Texts: map[string]string{"d": personal}}); err != nil {
			return err
		}
		return tx.InsertTask(row)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Erase(t.Context(), audit.Actor{ID: "admin"}, row.ID); err != nil {
		t.Fatal(err)
	}
	db := raw(t, filepath.Join(dir, sqlite.File))
	if _, err := db.ExecContext(context.WithoutCancel(t.Context()), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{sqlite.File, sqlite.File + "-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), personal) {
			t.Errorf("the erased text is still in %s", name)
		}
	}
}

func TestFreeBytes(t *testing.T) {
	t.Parallel()
	s, err := sqlite.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if free, err := s.FreeBytes(); err != nil || free < 1<<20 {
		t.Errorf("%d bytes free: %v", free, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.View(t.Context(), func(ledger.Reader) error { return nil }); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("view after Close: %v", err)
	}
}

// TestFarTimes: instants that no integer of nanoseconds holds neither fail nor fall due.
func TestFarTimes(t *testing.T) {
	t.Parallel()
	l := openLedger(t, t.TempDir())
	far, old := newTask(t, "far"), newTask(t, "old")
	far.NextAt = time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)
	old.NextAt = time.Date(1200, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error { return errors.Join(tx.InsertTask(far), tx.InsertTask(old)) }); err != nil {
		t.Fatal(err)
	}
	err := l.View(t.Context(), func(r ledger.Reader) error {
		due, err := r.DueTasks(time.Now(), 10)
		if len(due) != 1 || due[0] != old.ID {
			t.Errorf("due: %v", due)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
