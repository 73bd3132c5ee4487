package sqlite

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// TestPlans: no query on the path of an issue, of the teardown loop or of the kill switch reads a table from end to end, or sorts.
func TestPlans(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(r ledger.Reader) error {
		everyQuery(r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	reader := <-s.conns.pool
	for len(reader.stmts) < 10 { // the pool is a queue: the one that was used comes back last
		s.conns.pool <- reader
		reader = <-s.conns.pool
	}
	for query := range reader.stmts {
		checkPlan(t, query, planOf(t, reader, query))
	}
	s.release(s.conns, reader)
	if err = s.Close(); err != nil {
		t.Error(err)
	}
}

// checkPlan fails the test where a query reads or sorts what it need not.
func checkPlan(t *testing.T, query string, plan []string) {
	t.Helper()
	// The counts read what is alive. Two arms of one page are sorted together, and the lanes: both are few.
	few := strings.Contains(query, "GROUP BY state") || strings.Contains(query, "UNION ALL")
	for _, step := range plan {
		scan := strings.HasPrefix(step, "SCAN leases") || strings.HasPrefix(step, "SCAN tasks") || strings.HasPrefix(step, "SCAN audit")
		scan = scan && !strings.HasSuffix(step, "_due") && !strings.HasSuffix(step, "_stuck")
		history := strings.Contains(query, "due IS NOT NULL") && strings.Contains(step, "autoindex") // what is alive, by a walk through all
		if scan || history || (strings.Contains(step, "TEMP B-TREE") && !few) {
			t.Errorf("%s\n\t%s", query, strings.Join(plan, "\n\t"))
		}
	}
}

// everyQuery prepares every query on the path. What they answer is of no interest.
func everyQuery(r ledger.Reader) {
	id, l := task.ID{1}, lease.ID{1}
	_, _ = r.Task(id)
	_, _ = r.FindTask(ledger.TaskKey{ShortName: "x"})
	_, _ = r.FindTask(ledger.TaskKey{Agent: "x", RequestID: "x"})
	_, _ = r.ListTasks(ledger.TaskFilter{Agent: "x", Limit: 1})
	_, _ = r.ListTasks(ledger.TaskFilter{States: []task.State{task.Active}, Limit: 1, Before: id})
	_, _ = r.ListLeases(ledger.LeaseFilter{States: []lease.State{lease.Active}, Limit: 1, Before: l})
	_, _ = r.ListLeases(ledger.LeaseFilter{Role: "x", States: []lease.State{lease.Active}, Limit: 1, Before: l})
	_, _ = r.Agent("x")
	_, _ = r.ListAgents(ledger.AgentFilter{State: ledger.AgentSuspended, Limit: 1})
	_, _ = r.ListTasks(ledger.TaskFilter{Agent: "x", States: []task.State{task.Active}, Limit: 1, Before: id})
	_, _ = r.ListTasks(ledger.TaskFilter{Agent: "x", States: []task.State{task.Closed}, Limit: 1})
	_, _ = r.Lease(l)
	_, _ = r.FindLease(ledger.LeaseKey{Ref: "x"})
	_, _ = r.FindLease(ledger.LeaseKey{Agent: "x", RequestID: "x"})
	_, _ = r.ListLeases(ledger.LeaseFilter{Agent: "x", Limit: 1})
	_, _ = r.ListLeases(ledger.LeaseFilter{Task: id})
	_, _ = r.ListLeases(ledger.LeaseFilter{Task: id, States: []lease.State{lease.Active}})
	_, _ = r.ListLeases(ledger.LeaseFilter{Agent: "x", States: []lease.State{lease.Active}, Limit: 1})
	_, _ = r.ListLeases(ledger.LeaseFilter{Stuck: true, Limit: 1})
	_, _ = r.DueTasks(time.Now(), 1)
	_, _ = r.DueTasks(time.Now(), 1, id)
	_, _ = r.DueLeases("x", time.Now(), 1)
	_, _ = r.DueLeases("x", time.Now(), 1, id)
	_, _ = r.DueLanes(time.Now())
	_, _ = r.NextDue()
	_, _ = r.LiveTasks("x")
	_, _ = r.LiveLeases("x")
	_, _ = r.HasOpenLeases(id)
	_, _ = r.Stats()
	_, _ = r.Entries(1, 1, "")
	_, _ = r.Entries(1, 1, "x")
	_, _ = r.Hashes([]int64{1})
	_, _ = r.Texts(1)
}

func planOf(t *testing.T, s *session, query string) []string {
	t.Helper()
	args := make([]any, strings.Count(query, "?"))
	rows, err := s.conn.QueryContext(context.WithoutCancel(t.Context()), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, step)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan
}
