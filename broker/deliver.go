package broker

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// carryOut runs the steps of an issue in the one order that loses nothing.
func (b *Broker) carryOut(ctx context.Context, is *issue) (Issued, error) {
	ctx, cancel := context.WithDeadline(ctx, is.deadline)
	defer cancel()
	preparer, prepares := is.backend.(plugins.Preparer)
	if prepares {
		prepared, err := preparer.Prepare(ctx, is.request)
		if err != nil {
			return Issued{}, err
		}
		failpoint.Hit("issue.prepared")
		is.request.Prepared, is.lease.Handle, is.lease.UsableUntil = prepared, prepared.Handle, prepared.UsableUntil
		defer prepared.State.Wipe()
	}
	if prepares || is.backend.Descriptor().Horizon > 0 {
		if err := b.intend(ctx, is); err != nil {
			b.discard(ctx, is)
			return Issued{}, inTime(err)
		}
	}
	failpoint.Hit("issue.intent")
	is.asked = true
	cred, err := is.backend.Issue(ctx, is.request)
	if err != nil {
		return Issued{}, b.failed(ctx, is, err)
	}
	failpoint.Hit("issue.issued")
	commit, err := b.activate(ctx, is, cred)
	if err != nil {
		wipe(cred)
		return Issued{}, inTime(err)
	}
	failpoint.Hit("issue.active")
	return Issued{Lease: is.lease, Credential: cred, Checkpoint: commit.Checkpoint}, nil
}

// intend makes the intent durable: from here on the handle can be found and ended, whatever happens.
func (b *Broker) intend(ctx context.Context, is *issue) error {
	_, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		is.lease.SweepAt = sweepAt(time.Now(), is.deadline, is.backend.Descriptor().Horizon)
		is.lease.NextAt = is.lease.SweepAt
		t, err := b.admitLease(tx, is)
		if err != nil {
			return err
		}
		rec := leaseRecord(is.caller, audit.LeaseIntent, t, is.lease)
		rec.PolicySet, rec.Policies = is.decision.PolicySet(), is.decision.Policies()
		if _, err := tx.Append(rec); err != nil {
			return err
		}
		return tx.InsertLease(is.lease)
	})
	is.intended = err == nil
	return err
}

// sweepAt returns when an intent may be swept, by the clock as it stands in the transaction that makes it durable: it may have
// been set since the issue began, whose deadline goes by the monotonic one. What is in the ledger by then, teardown plans anew.
func sweepAt(now, deadline time.Time, horizon time.Duration) time.Time {
	return now.Add(deadline.Sub(now) + horizon)
}

// admitLease checks, inside the transaction that inserts a lease, what may have changed since the decision.
func (b *Broker) admitLease(tx *ledger.Tx, is *issue) (task.Task, error) {
	t, err := tx.Task(is.task.ID)
	if err != nil {
		return t, err
	}
	if err = notSuspended(tx, t.Agent); err != nil {
		return t, err
	}
	if t.State != task.Active || !time.Now().Before(t.NotAfter) {
		return t, lateFault(t)
	}
	if !b.catalog.has(is.lease.Role, is.lease.Backend) {
		return t, removedFault(is.lease.Role)
	}
	_, err = tx.FindLease(ledger.LeaseKey{Agent: is.lease.Agent, RequestID: is.lease.RequestID})
	if !errors.Is(err, ledger.ErrNotFound) {
		return t, errors.Join(ledger.ErrExists, err)
	}
	live, err := tx.LiveLeases(t.Agent)
	if err != nil {
		return t, err
	}
	if limit := is.decision.Profile().MaxLiveLeases; limit > 0 && live >= limit {
		return t, tooMany(fault.TooManyLeases, "live leases", limit, t.Profile)
	}
	return t, nil
}

// lateFault says that a task ended while something was being issued for it.
func lateFault(t task.Task) error {
	reason := fault.TaskClosed
	if t.CloseReason == task.Expired || t.State == task.Active {
		reason = fault.TaskExpired
	}
	return fault.New(reason, "the task ended while the credential was being issued; it was not handed out")
}

// removedFault says that a role or its backend was removed while something was being issued by it.
func removedFault(role string) error {
	return fault.New(fault.RoleOutsideProfile,
		"role "+role+" or its backend was removed while the credential was being issued; it was not handed out")
}

// tooLate says, inside the transaction that would activate a lease, why its credential is not handed out; nil where it is.
func tooLate(tx *ledger.Tx, t task.Task, from lease.Lease) (late, err error) {
	if err = notSuspended(tx, t.Agent); err != nil {
		if f, refused := errors.AsType[*fault.Error](err); refused {
			return f, nil
		}
		return nil, err
	}
	if from.State != lease.Intent || !from.AskedAt.IsZero() || t.State != task.Active || !time.Now().Before(t.NotAfter) {
		return dropFault(t, from), nil
	}
	return nil, nil
}

// dropFault says why a credential is not handed out: its task ended, or the end of its lease was asked for.
func dropFault(t task.Task, from lease.Lease) error {
	switch {
	case t.State != task.Active || !time.Now().Before(t.NotAfter):
		return lateFault(t)
	case from.Cause == lease.RoleRemoved, from.Cause == lease.BackendRemoved:
		return removedFault(from.Role)
	default:
		return fault.New(fault.AlreadyIssued, "the end of lease "+from.ID.String()+" was asked for while it was being issued; "+
			"it was not handed out: ask anew").With("lease", "leases/"+from.ID.String())
	}
}

// activate makes the lease ACTIVE if its task still is. Otherwise the credential is torn down, and never leaves.
func (b *Broker) activate(ctx context.Context, is *issue, cred plugins.Credential) (ledger.Commit, error) {
	// The commit is waited for beyond the issue's deadline: its outcome decides what is true.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), IssueTimeout)
	defer cancel()
	if !is.intended {
		return b.activateAtOnce(ctx, is, cred)
	}
	var late error
	commit, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		from, err := tx.Lease(is.lease.ID)
		if err != nil {
			return err
		}
		t, err := tx.Task(is.task.ID)
		if err != nil {
			return err
		}
		if late, err = tooLate(tx, t, from); err != nil {
			return err
		}
		if late != nil {
			return b.dropLate(tx, is, t, from, cred)
		}
		next, err := from.Activate(cred)
		if err != nil {
			return err
		}
		is.lease = next
		if _, err := tx.Append(leaseRecord(is.caller, audit.LeaseActive, t, next)); err != nil {
			return err
		}
		return tx.UpdateLease(next, from)
	})
	if err != nil { // the intent stays: it is swept for certain
		is.lease.Handle = cred.Handle
		b.undo(ctx, is, err)
		return commit, err
	}
	if late != nil {
		failpoint.Hit("issue.dropped")
	}
	return commit, late
}

// activateAtOnce inserts an ACTIVE lease, for a backend whose issuing has no effect before the answer is released.
func (b *Broker) activateAtOnce(ctx context.Context, is *issue, cred plugins.Credential) (ledger.Commit, error) {
	active, err := is.lease.Activate(cred)
	if err != nil {
		return ledger.Commit{}, err
	}
	is.lease = active
	commit, failure := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		t, err := b.admitLease(tx, is)
		if err != nil {
			return err
		}
		rec := leaseRecord(is.caller, audit.LeaseActive, t, active)
		rec.PolicySet, rec.Policies = is.decision.PolicySet(), is.decision.Policies()
		if _, err = tx.Append(rec); err != nil {
			return err
		}
		return tx.InsertLease(active)
	})
	if failure != nil {
		b.undo(ctx, is, failure)
	}
	return commit, failure
}

// dropLate hands a credential that came too late to teardown, with the handle that its answer brought. Where the lease has
// ended with proof meanwhile, as after the process was frozen, nothing is left to do.
func (b *Broker) dropLate(tx *ledger.Tx, is *issue, t task.Task, from lease.Lease, cred plugins.Credential) error {
	next, err := from.Unreleased(cred, time.Now())
	if errors.Is(err, lease.ErrState) {
		next, err = from, nil
	}
	if err != nil {
		return err
	}
	rec := leaseRecord(is.caller, audit.LeaseFailed, t, next)
	rec.Reason = string(next.Cause)
	if _, err := tx.Append(rec); err != nil {
		return err
	}
	return tx.UpdateLease(next, from)
}

// failed records that an issue call failed. What certainly made nothing is torn down at once; otherwise the intent waits
// for its horizon, since a late answer is not an accident.
func (b *Broker) failed(ctx context.Context, is *issue, cause error) error {
	if !is.intended {
		if !errors.Is(cause, plugins.ErrNotIssued) { // no sweep comes for what it should not have made
			b.discard(ctx, is)
		}
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), IssueTimeout)
	defer cancel()
	_, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		from, err := tx.Lease(is.lease.ID)
		if err != nil {
			return err
		}
		next := from
		reason := "outcome_unknown"
		if errors.Is(cause, plugins.ErrNotIssued) && from.State == lease.Intent {
			reason = "not_issued"
			if next, err = from.Nothing(time.Now()); err != nil {
				return err
			}
		}
		rec := leaseRecord(is.caller, audit.LeaseFailed, is.task, next)
		rec.Reason = reason
		if _, err := tx.Append(rec); err != nil {
			return err
		}
		return tx.UpdateLease(next, from)
	})
	if err != nil { // the intent is durable: its sweep does not depend on this record
		b.log.Warn("failed issue not recorded", zap.Stringer("lease", is.lease.ID), zap.Error(err))
	}
	failpoint.Hit("issue.failed")
	return cause
}
