package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
)

// liveLog is a memLog that grows while it is read.
type liveLog struct {
	mu sync.Mutex
	m  *memLog
}

func (l *liveLog) ViewLog(ctx context.Context, fn func(audit.Reader) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.ViewLog(ctx, fn)
}

func (l *liveLog) Grown() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.grown
}

func (l *liveLog) add(tb testing.TB, key audit.Key, records ...audit.Record) {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m.add(tb, key, records...)
	close(l.m.grown)
	l.m.grown = make(chan struct{})
}

// exported reads the copy and checks that it has no gap from first on, and returns how many lines it has.
func exported(t *testing.T, path string, log *memLog, first int) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); n++ {
		want := fmt.Sprintf(`{"index":%d,"record":%s}`, first+n, log.entries[first+n].JSON)
		if lines.Text() != want {
			t.Fatalf("line %d is %s, want %s", n, lines.Text(), want)
		}
		if !json.Valid(lines.Bytes()) {
			t.Fatalf("line %d is not JSON", n)
		}
	}
	return n
}

// TestExporterMoves: a copy that is switched on begins with the log; moved, it goes on where it was; switched off, it rests.
func TestExporterMoves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.jsonl"), filepath.Join(dir, "second.jsonl")
	key := newKey(t)
	if err := audit.CanMove(filepath.Join(dir, "none", "a"), first); err == nil {
		t.Error("a path that cannot be written is taken")
	}
	synctest.Test(t, func(t *testing.T) {
		log := &liveLog{m: newMemLog()}
		e, err := audit.NewExporter(audit.ExportConfig{Source: log})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		settle := func() { time.Sleep(10 * time.Second); synctest.Wait() } //nolint:forbidigo // the bubble's clock
		log.add(t, key, story()...)
		settle()
		for _, path := range []string{first, second, "", second} {
			e.Move(path, "")
			settle()
			log.add(t, key, story()...)
			settle()
		}
		if n := exported(t, first, log.m, 0); n != 22 {
			t.Errorf("%d records in the first copy", n)
		}
		if n := exported(t, second, log.m, 22); n != 33 {
			t.Errorf("%d records in the second copy", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestExporter(t *testing.T) { //nolint:cyclop // one story, step by step
	t.Parallel()
	dir := t.TempDir()
	file, checkpoints := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "checkpoints.log")
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		log := &liveLog{m: newMemLog()}
		start := func() (stop func(), e *audit.Exporter) {
			e, err := audit.NewExporter(audit.ExportConfig{Source: log, File: file, Checkpoints: checkpoints, Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- e.Run(ctx) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}, e
		}
		settle := func() { time.Sleep(10 * time.Second); synctest.Wait() } //nolint:forbidigo // the bubble's clock
		log.add(t, key, story()...)
		stop, e := start()
		settle()
		if n := exported(t, file, log.m, 0); n != 11 {
			t.Errorf("%d records exported at the start", n)
		}
		for range 100 {
			log.add(t, key, story()...)
		}
		settle()
		if n := exported(t, file, log.m, 0); n != 1111 {
			t.Errorf("%d records exported as they came", n)
		}

		// A rotation: the old file is moved away, and Reopen makes a new one that goes on.
		if err := os.Rename(file, file+".1"); err != nil {
			t.Fatal(err)
		}
		e.Reopen()
		settle()
		stop()
		log.add(t, key, story()...)
		stop, _ = start() // the new file is empty: where it left off stands in the checkpoints
		settle()
		if n := exported(t, file, log.m, 1111); n != 11 {
			t.Errorf("%d records exported after a rotation and a restart", n)
		}

		// A crash in the middle of a line.
		stop()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err = os.WriteFile(file, b[:len(b)-20], 0o600); err != nil {
			t.Fatal(err)
		}
		if err = os.WriteFile(checkpoints, []byte(`{"size":1`), 0o600); err != nil {
			t.Fatal(err)
		}
		stop, _ = start()
		settle()
		if n := exported(t, file, log.m, 1111); n != 11 {
			t.Errorf("%d records after a torn line", n)
		}
		stop()

		f, err := os.Open(checkpoints)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		known, err := audit.ReadCheckpoints(f)
		if err != nil || len(known) != 1 {
			t.Fatalf("%d checkpoints: %v", len(known), err)
		}
		if _, err := audit.VerifyLog(t.Context(), log.m, audit.LogCheck{VerifierKey: key.Text, Known: known}); err != nil {
			t.Error(err)
		}
	})
}
