package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// maxLogged is how many findings of one comparison have a line of their own in the log.
const maxLogged = 20

// act does what the order says about each finding.
func (c *comparison) act(ctx context.Context, o Order) error {
	for i := range c.inv.Findings {
		f := &c.inv.Findings[i]
		var err error
		switch {
		case f.Kind == Gone && o.Settle:
			err = c.settle(ctx, f, o)
		case f.Kind != Gone && o.RevokeUnknown, f.Kind == Ended && o.RevokeEnded:
			err = c.revoke(ctx, f, o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settle asks for the end of a lease whose credential is gone. Teardown proves it.
func (r *Reconciler) settle(ctx context.Context, f *Finding, o Order) error {
	_, err := r.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		from, err := tx.Lease(f.Lease.ID)
		if err != nil || from.State != lease.Active {
			return err
		}
		next := from.AskEnd(time.Now(), lease.Missing)
		rec := leaseRecord(o, audit.LeaseEnding, next)
		if _, err := tx.Append(rec); err != nil {
			return err
		}
		return tx.UpdateLease(next, from)
	})
	failpoint.Hit("inventory.settled")
	if err == nil {
		f.Outcome = Settled
	}
	return err
}

// revoke ends what should not be alive: recorded before the backend is asked, and again with its proof.
func (c *comparison) revoke(ctx context.Context, f *Finding, o Order) error {
	rec := strayRecord(o, c.inv.Backend, *f)
	if err := c.append(ctx, rec); err != nil {
		return err
	}
	failpoint.Hit("stray.recorded")
	end, err := c.end(ctx, f)
	failpoint.Hit("stray.revoked")
	switch {
	case err != nil:
		f.Outcome, f.Problem = Failed, problem(err)
		c.cfg.Logger.Error("what should not be alive was not ended", zap.String("backend", c.inv.Backend), zap.String("role", f.Role),
			zap.String("ref", f.PublicRef), zap.Error(err))
		return nil
	case end.Proof == plugins.Pending || end.Proof == plugins.Disclosed:
		f.Outcome, f.Problem = Failed, "the backend cannot revoke this kind"
		return nil
	}
	f.Outcome, f.Proof = Revoked, end.Proof
	rec.Event, rec.Time = audit.StrayEnded, time.Now().UTC()
	rec.Proof = &audit.Proof{Kind: end.Proof, At: end.At.UTC(), UsableUntil: end.At.UTC(), Detail: end.Detail}
	if !end.UsableUntil.IsZero() {
		rec.Proof.UsableUntil = end.UsableUntil.UTC()
	}
	if !end.UncheckedUntil.IsZero() {
		rec.Proof.UncheckedUntil = end.UncheckedUntil.UTC()
	}
	err = c.append(context.WithoutCancel(ctx), rec)
	failpoint.Hit("stray.ended")
	return err
}

func (c *comparison) end(ctx context.Context, f *Finding) (plugins.Ending, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	held := plugins.Held{Role: f.Role, Handle: f.handle, IssuedAt: f.IssuedAt, NotAfter: f.NotAfter}
	if f.Lease != nil {
		held = f.Lease.Held()
	}
	// Looked up anew: comparing may have taken longer than a backend that was replaced is used for.
	in, ok := c.cfg.Backends().Find(c.inv.Backend)
	if !ok {
		return plugins.Ending{}, plugins.ErrUnavailable
	}
	return in.Backend.Revoke(ctx, held)
}

func (r *Reconciler) append(ctx context.Context, rec audit.Record) error {
	_, err := r.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		_, err := tx.Append(rec)
		return err
	})
	return err
}

// record keeps a sum of what was found, where anything was. A ledger that is held takes none.
func (r *Reconciler) record(ctx context.Context, inv Inventory, o Order) error {
	if len(inv.Findings) == 0 || r.cfg.Ledger.Held() {
		return nil
	}
	c := inv.All()
	reason := fmt.Sprintf("%d unknown, %d alive after their end, %d gone", c.Unknown, c.Ended, c.Gone)
	if c.Dead > 0 {
		reason += fmt.Sprintf(", %d dead and still there", c.Dead)
	}
	return r.append(ctx, audit.Record{
		V: 1, Time: time.Now().UTC(), Event: audit.InventoryDiffs, Actor: o.Actor, Request: o.Request, Backend: inv.Backend,
		Count: int64(len(inv.Findings)), Reason: reason,
	})
}

// strayRecord is a record about what should not be alive.
func strayRecord(o Order, backend string, f Finding) audit.Record {
	if f.Lease != nil {
		rec := leaseRecord(o, audit.StrayEnding, *f.Lease)
		rec.Reason = string(f.Kind)
		return rec
	}
	return audit.Record{
		V: 1, Time: time.Now().UTC(), Event: audit.StrayEnding, Actor: o.Actor, Request: o.Request,
		Role: f.Role, Backend: backend, Ref: f.PublicRef, NotAfter: f.NotAfter, Reason: string(f.Kind),
	}
}

func leaseRecord(o Order, event audit.Event, l lease.Lease) audit.Record {
	return audit.Record{
		V: 1, Time: time.Now().UTC(), Event: event, Actor: o.Actor, Request: o.Request, Agent: l.Agent, Task: l.Task.String(),
		TaskName: l.TaskName, Lease: l.ID.String(), Role: l.Role, Backend: l.Backend, Ref: l.PublicRef, NotAfter: l.NotAfter,
		Reason: string(l.Cause),
	}
}

// log tells whoever watches: what is alive and should not be is an error.
func (r *Reconciler) log(inv Inventory) {
	open, all := inv.Open(), inv.All()
	sum := []zap.Field{
		zap.String("backend", inv.Backend), zap.Int("held", inv.Held), zap.Int("unknown", open.Unknown),
		zap.Int("ended_alive", open.Ended), zap.Int("gone", open.Gone), zap.Int("dead", open.Dead),
	}
	switch {
	case open.Unknown+open.Ended > 0:
		r.cfg.Logger.Error("a backend holds what should not be alive; see stint reconcile", sum...)
	case open.Gone > 0:
		r.cfg.Logger.Warn("a backend has lost credentials that should be alive; see stint reconcile", sum...)
	case all.Unknown+all.Ended > 0:
		r.cfg.Logger.Warn("a backend held what should not be alive; it was ended", sum...)
	case open.Dead > 0:
		r.cfg.Logger.Warn("a database has users that nobody can use and nobody has dropped; see stint reconcile", sum...)
	default:
		r.cfg.Logger.Debug("a backend was compared with the ledger", sum...)
	}
	for i, f := range inv.Findings {
		if i == maxLogged {
			return
		}
		fields := []zap.Field{
			zap.String("backend", inv.Backend), zap.String("kind", string(f.Kind)), zap.String("role", f.Role),
			zap.String("ref", f.PublicRef), zap.String("outcome", string(f.Outcome)),
		}
		if f.Lease != nil {
			fields = append(fields, zap.Stringer("lease", f.Lease.ID))
		}
		r.cfg.Logger.Warn("inventory and ledger differ", fields...)
	}
}

func (c *comparison) logGap(role string, err error) {
	fields := []zap.Field{zap.String("backend", c.inv.Backend), zap.String("role", role), zap.Error(err)}
	if errors.Is(err, errors.ErrUnsupported) {
		c.cfg.Logger.Debug("a role cannot be compared with the ledger", fields...)
		return
	}
	c.cfg.Logger.Warn("a backend was not compared with the ledger", fields...)
}
