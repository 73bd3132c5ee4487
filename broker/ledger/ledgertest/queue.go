package ledgertest

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

func leaseIDs(leases []lease.Lease) []plugins.LeaseID {
	ids := make([]plugins.LeaseID, len(leases))
	for i, l := range leases {
		ids[i] = l.ID
	}
	return ids
}

func testQueue(t *testing.T, s *suite) {
	t.Helper()
	s.read(t, func(r ledger.Reader) error {
		due, err := r.NextDue()
		if !due.IsZero() {
			t.Errorf("an empty ledger is due at %s", due)
		}
		return err
	})
	owner, later := newTask(t, 1, "agent-a"), newTask(t, 2, "agent-a")
	owner.NextAt, later.NextAt = base().Add(7*time.Second), base().Add(9*time.Second)
	closing := newTask(t, 3, "agent-a")
	closing.State, closing.NextAt = task.Closing, time.Time{}
	var rows []lease.Lease
	s.write(t, func(tx ledger.StoreTx) error {
		for _, row := range []task.Task{later, owner, closing} {
			wants(t, "insert task", tx.InsertTask(row), nil)
		}
		for n, at := range []int{5, 3, 4, 6} {
			row := newLease(t, n, owner)
			row.NextAt, row.Lane = base().Add(time.Duration(at)*time.Second), []string{"vault/a", "vault/a", "stepca/b", "vault/a"}[n]
			wants(t, "insert", tx.InsertLease(row), nil)
			rows = append(rows, row)
		}
		final, unplanned := newLease(t, 8, owner), newLease(t, 9, owner)
		final.State, final.NextAt = lease.Revoked, base()
		unplanned.NextAt = time.Time{}
		wants(t, "insert final", tx.InsertLease(final), nil)
		return tx.InsertLease(unplanned)
	})
	s.read(t, func(r ledger.Reader) error {
		at := base().Add(5 * time.Second)
		got, err := r.DueLeases("vault/a", at, 10)
		wants(t, "due leases", err, nil)
		same(t, "due leases, earliest first", leaseIDs(got), []plugins.LeaseID{rows[1].ID, rows[0].ID})
		got, err = r.DueLeases("vault/a", at, 1)
		wants(t, "due leases", err, nil)
		same(t, "the first due lease", leaseIDs(got), []plugins.LeaseID{rows[1].ID})
		got, err = r.DueLeases("vault/a", at.Add(-1), 10)
		wants(t, "due leases", err, nil)
		same(t, "one nanosecond earlier", leaseIDs(got), []plugins.LeaseID{rows[1].ID})
		got, err = r.DueLeases("vault/a", at, 10, owner.ID, closing.ID)
		wants(t, "due leases", err, nil)
		same(t, "due leases but for those of tasks", len(got), 0)
		got, err = r.DueLeases("vault/a", at, 1, closing.ID)
		wants(t, "due leases", err, nil)
		same(t, "the first due lease but for those of another task", leaseIDs(got), []plugins.LeaseID{rows[1].ID})
		laneNames, err := r.DueLanes(base().Add(3 * time.Second))
		wants(t, "due lanes", err, nil)
		same(t, "lanes at 3 s", laneNames, []string{"vault/a"})
		laneNames, err = r.DueLanes(at)
		wants(t, "due lanes", err, nil)
		same(t, "lanes at 5 s", laneNames, []string{"stepca/b", "vault/a"})
		tasks, err := r.DueTasks(base().Add(7*time.Second), 10)
		wants(t, "due tasks", err, nil)
		same(t, "due tasks", tasks, []task.ID{owner.ID})
		tasks, err = r.DueTasks(base().Add(time.Hour), 10)
		wants(t, "due tasks", err, nil)
		same(t, "due tasks, earliest first", tasks, []task.ID{owner.ID, later.ID})
		tasks, err = r.DueTasks(base().Add(time.Hour), 10, owner.ID)
		wants(t, "due tasks", err, nil)
		same(t, "due tasks but for one", tasks, []task.ID{later.ID})
		due, err := r.NextDue()
		same(t, "next due", due.UTC(), base().Add(3*time.Second))
		return err
	})
}

func testClaims(t *testing.T, s *suite) {
	t.Helper()
	owner := newTask(t, 1, "agent-a")
	row := newLease(t, 1, owner)
	row.State, row.NextAt = lease.Revoking, base()
	claimed := row
	claimed.Claim, claimed.ClaimUntil = 1, base().Add(30*time.Second)
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "insert task", tx.InsertTask(owner), nil)
		wants(t, "insert", tx.InsertLease(row), nil)
		wants(t, "claim", tx.UpdateLease(claimed, row), nil)
		wants(t, "claim what is claimed", tx.UpdateLease(claimed, row), ledger.ErrStale)
		return nil
	})
	s.read(t, func(r ledger.Reader) error {
		got, err := r.DueLeases("b/1", base().Add(29*time.Second), 10)
		wants(t, "due leases", err, nil)
		same(t, "due while the claim holds", len(got), 0)
		laneNames, err := r.DueLanes(base().Add(29 * time.Second))
		wants(t, "due lanes", err, nil)
		same(t, "lanes while the claim holds", len(laneNames), 0)
		due, err := r.NextDue()
		wants(t, "next due", err, nil)
		same(t, "next due is the end of the claim", due.UTC(), claimed.ClaimUntil)
		got, err = r.DueLeases("b/1", claimed.ClaimUntil, 10)
		same(t, "due when the claim ends", leaseIDs(got), []plugins.LeaseID{row.ID})
		return err
	})
	again := claimed
	again.Claim, again.ClaimUntil = 2, base().Add(time.Minute)
	s.write(t, func(tx ledger.StoreTx) error { return tx.UpdateLease(again, claimed) })
	late, err := claimed.End(plugins.Ending{Proof: plugins.ReadBack, At: base()})
	wants(t, "end", err, nil)
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "a result of an old claim", tx.UpdateLease(late, claimed), ledger.ErrStale)
		return nil
	})
}

func testCounts(t *testing.T, s *suite) {
	t.Helper()
	past, future := time.Now().Add(-time.Hour).UTC(), time.Now().Add(time.Hour).UTC()
	a, b, done := newTask(t, 1, "agent-a"), newTask(t, 2, "agent-b"), newTask(t, 3, "agent-a")
	done.State = task.Closed
	s.write(t, func(tx ledger.StoreTx) error {
		for _, row := range []task.Task{a, b, done} {
			wants(t, "insert task", tx.InsertTask(row), nil)
		}
		for n, state := range []lease.State{lease.Active, lease.Active, lease.Revoking, lease.Revoked, lease.Disclosed, lease.Intent} {
			row := newLease(t, n, a)
			row.State, row.NextAt = state, future
			if state == lease.Revoking {
				row.NextAt, row.Stuck = past, true
			}
			wants(t, "insert", tx.InsertLease(row), nil)
		}
		return tx.InsertLease(newLease(t, 7, b))
	})
	s.read(t, func(r ledger.Reader) error {
		count := func(what string, n int, err error, want int) {
			t.Helper()
			wants(t, what, err, nil)
			same(t, what, n, want)
		}
		n, err := r.LiveTasks("agent-a")
		count("live tasks", n, err, 1)
		n, err = r.LiveLeases("agent-a")
		count("live leases", n, err, 4)
		some, err := r.HasOpenLeases(a.ID)
		same(t, "open leases", []any{some, err}, []any{true, nil})
		some, err = r.HasOpenLeases(done.ID)
		same(t, "open leases of a task without", []any{some, err}, []any{false, nil})
		st, err := r.Stats()
		same(t, "stats", st, ledger.Stats{
			TasksByState:  map[task.State]int{task.Active: 2},
			LeasesByState: map[lease.State]int{lease.Active: 3, lease.Revoking: 1, lease.Intent: 1},
			Stuck:         1, Overdue: 1, OldestDue: past,
		})
		return err
	})
}

func testResources(t *testing.T, s *suite) {
	t.Helper()
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "put", tx.PutResource(ledger.Resource{Name: "roles/b", YAML: "x: 1", Source: "api"}), nil)
		wants(t, "put", tx.PutResource(ledger.Resource{Name: "roles/a", YAML: "y: 1", Source: "a.yaml"}), nil)
		wants(t, "put again", tx.PutResource(ledger.Resource{Name: "roles/b", YAML: "x: 2", Source: "b.yaml"}), nil)
		wants(t, "delete what is not there", tx.DeleteResource("roles/c"), ledger.ErrNotFound)
		return nil
	})
	want := []ledger.Resource{{Name: "roles/a", YAML: "y: 1", Source: "a.yaml"}, {Name: "roles/b", YAML: "x: 2", Source: "b.yaml"}}
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Resources()
		same(t, "resources", got, want)
		return err
	})
	s.write(t, func(tx ledger.StoreTx) error { return tx.DeleteResource("roles/a") })
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Resources()
		same(t, "resources after a delete", got, want[1:])
		return err
	})
}
