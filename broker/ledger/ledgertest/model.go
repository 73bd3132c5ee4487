package ledgertest

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// model is what a store should hold: maps, and the meaning of every query spelled out over them.
type model struct {
	tb     testing.TB
	tx     ledger.StoreTx
	n      int
	tasks  map[task.ID]task.Task
	leases map[lease.ID]lease.Lease
}

// testModel writes at random and holds every query against the model, in transactions that are rolled back.
//
// Invariants: a failed write changes nothing; a conditional write succeeds exactly when its condition holds; every query
// answers what the maps answer.
func testModel(t *testing.T, s *suite) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		tx, err := s.store.Begin(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{tb: t, tx: tx, tasks: map[task.ID]task.Task{}, leases: map[lease.ID]lease.Lease{}}
		m.insertTask(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"insert task": m.insertTask, "update task": m.updateTask, "insert lease": m.insertLease,
			"update lease": m.updateLease, "undo": m.undo, "": m.check,
		})
		if err := tx.Rollback(); err != nil {
			rt.Fatal(err)
		}
	})
}

func (m *model) agent(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"agent-a", "agent-b"}).Draw(rt, "agent")
}

func (m *model) at(rt *rapid.T) time.Time {
	n := rapid.IntRange(-1, 9).Draw(rt, "at")
	if n < 0 {
		return time.Time{}
	}
	return base().Add(time.Duration(n) * time.Second)
}

func (m *model) anyTask(rt *rapid.T) task.Task {
	ids := slices.SortedFunc(maps.Keys(m.tasks), func(a, b task.ID) int { return slices.Compare(a[:], b[:]) })
	return m.tasks[rapid.SampledFrom(ids).Draw(rt, "task")]
}

func (m *model) anyLease(rt *rapid.T) lease.Lease {
	if len(m.leases) == 0 {
		rt.Skip("no lease yet")
	}
	ids := slices.SortedFunc(maps.Keys(m.leases), func(a, b lease.ID) int { return slices.Compare(a[:], b[:]) })
	return m.leases[rapid.SampledFrom(ids).Draw(rt, "lease")]
}

func (m *model) insertTask(rt *rapid.T) {
	m.n++
	row := newTask(m.tb, rapid.IntRange(0, 20).Draw(rt, "request"), m.agent(rt))
	row.State = rapid.SampledFrom([]task.State{task.Active, task.Closing, task.Closed}).Draw(rt, "state")
	row.NextAt = m.at(rt)
	if row.State != task.Active {
		row.NextAt = time.Time{}
	}
	taken := false
	for _, t := range m.tasks {
		taken = taken || (t.Agent == row.Agent && t.RequestID == row.RequestID)
	}
	err := m.tx.InsertTask(row)
	if taken {
		m.must(rt, err, ledger.ErrExists)
		return
	}
	m.must(rt, err, nil)
	m.tasks[row.ID] = row
}

func (m *model) updateTask(rt *rapid.T) {
	row := m.anyTask(rt)
	from := rapid.SampledFrom([]task.State{row.State, row.State, task.Active}).Draw(rt, "from")
	stale := from != row.State
	row.State = rapid.SampledFrom([]task.State{task.Active, task.Closing, task.Closed}).Draw(rt, "state")
	if row.NextAt = m.at(rt); row.State != task.Active {
		row.NextAt = time.Time{}
	}
	err := m.tx.UpdateTask(row, from)
	if stale {
		m.must(rt, err, ledger.ErrStale)
		return
	}
	m.must(rt, err, nil)
	m.tasks[row.ID] = row
}

func (m *model) draw(rt *rapid.T, row lease.Lease) lease.Lease {
	row.State = rapid.SampledFrom([]lease.State{
		lease.Intent, lease.Active, lease.Revoking, lease.Lapsing, lease.Revoked, lease.Disclosed,
	}).Draw(rt, "state")
	row.NextAt, row.ClaimUntil, row.Stuck = m.at(rt), m.at(rt), rapid.Bool().Draw(rt, "stuck")
	return row
}

func (m *model) insertLease(rt *rapid.T) {
	m.n++
	row := m.draw(rt, newLease(m.tb, m.n, m.anyTask(rt)))
	row.Lane = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "lane")
	m.must(rt, m.tx.InsertLease(row), nil)
	m.leases[row.ID] = row
}

func (m *model) updateLease(rt *rapid.T) {
	from := m.anyLease(rt)
	row := m.draw(rt, from)
	row.Claim += rapid.Int64Range(0, 1).Draw(rt, "claim")
	shift := rapid.Int64Range(0, 1).Draw(rt, "stale")
	from.Claim += shift
	err := m.tx.UpdateLease(row, from)
	if shift != 0 {
		m.must(rt, err, ledger.ErrStale)
		return
	}
	m.must(rt, err, nil)
	m.leases[row.ID] = row
}

// undo makes random writes that are undone.
func (m *model) undo(rt *rapid.T) {
	own := errors.New("own")
	tasks, leases := maps.Clone(m.tasks), maps.Clone(m.leases)
	err := m.tx.Nested(func() error {
		m.insertTask(rt)
		m.updateTask(rt)
		m.insertLease(rt)
		m.updateLease(rt)
		return own
	})
	m.must(rt, err, own)
	m.tasks, m.leases = tasks, leases
}

func (m *model) must(rt *rapid.T, err, want error) {
	if !errors.Is(err, want) {
		rt.Fatalf("got error %v, want %v", err, want)
	}
}

// due is when a lease is due, or false.
func due(l lease.Lease) (time.Time, bool) {
	if l.State.Final() || l.NextAt.IsZero() {
		return time.Time{}, false
	}
	if l.ClaimUntil.After(l.NextAt) {
		return l.ClaimUntil, true
	}
	return l.NextAt, true
}

// check holds the queries against the maps.
func (m *model) check(rt *rapid.T) {
	at := base().Add(4 * time.Second)
	dueByLane, open, live := map[string][]lease.ID{}, map[task.ID]int{}, map[string]int{}
	for _, l := range m.leases {
		if !l.State.Final() {
			open[l.Task]++
			live[l.Agent]++
		}
		if d, ok := due(l); ok && !d.After(at) {
			dueByLane[l.Lane] = append(dueByLane[l.Lane], l.ID)
		}
	}
	m.checkNextDue(rt)
	m.checkLanes(rt, at, dueByLane)
	m.checkAgents(rt, live)
	for id := range m.tasks {
		if some, err := m.tx.HasOpenLeases(id); err != nil || some != (open[id] > 0) {
			rt.Fatalf("open leases %t, want %d (%v)", some, open[id], err)
		}
	}
}

func (m *model) checkNextDue(rt *rapid.T) {
	var first time.Time
	earliest := func(d time.Time) {
		if first.IsZero() || d.Before(first) {
			first = d
		}
	}
	for _, l := range m.leases {
		if d, ok := due(l); ok {
			earliest(d)
		}
	}
	for _, t := range m.tasks {
		if t.State == task.Active && !t.NextAt.IsZero() {
			earliest(t.NextAt)
		}
	}
	next, err := m.tx.NextDue()
	if err != nil || !next.Equal(first) {
		rt.Fatalf("next due %s, want %s (%v)", next, first, err)
	}
}

func (m *model) checkLanes(rt *rapid.T, at time.Time, want map[string][]lease.ID) {
	lanes, err := m.tx.DueLanes(at)
	if err != nil || !slices.Equal(lanes, slices.Sorted(maps.Keys(want))) {
		rt.Fatalf("due lanes %v, want %v (%v)", lanes, want, err)
	}
	for lane, ids := range want {
		leases, err := m.tx.DueLeases(lane, at, 1000)
		if err != nil || !sameIDs(leaseIDs(leases), ids) {
			rt.Fatalf("due leases %v, want %v (%v)", leaseIDs(leases), ids, err)
		}
		sorted := slices.IsSortedFunc(leases, func(a, b lease.Lease) int {
			x, _ := due(a)
			y, _ := due(b)
			return x.Compare(y)
		})
		if !sorted {
			rt.Fatalf("due leases are not in order")
		}
	}
}

func (m *model) checkAgents(rt *rapid.T, live map[string]int) {
	for _, agent := range []string{"agent-a", "agent-b"} {
		var want []lease.ID
		for _, l := range m.leases {
			if l.Agent == agent && l.State == lease.Active {
				want = append(want, l.ID)
			}
		}
		got, err := m.tx.ListLeases(ledger.LeaseFilter{Agent: agent, States: []lease.State{lease.Active}, Limit: 1000})
		if err != nil || !sameIDs(leaseIDs(got), want) {
			rt.Fatalf("leases of %s: %v, want %v (%v)", agent, leaseIDs(got), want, err)
		}
		if n, err := m.tx.LiveLeases(agent); err != nil || n != live[agent] {
			rt.Fatalf("live leases %d, want %d (%v)", n, live[agent], err)
		}
	}
}

// sameIDs compares sets.
func sameIDs(a, b []plugins.LeaseID) bool {
	byBytes := func(a, b plugins.LeaseID) int { return slices.Compare(a[:], b[:]) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), byBytes), slices.SortedFunc(slices.Values(b), byBytes))
}
