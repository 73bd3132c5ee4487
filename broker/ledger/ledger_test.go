package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

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
