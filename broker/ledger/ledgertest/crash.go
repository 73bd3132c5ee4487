package ledgertest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// crashDir names the directory to the process that will be killed.
const crashDir = "STINT_LEDGERTEST_CRASH_DIR"

const (
	crashRounds  = 3
	crashWriters = 16
	crashAfter   = 300 // acknowledged writes
)

// Crash kills a process that writes, again and again, and checks that no write that it acknowledged is lost, and that the
// log has no gap. It starts the test binary again for the calling test, which must do nothing but call Crash.
func Crash(t *testing.T, open Opener) {
	t.Helper()
	if dir := os.Getenv(crashDir); dir != "" {
		writeUntilKilled(t, open, dir)
		return
	}
	dir := t.TempDir()
	key, err := audit.CreateKey(filepath.Join(dir, "key"), "crash.test/audit")
	if err != nil {
		t.Fatal(err)
	}
	var acked []string
	for range crashRounds {
		acked = append(acked, killWriter(t, dir)...)
		store := open(t, filepath.Join(dir, "data"))
		checkAcked(t, store, key, acked)
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killWriter starts a writer, kills it after enough writes, and returns what it acknowledged.
func killWriter(t *testing.T, dir string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v=false") //nolint:gosec // it is this test
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acked []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line, ok := strings.CutPrefix(lines.Text(), "acked ")
		if !ok {
			continue
		}
		acked = append(acked, line)
		if len(acked) == crashAfter {
			if err := cmd.Process.Kill(); err != nil { // what is in the pipe was acknowledged too
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(acked) < crashAfter {
		t.Fatalf("the writer ended by itself after %d writes: %v", len(acked), err)
	}
	return acked
}

// writeUntilKilled inserts leases through a Ledger and prints each once it is durable.
func writeUntilKilled(t *testing.T, open Opener, dir string) {
	t.Helper()
	key, err := audit.LoadKey(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{
		Store: open(t, filepath.Join(dir, "data")), Signer: key.Signer, Verifier: key.Verifier, Origin: key.Signer.Name(),
	})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, crashWriters+1)
	go func() { failed <- l.Run(t.Context()) }()
	owner := newTask(t, os.Getpid(), "agent-a")
	if _, err := l.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(owner) }); err != nil {
		t.Fatal(err)
	}
	for range crashWriters {
		go func() {
			for {
				if err := writeOne(t, l, owner); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	t.Fatal(<-failed)
}

func writeOne(t *testing.T, l *ledger.Ledger, owner task.Task) error {
	t.Helper()
	row := newLease(t, 0, owner)
	row.RequestID = row.ID.String()
	c, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
		if err := tx.InsertLease(row); err != nil {
			return err
		}
		_, err := tx.Append(audit.Record{Event: audit.LeaseActive, Task: owner.ID.String(), Lease: row.ID.String()})
		return err
	})
	if err == nil {
		_, err = fmt.Fprintf(os.Stdout, "acked %s %d\n", row.ID, c.First)
	}
	return err
}

// checkAcked looks for every acknowledged lease and its record, and verifies the whole log.
func checkAcked(t *testing.T, store ledger.Store, key audit.Key, acked []string) {
	t.Helper()
	err := store.View(t.Context(), func(r ledger.Reader) error {
		for _, line := range acked {
			name, at, _ := strings.Cut(line, " ")
			index, err := strconv.ParseInt(at, 10, 64)
			if err != nil {
				t.Errorf("line %q of the writer", line)
				continue
			}
			id, err := lease.ParseID(name)
			if err != nil {
				return err
			}
			if _, err = r.Lease(id); err != nil {
				t.Errorf("acknowledged lease %s: %v", name, err)
			}
			entries, err := r.Entries(index, 1, "")
			if err != nil || len(entries) != 1 || !strings.Contains(string(entries[0].JSON), name) {
				t.Errorf("record %d of acknowledged lease %s is not there (%v)", index, name, err)
			}
		}
		_, err := audit.VerifyLog(t.Context(), r, audit.LogCheck{VerifierKey: key.Text})
		return err
	})
	if err != nil {
		t.Errorf("after a crash: %v", err)
	}
}
