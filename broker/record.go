package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/task"
)

// After how long trying again may help.
const (
	shutdownRetry = 2 * time.Second
	backendRetry  = 5 * time.Second
	ledgerRetry   = 5 * time.Second
)

// record starts a record about a task.
func record(c Caller, event audit.Event, t task.Task) audit.Record {
	return audit.Record{
		V: 1, Time: time.Now().UTC(), Event: event, Request: c.Request, Actor: c.actor(),
		Agent: t.Agent, Profile: t.Profile, Owner: t.Owner, Sponsor: t.Sponsor,
		Task: t.ID.String(), TaskName: t.ShortName, Purpose: t.Purpose,
	}
}

// leaseRecord starts a record about a lease of a task.
func leaseRecord(c Caller, event audit.Event, t task.Task, l lease.Lease) audit.Record {
	r := record(c, event, t)
	r.Lease, r.Role, r.Backend, r.Ref, r.NotAfter = l.ID.String(), l.Role, l.Backend, l.PublicRef, l.NotAfter
	return r
}

// denial is what a record of a refusal says beside the reason.
type denial struct {
	event   audit.Event
	task    *task.Task
	purpose string
	roles   []string
}

// refuse turns an error on the way to a decision's effect into what the caller sees: a fault from inside the
// transaction is a refusal and recorded as one, anything else is the ledger's.
func (b *Broker) refuse(ctx context.Context, c Caller, d denial, err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return b.deny(ctx, c, d, err)
	}
	return storeFault(err)
}

// deny counts and records a refusal and returns it with the index of its record. What comes faster than it is worth an
// fsync is counted instead, and recorded as a sum later.
func (b *Broker) deny(ctx context.Context, c Caller, d denial, err error) error {
	f := fault.As(err)
	b.meter.Denied(f.Reason)
	if !b.refusals.admit(c.actor(), f.Reason, time.Now()) {
		return f
	}
	rec := audit.Record{
		V: 1, Time: time.Now().UTC(), Event: d.event, Request: c.Request, Actor: c.actor(), Agent: c.agent(),
		Purpose: d.purpose, Roles: d.roles, Reason: string(f.Reason),
		Profile: f.Metadata["profile"], PolicySet: f.Metadata["policy_set"], Policies: splitList(f.Metadata["policies"]),
	}
	if d.task != nil {
		t := d.task
		rec.Task, rec.TaskName, rec.Purpose = t.ID.String(), t.ShortName, t.Purpose
		rec.Profile, rec.Owner, rec.Sponsor = t.Profile, t.Owner, t.Sponsor
	}
	var index int64
	_, werr := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		var err error
		index, err = tx.Append(rec)
		return err
	})
	if werr != nil { // refused all the same; the record is owed and counted
		b.refusals.owe(c.actor(), f.Reason)
		return f
	}
	return f.With("record", strconv.FormatInt(index, 10))
}

// storeFault turns an error of the ledger into what the caller sees. Faults pass through.
func storeFault(err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return fault.Wrap(fault.NotFound, "there is no such thing, or it is not yours", err)
	case errors.Is(err, ledger.ErrHeld):
		return heldFault()
	case errors.Is(err, ledger.ErrOutcomeUnknown):
		return fault.Wrap(fault.OutcomeUnknown,
			"it is not known whether this was stored; ask again with the same request ID", err).Retry(ledgerRetry)
	case errors.Is(err, ledger.ErrUnavailable), errors.Is(err, ledger.ErrClosed), errors.Is(err, audit.ErrFenced):
		return fault.Wrap(fault.LedgerUnavailable, "the ledger cannot be written; nothing was done", err).Retry(ledgerRetry)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	default:
		return fault.Wrap(fault.Internal, "internal error", err)
	}
}

// undamaged refuses to admit anything by a ledger of which a part cannot be read.
func (b *Broker) undamaged() error {
	if err := b.ledger.Damaged(); err != nil {
		return fault.Wrap(fault.LedgerUnavailable,
			"the ledger is damaged: nothing is issued until an operator has restored it; revoking goes on", err).Retry(ledgerRetry)
	}
	return nil
}

func reused(name string) error {
	return fault.New(fault.RequestIDReused, "this request_id was used with another body for "+name).With("name", name)
}

func tooMany(reason fault.Reason, what string, limit int, profile string) error {
	return fault.New(reason, fmt.Sprintf("%d %s are as many as profile %s allows; complete one first", limit, what, profile)).
		With(policy.MetaProfile, profile).With(policy.MetaClasses, "limit").With(policy.MetaLimit, strconv.Itoa(limit))
}

// splitList reads a comma-separated piece of metadata.
func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}
