package ledgertest

import (
	"slices"
	"testing"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

func testLeases(t *testing.T, s *suite) {
	t.Helper()
	owner := newTask(t, 1, "agent-a")
	a := newLease(t, 1, owner)
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "insert task", tx.InsertTask(owner), nil)
		wants(t, "insert", tx.InsertLease(a), nil)
		taken := newLease(t, 2, owner)
		taken.ID = a.ID
		wants(t, "taken ID", tx.InsertLease(taken), ledger.ErrExists)
		wants(t, "taken request ID", tx.InsertLease(newLease(t, 1, owner)), ledger.ErrExists)
		for range 2 {
			none := newLease(t, 3, owner)
			none.RequestID = ""
			wants(t, "no request ID is never taken", tx.InsertLease(none), nil)
		}
		return nil
	})
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Lease(a.ID)
		wants(t, "lease", err, nil)
		same(t, "lease", got, a)
		got, err = r.FindLease(ledger.LeaseKey{Agent: "agent-a", RequestID: "request-1"})
		wants(t, "find by request", err, nil)
		same(t, "lease by request", got, a)
		for _, key := range []ledger.LeaseKey{{}, {Agent: "agent-b", RequestID: "request-1"}, {Agent: "agent-a"}, {Ref: "no"}} {
			_, err = r.FindLease(key)
			wants(t, "find what is not there", err, ledger.ErrNotFound)
		}
		_, err = r.Lease(lease.ID{1})
		wants(t, "lease that is not there", err, ledger.ErrNotFound)
		return nil
	})
	revoking := a.AskEnd(base(), lease.Requested)
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "update", tx.UpdateLease(revoking, a), nil)
		wants(t, "update from a state that is past", tx.UpdateLease(revoking, a), ledger.ErrStale)
		got, err := tx.Lease(a.ID)
		same(t, "updated lease within the transaction", got, revoking)
		return err
	})
}

func testLeaseLists(t *testing.T, s *suite) {
	t.Helper()
	states := []lease.State{
		lease.Intent, lease.Active, lease.Revoking, lease.Revoked, lease.Lapsing, lease.Lapsed, lease.Disclosed,
	}
	owners := []task.Task{newTask(t, 1, "agent-a"), newTask(t, 2, "agent-a"), newTask(t, 3, "agent-b")}
	var all []lease.Lease // oldest first
	s.write(t, func(tx ledger.StoreTx) error {
		for _, owner := range owners {
			wants(t, "insert task", tx.InsertTask(owner), nil)
		}
		for n := range 2 * len(states) * len(owners) {
			row := newLease(t, n, owners[n%len(owners)])
			row.State, row.Role, row.Stuck = states[n%len(states)], []string{"r", "q"}[n%2], n%5 == 0
			if err := tx.InsertLease(row); err != nil {
				return err
			}
			all = append(all, row)
		}
		return nil
	})
	filters := map[string]ledger.LeaseFilter{
		"all":               {},
		"agent":             {Agent: "agent-a"},
		"task":              {Task: owners[1].ID},
		"task and agent":    {Task: owners[1].ID, Agent: "agent-a"},
		"another's task":    {Task: owners[2].ID, Agent: "agent-a"},
		"role":              {Role: "q"},
		"stuck":             {Stuck: true},
		"stuck of an agent": {Stuck: true, Agent: "agent-a"},
		"open":              {States: []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}},
		"open of a role":    {Role: "r", States: []lease.State{lease.Intent, lease.Active}},
		"final":             {States: []lease.State{lease.Revoked, lease.Lapsed, lease.Disclosed}},
		"agent, open":       {Agent: "agent-a", States: []lease.State{lease.Active}},
		"agent, final":      {Agent: "agent-a", States: []lease.State{lease.Revoked}},
		"task, both":        {Task: owners[0].ID, States: []lease.State{lease.Revoked, lease.Active}},
		"later page":        {Agent: "agent-a", Before: all[11].ID},
		"later page of all": {Before: all[11].ID},
	}
	for name, f := range filters {
		var want []lease.Lease
		for _, row := range slices.Backward(all) {
			if leaseMatches(row, f) {
				want = append(want, row)
			}
		}
		limits := []int{1, 3, 100}
		if f.Task != (task.ID{}) {
			limits = append(limits, 0)
		}
		for _, limit := range limits {
			f.Limit = limit
			page := want
			if limit > 0 {
				page = want[:min(limit, len(want))]
			}
			s.read(t, func(r ledger.Reader) error {
				got, err := r.ListLeases(f)
				same(t, name, got, page)
				return err
			})
		}
	}
}

// leaseMatches says what a filter means.
func leaseMatches(l lease.Lease, f ledger.LeaseFilter) bool {
	return (f.Agent == "" || l.Agent == f.Agent) && (f.Task == task.ID{} || l.Task == f.Task) &&
		(f.Role == "" || l.Role == f.Role) && (!f.Stuck || l.Stuck) && matches(f.States, l.State) &&
		(f.Before == lease.ID{} || l.ID.String() < f.Before.String())
}

func testRefs(t *testing.T, s *suite) {
	t.Helper()
	owner := newTask(t, 1, "agent-a")
	vault, plain, older, newer := newLease(t, 1, owner), newLease(t, 2, owner), newLease(t, 3, owner), newLease(t, 4, owner)
	vault.Handle, vault.PublicRef = `{"accessor":"hmac-accessor-1","lease":"db/creds/ro/AbCdEfGhIjKl","n":[{"x":"deep-in-there"}],"v":"short"}`, "v-user-1"
	plain.Handle = "plain-handle"
	older.PublicRef, newer.PublicRef = "CN=same", "CN=same"
	intent := vault
	intent.State, intent.Handle, intent.PublicRef = lease.Intent, `{"accessor":"hmac-accessor-1"}`, ""
	s.write(t, func(tx ledger.StoreTx) error {
		wants(t, "insert task", tx.InsertTask(owner), nil)
		for _, l := range []lease.Lease{intent, plain, older, newer} {
			wants(t, "insert", tx.InsertLease(l), nil)
		}
		return tx.UpdateLease(vault, intent)
	})
	found := map[string]plugins.LeaseID{
		"v-user-1": vault.ID, "hmac-accessor-1": vault.ID, "db/creds/ro/AbCdEfGhIjKl": vault.ID, "AbCdEfGhIjKl": vault.ID,
		"deep-in-there": vault.ID, "plain-handle": plain.ID, "CN=same": newer.ID,
	}
	s.read(t, func(r ledger.Reader) error {
		for ref, want := range found {
			got, err := r.FindLease(ledger.LeaseKey{Ref: ref})
			wants(t, ref, err, nil)
			same(t, ref, got.ID, want)
		}
		for _, ref := range []string{"short", "accessor", "hmac-accessor", "%"} {
			_, err := r.FindLease(ledger.LeaseKey{Ref: ref})
			wants(t, ref, err, ledger.ErrNotFound)
		}
		return nil
	})
}
