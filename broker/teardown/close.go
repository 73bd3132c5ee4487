package teardown

import (
	"slices"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// Cause is who ends a task, and why.
type Cause struct {
	Actor   audit.Actor
	Request string // the request ID; empty where the broker itself ends it
	Why     task.CloseReason
	Comment string // for people; enters the record as a salted hash
	Now     time.Time
}

// Stint is the actor of what the broker does by itself.
func Stint() audit.Actor { return audit.Actor{ID: "stint"} }

// Close begins the end of a task in the caller's transaction: nothing more is admitted, every ACTIVE lease is due for
// teardown at once, and an INTENT waits for its horizon. It waits for nobody. A task without an open lease is CLOSED in
// the same commit. A task that is not ACTIVE answers task.ErrState, and nothing is written.
func Close(tx *ledger.Tx, id task.ID, cause Cause) error {
	from, err := tx.Task(id)
	if err != nil {
		return err
	}
	closing, err := from.Close(cause.Now, cause.Why)
	if err != nil {
		return err
	}
	leases, err := tx.ListLeases(ledger.LeaseFilter{Task: id})
	if err != nil {
		return err
	}
	rec := taskRecord(audit.TaskClosing, closing, cause.Now)
	rec.Actor, rec.Request = cause.Actor, cause.Request
	if cause.Comment != "" {
		rec.Texts = map[string]string{"comment": cause.Comment}
	}
	if _, err := tx.Append(rec); err != nil {
		return err
	}
	if err := askEnd(tx, leases, lease.TaskClosed, cause.Now); err != nil {
		return err
	}
	if err := tx.UpdateTask(closing, from.State); err != nil {
		return err
	}
	return finish(tx, id, cause.Now)
}

// EndRole asks for the end of every lease that was issued by a role, in the caller's transaction, and returns how many.
func EndRole(tx *ledger.Tx, role string, now time.Time) (int, error) {
	leases, err := tx.ListLeases(ledger.LeaseFilter{
		Role: role, States: []lease.State{lease.Intent, lease.Active}, Limit: everything,
	})
	if err != nil {
		return 0, err
	}
	return len(leases), askEnd(tx, leases, lease.RoleRemoved, now)
}

// EndUnconfigured asks for the end of every lease whose backend is not configured, in the caller's transaction, and returns
// how many by backend. Those whose end was asked for before count too: they all wait for that backend.
func EndUnconfigured(tx *ledger.Tx, configured func(backend string) bool, now time.Time) (map[string]int, error) {
	open, err := tx.ListLeases(ledger.LeaseFilter{
		States: []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}, Limit: everything,
	})
	if err != nil {
		return nil, err
	}
	open = slices.DeleteFunc(open, func(l lease.Lease) bool { return configured(l.Backend) })
	n := map[string]int{}
	for _, l := range open {
		n[l.Backend]++
	}
	return n, askEnd(tx, open, lease.BackendRemoved, now)
}

// EndLeases asks for the end of leases in the caller's transaction, while their tasks go on. Each whose end was not asked
// for before gets a record of who did.
func EndLeases(tx *ledger.Tx, leases []lease.Lease, cause Cause) error {
	for _, from := range leases {
		next := from.AskEnd(cause.Now, lease.Stopped)
		if next.AskedAt.Equal(from.AskedAt) { // final, or asked for before
			continue
		}
		rec := leaseRecord(audit.LeaseEnding, next, cause.Now)
		rec.Actor, rec.Request = cause.Actor, cause.Request
		if _, err := tx.Append(rec); err != nil {
			return err
		}
		if err := tx.UpdateLease(next, from); err != nil {
			return err
		}
	}
	return nil
}

// everything is more rows than a ledger holds alive.
const everything = 1 << 30

func askEnd(tx *ledger.Tx, leases []lease.Lease, why lease.Cause, now time.Time) error {
	for _, from := range leases {
		next := from.AskEnd(now, why)
		if next.AskedAt.Equal(from.AskedAt) { // final, or asked for before
			continue
		}
		if err := tx.UpdateLease(next, from); err != nil {
			return err
		}
	}
	return nil
}

// finish closes a CLOSING task whose leases are all final.
func finish(tx *ledger.Tx, id task.ID, now time.Time) error {
	from, err := tx.Task(id)
	if err != nil || from.State != task.Closing {
		return err
	}
	open, err := tx.HasOpenLeases(id)
	if err != nil || open {
		return err
	}
	leases, err := tx.ListLeases(ledger.LeaseFilter{Task: id})
	if err != nil {
		return err
	}
	closed, err := from.Finish(now, lease.Summarise(leases))
	if err != nil {
		return err
	}
	rec := taskRecord(audit.TaskClosed, closed, now)
	rec.Actor, rec.Summary = Stint(), &closed.Summary
	if _, err := tx.Append(rec); err != nil {
		return err
	}
	return tx.UpdateTask(closed, from.State)
}

func taskRecord(event audit.Event, t task.Task, now time.Time) audit.Record {
	return audit.Record{
		V: 1, Time: now.UTC(), Event: event, Agent: t.Agent, Profile: t.Profile, Owner: t.Owner, Sponsor: t.Sponsor,
		Task: t.ID.String(), TaskName: t.ShortName, Purpose: t.Purpose, Reason: string(t.CloseReason),
	}
}

// leaseRecord is a record about a lease whose task need not be read.
func leaseRecord(event audit.Event, l lease.Lease, now time.Time) audit.Record {
	return audit.Record{
		V: 1, Time: now.UTC(), Event: event, Actor: Stint(), Agent: l.Agent, Task: l.Task.String(), TaskName: l.TaskName,
		Lease: l.ID.String(), Role: l.Role, Backend: l.Backend, Ref: l.PublicRef, NotAfter: l.NotAfter,
		Reason: string(l.Cause),
	}
}
