// Package ledgertest is the suite that every ledger store passes.
//
// A store's test calls [Run] and [Crash]. The suite writes through the store's own transactions, except for the crash
// test, which writes through a whole Ledger.
package ledgertest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// Opener opens the store that lives in a directory, made if it is not there. The suite closes it, and opens the same
// directory again.
type Opener func(tb testing.TB, dir string) ledger.Store

// Run runs the suite.
func Run(t *testing.T, open Opener) {
	t.Helper()
	tests := map[string]func(t *testing.T, s *suite){
		"tasks":         testTasks,
		"task_lists":    testTaskLists,
		"leases":        testLeases,
		"lease_lists":   testLeaseLists,
		"refs":          testRefs,
		"queue":         testQueue,
		"claims":        testClaims,
		"counts":        testCounts,
		"resources":     testResources,
		"agents":        testAgents,
		"nested":        testNested,
		"rollback":      testRollback,
		"snapshot":      testSnapshot,
		"reopen":        testReopen,
		"log":           testLog,
		"log_tasks":     testLogTasks,
		"texts":         testTexts,
		"fencing":       testFencing,
		"restored":      testRestored,
		"random_writes": testModel,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &suite{open: open, dir: t.TempDir()}
			s.store = open(t, s.dir)
			t.Cleanup(func() { s.close(t) })
			test(t, s)
		})
	}
}

// suite is one test's store.
type suite struct {
	open  Opener
	dir   string
	store ledger.Store
}

func (s *suite) close(tb testing.TB) {
	tb.Helper()
	if err := s.store.Close(); err != nil {
		tb.Errorf("close: %v", err)
	}
}

// write runs fn in a transaction of its own and commits it.
func (s *suite) write(tb testing.TB, fn func(tx ledger.StoreTx) error) {
	tb.Helper()
	tx, err := s.store.Begin(tb.Context())
	if err != nil {
		tb.Fatalf("begin: %v", err)
	}
	if err := fn(tx); err != nil {
		tb.Fatalf("write: %v", errors.Join(err, tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		tb.Fatalf("commit: %v", err)
	}
}

// read runs fn on a snapshot.
func (s *suite) read(tb testing.TB, fn func(r ledger.Reader) error) {
	tb.Helper()
	if err := s.store.View(tb.Context(), fn); err != nil {
		tb.Fatalf("view: %v", err)
	}
}

// base is the instant around which the suite's rows lie. It has nanoseconds, which stores must keep.
func base() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 6007008, time.UTC) }

// newTask returns an ACTIVE task with every field set, due an hour after base.
func newTask(tb testing.TB, n int, agent string) task.Task {
	tb.Helper()
	id, err := task.NewID()
	if err != nil {
		tb.Fatal(err)
	}
	return task.Task{
		ID: id, ShortName: fmt.Sprintf("task-%d-%s", n, id), Agent: agent, Profile: "p", Owner: "o", Sponsor: "s", Purpose: "try",
		Description: "ünïcode <&>\u2028 text", Labels: map[string]string{"k": "v"},
		Grants: []task.Grant{{
			Role: "r", TTL: time.Minute, Params: map[string]string{"a": "b"}, Policies: []string{"x"},
			Exposure: plugins.Exposure{Bounded: true, Max: time.Second, Reason: "why"},
		}},
		State: task.Active, NotAfter: base().Add(time.Hour), IdleTimeout: time.Minute, CreatedAt: base(),
		NextAt: base().Add(time.Hour), ManifestHash: task.Hash{1}, RequestID: fmt.Sprintf("request-%d", n), RequestHash: task.Hash{2},
		PolicySet: "set", Record: int64(n),
	}
}

// newLease returns an ACTIVE lease with every field of that state set, due a minute after base.
func newLease(tb testing.TB, n int, t task.Task) lease.Lease {
	tb.Helper()
	id, err := lease.NewID()
	if err != nil {
		tb.Fatal(err)
	}
	return lease.Lease{
		ID: id, Task: t.ID, TaskName: t.ShortName, Agent: t.Agent, Role: "r", Backend: "b/1", Lane: "b/1", State: lease.Active,
		Ends: plugins.EndsRevocable, Exposure: plugins.Exposure{Bounded: true, Reason: "why"},
		Handle: plugins.Handle(fmt.Sprintf(`{"accessor":"accessor-%08d","n":%d}`, n, n)), PublicRef: fmt.Sprintf("user-%d", n),
		Params: map[string]string{"a": "b"}, RequestID: fmt.Sprintf("request-%d", n), RequestHash: task.Hash{3},
		Chain: [][]byte{{1, 2}, {3}}, Bundle: [][]byte{{4}}, CreatedAt: base(), NotAfter: base().Add(time.Minute),
		NextAt: base().Add(time.Minute),
	}
}

// same compares what was read with what was written.
func same[T any](tb testing.TB, what string, got, want T) {
	tb.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// wants checks an error by its sentinel; nil means none.
func wants(tb testing.TB, what string, err, sentinel error) {
	tb.Helper()
	if !errors.Is(err, sentinel) {
		tb.Errorf("%s: %v, want %v", what, err, sentinel)
	}
}
