package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/stint-dev/stint/broker/audit"
)

func TestFaultsSayWhere(t *testing.T) {
	t.Parallel()
	f := &audit.Faults{What: audit.ErrReceipt, List: []audit.Fault{{Index: 7, Problem: "it was changed"}, {Index: audit.Whole, Problem: "no key"}}}
	for _, part := range []string{audit.ErrReceipt.Error(), "record 7: it was changed", "; no key"} {
		if !strings.Contains(f.Error(), part) {
			t.Errorf("%q does not say %q", f.Error(), part)
		}
	}
	for n := range 20 {
		f.List = append(f.List, audit.Fault{Index: int64(n), Problem: "x"})
	}
	if !strings.HasSuffix(f.Error(), "and 12 more") {
		t.Errorf("%q does not say that there is more", f.Error())
	}
}

// brokenLog fails as a test says.
type brokenLog struct {
	*memLog
	err error
}

func (b *brokenLog) Hashes(indexes []int64) ([][32]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	return b.memLog.Hashes(indexes)
}

func (b *brokenLog) ViewLog(_ context.Context, fn func(audit.Reader) error) error { return fn(b) }

// TestReadErrorIsNoFault: what cannot be read is not called falsified.
func TestReadErrorIsNoFault(t *testing.T) {
	t.Parallel()
	key, io := newKey(t), errors.New("input/output error")
	log := &brokenLog{memLog: newMemLog(), err: io}
	log.add(t, key, story()...)
	if _, err := audit.VerifyLog(t.Context(), log, audit.LogCheck{VerifierKey: key.Text}); !errors.Is(err, io) || errors.Is(err, audit.ErrLog) {
		t.Errorf("verify log: %v", err)
	}
	if _, err := audit.BuildReceipt(log, taskA); !errors.Is(err, io) {
		t.Errorf("receipt: %v", err)
	}
	if _, err := audit.Consistency(log, 3, 11); !errors.Is(err, io) {
		t.Errorf("consistency: %v", err)
	}
	log.err = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := audit.VerifyLog(ctx, log, audit.LogCheck{VerifierKey: key.Text}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that is done: %v", err)
	}
	if _, err := audit.VerifyLog(t.Context(), log, audit.LogCheck{VerifierKey: "x"}); !errors.Is(err, audit.ErrKey) {
		t.Errorf("a malformed key: %v", err)
	}
}

// TestKeptCheckpoints: those that do not verify, and two that differ, are told.
func TestKeptCheckpoints(t *testing.T) {
	t.Parallel()
	key, log := newKey(t), newMemLog()
	log.add(t, key, story()...)
	fork, err := audit.Checkpoint{Origin: key.Signer.Name(), Size: 11, Root: [32]byte{1}}.Sign(key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	for says, known := range map[string][][]byte{
		"forked":            {log.head.Checkpoint, fork},
		"rewritten":         {fork},
		"kept checkpoint 1": {[]byte("nonsense")},
	} {
		_, err := audit.VerifyLog(t.Context(), log, audit.LogCheck{VerifierKey: key.Text, Known: known})
		if !errors.Is(err, audit.ErrLog) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want that it is %s", err, says)
		}
	}
}

// TestManyFaultsEnd: a log of which nothing is left does not yield a fault a record.
func TestManyFaultsEnd(t *testing.T) {
	t.Parallel()
	key, log := newKey(t), newMemLog()
	for range 100 {
		log.add(t, key, story()...)
	}
	log.entries = nil
	rep, err := audit.VerifyLog(t.Context(), log, audit.LogCheck{VerifierKey: key.Text})
	if !errors.Is(err, audit.ErrLog) || len(rep.Faults) != 101 {
		t.Errorf("%d faults: %v", len(rep.Faults), errors.Is(err, audit.ErrLog))
	}
}

// TestExporterOutlivesFaults: a copy that cannot be written is tried again, and then lacks nothing.
func TestExporterOutlivesFaults(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		log := &liveLog{m: newMemLog()}
		log.add(t, key, story()...)
		if _, err := audit.NewExporter(audit.ExportConfig{Source: log, File: filepath.Join(dir, "none", "audit.jsonl")}); err == nil {
			t.Error("a folder that is not there: no error")
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		core, logged := observer.New(zap.WarnLevel)
		file := filepath.Join(dir, "audit.jsonl")
		e, err := audit.NewExporter(audit.ExportConfig{Source: log, File: file, Logger: zap.New(core)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		settle := func() { time.Sleep(time.Minute); synctest.Wait() } //nolint:forbidigo // the bubble's clock
		settle()

		// The folder is gone when the file is to be opened anew.
		if err = errors.Join(os.Rename(dir, dir+".away")); err != nil {
			t.Fatal(err)
		}
		e.Reopen()
		settle()
		log.add(t, key, story()...)
		settle()
		if logged.Len() == 0 {
			t.Error("nothing was logged")
		}
		if err = os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
		settle()
		if n := exported(t, file, log.m, 0); n != 22 {
			t.Errorf("%d records exported after the fault", n)
		}

		// The log is shorter than its copy.
		log.mu.Lock()
		log.m.head.Size = 5
		log.mu.Unlock()
		logged.TakeAll()
		log.mu.Lock()
		close(log.m.grown)
		log.m.grown = make(chan struct{})
		log.mu.Unlock()
		settle()
		if all := logged.All(); len(all) == 0 || !strings.Contains(fmt.Sprint(all[0].ContextMap()), "cut off") {
			t.Errorf("a log that was cut off was logged as %v", all)
		}
		cancel()
		if err = <-done; err != nil {
			t.Error(err)
		}
	})
}
