package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// SourceUsers is the Source of an inventory of a system behind a backend. Its Backend is "vault/prod/orders".
const SourceUsers = "users"

const (
	// answerTakes is how long an issue that is in flight is waited for: its timeout, and the commit of its answer.
	answerTakes = lease.IssueTimeout + 5*time.Second
	answerTick  = 200 * time.Millisecond
	// notDropped is why an account is not ended.
	notDropped = "stint drops no users; end it at the database"
)

// systems compares the accounts of the systems behind a backend, one inventory each.
func (r *Reconciler) systems(ctx context.Context, in instance.Instance, o Order) ([]Inventory, error) {
	lister, ok := in.Backend.(plugins.AccountLister)
	if !ok {
		return nil, nil
	}
	var out []Inventory
	for _, system := range lister.Systems() {
		c := &accounts{
			Reconciler: r, lister: lister, system: system, backend: in.Name,
			inv: Inventory{Backend: in.Name + "/" + system.Name, Source: SourceUsers},
		}
		if err := c.compare(ctx); err != nil {
			return nil, err
		}
		if err := c.act(ctx, o); err != nil {
			return nil, err
		}
		if c.inv.complete() {
			r.cfg.Meter.Reconciled(c.inv.Backend, c.inv.Open(), time.Now())
		}
		r.log(c.inv)
		if err := r.record(ctx, c.inv, o); err != nil {
			return nil, err
		}
		out = append(out, c.inv)
	}
	return out, nil
}

// accounts is the work on one system.
type accounts struct {
	*Reconciler

	lister  plugins.AccountLister
	system  plugins.System
	backend string
	inv     Inventory
}

// compare holds accounts against public references. Databases do not say when an account was made, so what keeps it from crying
// wolf is an order of its own:
//
//  1. the system lists, and after that the ledger is read. An account is made after its intent was committed; so one that is
//     not known by then is of a lease that has no answer yet, or of none;
//  2. where there are both, those answers are waited for, for as long as an issue can take;
//  3. the system lists once more, and the ledger is read after it. What still is unknown is of none, or may be of a lease
//     that has no answer even now: then it is in flight, and judged the next time;
//  4. what was ACTIVE before the first listing, is not in it, and is ACTIVE after it was dropped by somebody else.
func (c *accounts) compare(ctx context.Context) error {
	active, err := c.open(ctx, func(l lease.Lease) bool {
		return l.State == lease.Active && l.PublicRef != "" && slices.Contains(c.system.Roles, l.Role)
	})
	if err != nil {
		return err
	}
	began := time.Now()
	found, ok := c.list(ctx)
	if !ok {
		return nil
	}
	c.inv.Held = len(found)
	strangers, err := c.match(ctx, found, began)
	if err != nil {
		return err
	}
	if err := c.judge(ctx, strangers); err != nil {
		return err
	}
	return c.missing(ctx, active, found)
}

// open reads leases of the backend that have not ended, on one snapshot.
func (c *accounts) open(ctx context.Context, which func(lease.Lease) bool) ([]lease.Lease, error) {
	var out []lease.Lease
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		out = nil
		f := ledger.LeaseFilter{States: []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}, Limit: page}
		return eachLease(r, f, func(l lease.Lease) bool {
			if l.Backend == c.backend && which(l) {
				out = append(out, l)
			}
			return true
		})
	})
	return out, err
}

// unanswered is true of an issue in flight, and of what is left of one. Its account has no name yet, and its role may be any:
// that a role makes accounts here is known of some only.
func unanswered(l lease.Lease) bool {
	return l.PublicRef == "" && !l.NotIssued && (l.State == lease.Intent || l.State == lease.Revoking || l.State == lease.Lapsing)
}

// list asks the system. It reports false, and notes why, where it did not list to the end.
func (c *accounts) list(ctx context.Context) (map[string]plugins.Account, bool) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	found := map[string]plugins.Account{}
	for account, err := range c.lister.Accounts(ctx, c.system.Name) {
		if err != nil {
			c.gap(err)
			return nil, false
		}
		found[account.Name] = account
	}
	if ctx.Err() != nil {
		c.gap(ctx.Err())
		return nil, false
	}
	return found, true
}

func (c *accounts) gap(err error) {
	c.inv.Gaps = append(c.inv.Gaps, Gap{Problem: problem(err), Permanent: errors.Is(err, errors.ErrUnsupported)})
	c.cfg.Logger.Warn("the users of a database were not compared with the ledger", zap.String("backend", c.inv.Backend), zap.Error(err))
}

// match counts the accounts of open leases, reports those of leases that had ended before the listing, and returns those of
// none.
func (c *accounts) match(ctx context.Context, found map[string]plugins.Account, listed time.Time) (map[string]plugins.Account, error) {
	strangers := map[string]plugins.Account{}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		row, err := c.row(ctx, name)
		switch {
		case err != nil:
			return nil, err
		case row == nil:
			strangers[name] = found[name]
		case row.State.Final() && row.State != lease.Disclosed && row.RevokedAt.Before(listed):
			c.find(Ended, found[name], row)
		default:
			c.inv.Matched++
		}
	}
	return strangers, nil
}

// row returns the newest lease with an account's name, or nil if there is none.
func (c *accounts) row(ctx context.Context, name string) (*lease.Lease, error) {
	var row *lease.Lease
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		l, err := r.FindLease(ledger.LeaseKey{Ref: name})
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err == nil && l.PublicRef == name {
			row = &l
		}
		return err
	})
	return row, err
}

// judge decides what accounts are that were of no lease when the ledger was read after their listing.
func (c *accounts) judge(ctx context.Context, strangers map[string]plugins.Account) error {
	if len(strangers) == 0 {
		return nil
	}
	open, err := c.open(ctx, unanswered)
	if err != nil {
		return err
	}
	settled, err := c.answered(ctx, open)
	if err != nil {
		return err
	}
	again, ok := c.list(ctx)
	if !ok {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(strangers)) {
		account, there := again[name]
		if !there {
			continue
		}
		row, err := c.row(ctx, name)
		switch {
		case err != nil:
			return err
		case row != nil: // its answer came
			c.inv.Matched++
		case !settled:
			c.inv.InFlight++
		default:
			c.find(Unknown, account, nil)
		}
	}
	return nil
}

// answered waits for the answers of issues, and reports whether all came.
func (c *accounts) answered(ctx context.Context, waiting []lease.Lease) (bool, error) {
	deadline := time.After(answerTakes)
	for len(waiting) > 0 {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-deadline:
			return false, nil
		case <-time.After(answerTick):
		}
		err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
			var still []lease.Lease
			for _, l := range waiting {
				now, err := r.Lease(l.ID)
				if err != nil {
					return err
				}
				if unanswered(now) {
					still = append(still, now)
				}
			}
			waiting = still
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// missing reports leases that were ACTIVE before the listing, whose account was not in it, and which nobody here has ended.
func (c *accounts) missing(ctx context.Context, active []lease.Lease, found map[string]plugins.Account) error {
	for _, l := range active {
		if _, ok := found[l.PublicRef]; ok {
			continue
		}
		err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
			var err error
			l, err = r.Lease(l.ID)
			return err
		})
		if err != nil {
			return err
		}
		if l.State == lease.Active && !ending(l) {
			c.find(Gone, plugins.Account{Name: l.PublicRef, NotAfter: l.NotAfter}, &l)
		}
	}
	return nil
}

// find reports an account. What is dead does not count as alive, whatever else it is.
func (c *accounts) find(kind Kind, account plugins.Account, row *lease.Lease) {
	if account.Dead {
		kind = Dead
	}
	f := Finding{Kind: kind, Key: account.Name, PublicRef: account.Name, NotAfter: account.NotAfter, Lease: row}
	if row != nil {
		f.Role, f.IssuedAt = row.Role, row.CreatedAt
	}
	c.inv.Findings = append(c.inv.Findings, f)
}

// act does what the order says, but that no account is ended.
func (c *accounts) act(ctx context.Context, o Order) error {
	for i := range c.inv.Findings {
		f := &c.inv.Findings[i]
		switch {
		case f.Kind == Gone && o.Settle:
			if err := c.settle(ctx, f, o); err != nil {
				return err
			}
		case f.Kind != Gone && o.RevokeUnknown:
			f.Outcome, f.Problem = Failed, notDropped
		}
	}
	return nil
}
