package ledgertest

import (
	"slices"
	"testing"

	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

func testTasks(t *testing.T, s *suite) {
	t.Helper()
	a, b := newTask(t, 1, "agent-a"), newTask(t, 1, "agent-b")
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "insert", tx.InsertTask(a), nil)
		wants(t, "same request ID of another agent", tx.InsertTask(b), nil)

		taken := newTask(t, 9, "agent-a")
		taken.ID = a.ID
		wants(t, "taken ID", tx.InsertTask(taken), ledger.ErrExists)
		taken = newTask(t, 9, "agent-a")
		taken.ShortName = a.ShortName
		wants(t, "taken short name", tx.InsertTask(taken), ledger.ErrExists)
		taken = newTask(t, 1, "agent-a")
		wants(t, "taken request ID", tx.InsertTask(taken), ledger.ErrExists)
		return nil
	})
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Task(a.ID)
		wants(t, "task", err, nil)
		same(t, "task", got, a)
		got, err = r.FindTask(ledger.TaskKey{ShortName: b.ShortName})
		wants(t, "find by short name", err, nil)
		same(t, "task by short name", got, b)
		got, err = r.FindTask(ledger.TaskKey{Agent: "agent-b", RequestID: "request-1"})
		wants(t, "find by request", err, nil)
		same(t, "task by request", got, b)
		for _, key := range []ledger.TaskKey{{}, {ShortName: "no"}, {Agent: "agent-c", RequestID: "request-1"}, {Agent: "agent-a"}} {
			_, err = r.FindTask(key)
			wants(t, "find what is not there", err, ledger.ErrNotFound)
		}
		_, err = r.Task(task.ID{1})
		wants(t, "task that is not there", err, ledger.ErrNotFound)
		return nil
	})
	closing, err := a.Close(base(), task.Completed)
	wants(t, "close", err, nil)
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "update", tx.UpdateTask(closing, task.Active), nil)
		wants(t, "update from a state that is past", tx.UpdateTask(closing, task.Active), ledger.ErrStale)
		wants(t, "update what is not there", tx.UpdateTask(newTask(t, 5, "x"), task.Active), ledger.ErrStale)
		got, err := tx.Task(a.ID)
		same(t, "updated task within the transaction", got, closing)
		return err
	})
}

func testTaskLists(t *testing.T, s *suite) {
	t.Helper()
	var all []task.Task // oldest first
	s.write(t, func(tx ledger.StoreTx) error {
		for n := range 9 {
			row := newTask(t, n, []string{"agent-a", "agent-b"}[n%2])
			row.State = []task.State{task.Active, task.Closing, task.Closed}[n%3]
			if err := tx.InsertTask(row); err != nil {
				return err
			}
			all = append(all, row)
		}
		return nil
	})
	filters := map[string]ledger.TaskFilter{
		"all":                {},
		"agent":              {Agent: "agent-b"},
		"open":               {States: []task.State{task.Active, task.Closing}},
		"closed":             {States: []task.State{task.Closed}},
		"agent, open":        {Agent: "agent-a", States: []task.State{task.Active}},
		"agent, closed":      {Agent: "agent-a", States: []task.State{task.Closed}},
		"agent, both":        {Agent: "agent-a", States: []task.State{task.Closed, task.Closing}},
		"agent that has no":  {Agent: "agent-c"},
		"after the fourth":   {Before: all[4].ID},
		"agent, from fourth": {Agent: "agent-a", Before: all[4].ID},
	}
	for name, f := range filters {
		var want []task.Task
		for _, row := range slices.Backward(all) {
			if taskMatches(row, f) {
				want = append(want, row)
			}
		}
		for _, limit := range []int{1, 2, 100} {
			f.Limit = limit
			s.read(t, func(r ledger.Reader) error {
				got, err := r.ListTasks(f)
				same(t, name, got, want[:min(limit, len(want))])
				return err
			})
		}
	}
}

// taskMatches says what a filter means.
func taskMatches(t task.Task, f ledger.TaskFilter) bool {
	return (f.Agent == "" || t.Agent == f.Agent) && matches(f.States, t.State) &&
		(f.Before == task.ID{} || t.ID.String() < f.Before.String())
}

// matches reports whether a state is among those asked for; none means all.
func matches[S comparable](states []S, state S) bool {
	return len(states) == 0 || slices.Contains(states, state)
}
