package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
)

// page is how many leases are read at a time.
const page = 1000

// comparison is the work on one inventory.
type comparison struct {
	*Reconciler

	backend plugins.Backend
	inv     Inventory
	roles   []resource.Role
}

// held is what a backend listed under a role.
type held struct {
	plugins.Found

	role string
}

// open is what the ledger holds that has not ended, of one backend.
type open struct {
	keys   map[string]bool
	active []lease.Lease
}

// byList compares with a backend that lists. The order of its steps is what keeps it from crying wolf:
//
//  1. the backend lists, and after that the ledger is read. What was issued before the listing is in the ledger by then,
//     or is younger than an issue call and its sweep can take;
//  2. what the ledger does not hold open is asked for once more at the backend, because it may have been ended since;
//  3. what the backend did not list is asked for by the ledger's own handle, and the ledger is read after the answer: a
//     lease that is ACTIVE even then was ended by nobody here.
func (c *comparison) byList(ctx context.Context, lister plugins.Lister) error {
	c.inv.Source = "list"
	found, listed := c.list(ctx, lister)
	c.inv.Held = len(found)
	known, err := c.openLeases(ctx, lister)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(found)) {
		if known.keys[key] {
			c.inv.Matched++
			continue
		}
		if err := c.stranger(ctx, lister, key, found[key]); err != nil {
			return err
		}
	}
	for _, l := range known.active {
		if _, ok := found[lister.Key(l.Handle)]; ok || !listed[l.Role] || lister.Key(l.Handle) == "" || ending(l) {
			continue
		}
		if err := c.missing(ctx, lister, l); err != nil {
			return err
		}
	}
	return nil
}

// ending reports whether a lease is about to end by itself.
func ending(l lease.Lease) bool {
	return !l.NotAfter.IsZero() && time.Until(l.NotAfter) < lastMoments
}

// list asks for what exists under each role, and says which roles were listed to the end. Roles may share a path.
func (c *comparison) list(ctx context.Context, lister plugins.Lister) (found map[string]held, listed map[string]bool) {
	found, listed = map[string]held{}, map[string]bool{}
	for _, role := range c.roles {
		listed[role.Name] = c.listRole(ctx, lister, role, found)
	}
	return found, listed
}

func (c *comparison) listRole(ctx context.Context, lister plugins.Lister, role resource.Role, found map[string]held) bool {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	for f, err := range lister.List(ctx, role.Plugin) {
		if err != nil {
			c.gap(role.Name, err)
			return false
		}
		key := lister.Key(f.Handle)
		if _, ok := found[key]; !ok {
			found[key] = held{Found: f, role: role.Name}
		}
	}
	if ctx.Err() != nil {
		c.gap(role.Name, ctx.Err())
		return false
	}
	return true
}

// openLeases reads what has not ended by the ledger, on one snapshot.
func (c *comparison) openLeases(ctx context.Context, lister plugins.Lister) (open, error) {
	out := open{keys: map[string]bool{}}
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		f := ledger.LeaseFilter{States: []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}, Limit: page}
		return eachLease(r, f, func(l lease.Lease) bool {
			if l.Backend != c.inv.Backend {
				return true
			}
			if key := lister.Key(l.Handle); key != "" {
				out.keys[key] = true
			}
			if l.State == lease.Active {
				out.active = append(out.active, l)
			}
			return true
		})
	})
	return out, err
}

// eachLease calls fn for every lease that a filter chooses, newest first, until fn says false.
func eachLease(r ledger.Reader, f ledger.LeaseFilter, fn func(lease.Lease) bool) error {
	for {
		leases, err := r.ListLeases(f)
		if err != nil {
			return err
		}
		for _, l := range leases {
			if !fn(l) {
				return nil
			}
		}
		if len(leases) < f.Limit {
			return nil
		}
		f.Before = leases[len(leases)-1].ID
	}
}

// stranger judges what is alive at the backend and not open in the ledger.
func (c *comparison) stranger(ctx context.Context, lister plugins.Lister, key string, h held) error {
	row, err := c.row(ctx, lister, key, h.PublicRef)
	if err != nil {
		return err
	}
	if row != nil && (!row.State.Final() || row.State == lease.Disclosed) { // committed meanwhile, or never ends
		c.inv.Matched++
		return nil
	}
	found, err := find(ctx, lister, h.Handle)
	switch {
	case errors.Is(err, plugins.ErrGone):
		return nil
	case err != nil:
		c.gap(h.role, err)
		return nil
	case row == nil && time.Since(found.IssuedAt) < c.grace():
		c.inv.InFlight++
		return nil
	}
	f := Finding{
		Kind: Unknown, Role: h.role, Key: key, PublicRef: found.PublicRef, IssuedAt: found.IssuedAt, NotAfter: found.NotAfter,
		handle: found.Handle,
	}
	if row != nil {
		f.Kind, f.Role, f.PublicRef, f.Lease, f.handle = Ended, row.Role, row.PublicRef, row, row.Handle
	}
	c.inv.Findings = append(c.inv.Findings, f)
	return nil
}

// row returns the lease of a key, or nil if the ledger has none: it is found by the reference, and its handle decides.
func (c *comparison) row(ctx context.Context, lister plugins.Lister, key, ref string) (*lease.Lease, error) {
	var row *lease.Lease
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		l, err := r.FindLease(ledger.LeaseKey{Ref: ref})
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err == nil && l.Backend == c.inv.Backend && lister.Key(l.Handle) == key {
			row = &l
		}
		return err
	})
	return row, err
}

// missing judges what is ACTIVE in the ledger and was not listed.
func (c *comparison) missing(ctx context.Context, lister plugins.Lister, l lease.Lease) error {
	_, err := find(ctx, lister, l.Handle)
	if err == nil {
		return nil // issued while the backend was listing, or by a role that has changed since
	}
	if !errors.Is(err, plugins.ErrGone) {
		c.gap(l.Role, err)
		return nil
	}
	return c.gone(ctx, l, lister.Key(l.Handle))
}

// gone reports a lease whose credential is gone, if it still is ACTIVE.
func (c *comparison) gone(ctx context.Context, l lease.Lease, key string) error {
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		l, err = r.Lease(l.ID)
		return err
	})
	if err != nil || l.State != lease.Active || ending(l) {
		return err
	}
	c.inv.Findings = append(c.inv.Findings, Finding{
		Kind: Gone, Role: l.Role, Key: key, PublicRef: l.PublicRef, IssuedAt: l.CreatedAt, NotAfter: l.NotAfter,
		Lease: &l, handle: l.Handle,
	})
	return nil
}

// grace is how old at least an unknown credential is: older than what an issue in flight could be, or its sweep.
func (c *comparison) grace() time.Duration {
	return c.backend.Descriptor().Horizon + c.cfg.Grace
}

func find(ctx context.Context, lister plugins.Lister, h plugins.Handle) (plugins.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return lister.Find(ctx, h)
}

// gap notes what was not compared, once for each role and problem.
func (c *comparison) gap(role string, err error) {
	g := Gap{Role: role, Problem: problem(err), Permanent: errors.Is(err, errors.ErrUnsupported)}
	if !slices.Contains(c.inv.Gaps, g) {
		c.inv.Gaps = append(c.inv.Gaps, g)
		c.logGap(role, err)
	}
}

// problem is what an answer says of an error: its class, without text of the backend's.
func problem(err error) string {
	if partial, ok := errors.AsType[*plugins.PartialError](err); ok {
		return partial.Problem
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return "the backend cannot list what was issued by this role"
	}
	for _, class := range []error{
		plugins.ErrUnavailable, plugins.ErrMisconfigured, plugins.ErrNotProven, plugins.ErrUnknownHandle, plugins.ErrGone,
		errNoCRL, errOldCRL, errListLacks,
	} {
		if errors.Is(err, class) {
			return class.Error()
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return "failed; see the log"
}
