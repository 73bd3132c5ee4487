package sqlite_test

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

func openLedger(tb testing.TB, dir string) (*ledger.Ledger, *sqlite.Store) {
	tb.Helper()
	store, err := sqlite.Open(tb.Context(), dir)
	if err != nil {
		tb.Fatal(err)
	}
	skey, vkey, err := note.GenerateKey(nil, "test.example/audit")
	if err != nil {
		tb.Fatal(err)
	}
	signer, _ := note.NewSigner(skey)
	verifier, _ := note.NewVerifier(vkey)
	l, err := ledger.Open(tb.Context(), ledger.Config{Store: store, Signer: signer, Verifier: verifier, Origin: "test.example/audit"})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
		if err := store.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l, store
}

func TestUpdateAndView(t *testing.T) {
	l, _ := openLedger(t, t.TempDir())
	id, _ := task.NewID()
	row := task.Task{ID: id, ShortName: "try-1", Agent: "spiffe://x/a", State: task.Active, NextAt: time.Now(), RequestID: "r"}
	c, err := l.Update(t.Context(), func(tx *ledger.Tx) error {
		if err := tx.InsertTask(row); err != nil {
			return err
		}
		_, err := tx.Append(audit.Record{Event: audit.TaskDeclared, Task: id.String(), Texts: map[string]string{"description": "x"}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.First != 1 || c.Size != 2 {
		t.Errorf("commit %+v", c)
	}
	_, err = l.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(row) })
	if !errors.Is(err, ledger.ErrExists) {
		t.Errorf("second insert: %v", err)
	}
	err = l.View(t.Context(), func(r ledger.Reader) error {
		got, err := r.Task(id)
		if err != nil || got.ShortName != "try-1" {
			t.Errorf("%+v %v", got, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkCommit inserts a lease with its audit record, durable before it is acknowledged.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l, _ := openLedger(b, b.TempDir())
			id, _ := task.NewID()
			row := task.Task{ID: id, ShortName: "try-1", Agent: "spiffe://x/a", State: task.Active, NextAt: time.Now().Add(time.Hour), RequestID: "r"}
			if _, err := l.Update(b.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(row) }); err != nil {
				b.Fatal(err)
			}
			var n atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for n.Add(1) <= int64(b.N) {
						lid, _ := lease.NewID()
						now := time.Now()
						le := lease.Lease{
							ID: lid, Task: id, TaskName: "try-1", Agent: "spiffe://x/a", Role: "web-client", Backend: "stepca/internal",
							Lane: "stepca/internal", State: lease.Active, RequestID: lid.String(), CreatedAt: now, NotAfter: now.Add(time.Minute), NextAt: now.Add(time.Minute),
						}
						_, err := l.Update(b.Context(), func(tx *ledger.Tx) error {
							if err := tx.InsertLease(le); err != nil {
								return err
							}
							_, err := tx.Append(audit.Record{
								Event: audit.LeaseActive, Task: id.String(), TaskName: "try-1", Lease: lid.String(), Agent: le.Agent,
								Role: le.Role, Backend: le.Backend, Actor: audit.Actor{ID: le.Agent, Method: "x509"}, Purpose: "try",
								NotAfter: le.NotAfter, PolicySet: "0123456789abcdef", Policies: []string{"profile/x"}, Request: "019ab3c1-d2e4-7f0a-8b1c-2d3e4f506100",
							})
							return err
						})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}
