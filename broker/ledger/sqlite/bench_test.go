package sqlite_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// openLedger runs a ledger in a directory until the test ends.
func openLedger(tb testing.TB, dir string) *ledger.Ledger {
	tb.Helper()
	return openLedgerOn(tb, openStore(tb, dir), zap.NewNop())
}

func openLedgerOn(tb testing.TB, store ledger.Store, logger *zap.Logger) *ledger.Ledger {
	tb.Helper()
	key, err := audit.CreateKey(tb.TempDir()+"/key", "test.example/audit")
	if err != nil {
		tb.Fatal(err)
	}
	l, err := ledger.Open(tb.Context(), ledger.Config{
		Store: store, Signer: key.Signer, Verifier: key.Verifier, Origin: key.Signer.Name(), Logger: logger,
	})
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
	return l
}

func newTask(tb testing.TB, name string) task.Task {
	tb.Helper()
	id, err := task.NewID()
	if err != nil {
		tb.Fatal(err)
	}
	return task.Task{
		ID: id, ShortName: name, Agent: "spiffe://example.org/agent/eu1", State: task.Active, NextAt: time.Now().Add(time.Hour),
		RequestID: name,
	}
}

func newLease(tb testing.TB, of task.Task) lease.Lease {
	tb.Helper()
	id, err := lease.NewID()
	if err != nil {
		tb.Fatal(err)
	}
	now := time.Now()
	return lease.Lease{
		ID: id, Task: of.ID, TaskName: of.ShortName, Agent: of.Agent, Role: "web-client", Backend: "stepca/internal",
		Lane: "stepca/internal", State: lease.Active, RequestID: id.String(), CreatedAt: now,
		NotAfter: now.Add(time.Minute), NextAt: now.Add(time.Minute), PublicRef: "CN=eu1",
	}
}

func leaseRecord(l lease.Lease) audit.Record {
	return audit.Record{
		Event: audit.LeaseActive, Task: l.Task.String(), TaskName: l.TaskName, Lease: l.ID.String(), Agent: l.Agent, Role: l.Role,
		Backend: l.Backend, Actor: audit.Actor{ID: l.Agent, Method: "x509"}, Purpose: "try", NotAfter: l.NotAfter,
		PolicySet: "0123456789abcdef", Policies: []string{"profile/x"}, Request: "019ab3c1-d2e4-7f0a-8b1c-2d3e4f506100",
	}
}

// BenchmarkCommit inserts a lease with its audit record, durable before it is acknowledged.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l, owner := openLedger(b, b.TempDir()), newTask(b, "bench")
			if _, err := l.Update(b.Context(), func(tx *ledger.Tx) error { return tx.InsertTask(owner) }); err != nil {
				b.Fatal(err)
			}
			var n atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for n.Add(1) <= int64(b.N) {
						row := newLease(b, owner)
						_, err := l.Update(b.Context(), func(tx *ledger.Tx) error {
							if err := tx.InsertLease(row); err != nil {
								return err
							}
							_, err := tx.Append(leaseRecord(row))
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
