package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// sourceCA is the Source of a CA that lists what it has signed.
const sourceCA = "crl+list"

var (
	// errNoList is of a CA that keeps none.
	errNoList = &plugins.PartialError{Problem: "the CA does not list what it has signed; only revocations are compared"}
	// errListLacks is of a list that was lost in part, without its keeper knowing.
	errListLacks = errors.New("the CA's list lacks certificates that the ledger holds, and may lack others")
)

// issued is what a CA says that it has signed.
type issued struct {
	alive map[string]plugins.Found // by serial number
	whole bool                     // nothing but what partial errors say is left out
	since time.Time                // from when on
	asked time.Time
}

// listIssued asks a CA for what it has signed.
func (c *comparison) listIssued(ctx context.Context, publisher plugins.Publisher) issued {
	out := issued{alive: map[string]plugins.Found{}, asked: time.Now()}
	register, ok := publisher.(plugins.Register)
	if !ok {
		c.gap("", errNoList)
		return out
	}
	c.inv.Source = sourceCA
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	for f, err := range register.Issued(ctx) {
		partial, tells := errors.AsType[*plugins.PartialError](err)
		switch {
		case tells:
			c.gap("", err)
			if partial.Since.After(out.since) {
				out.since = partial.Since
			}
		case err != nil:
			c.gap("", err)
			return out
		default:
			out.alive[string(f.Handle)] = f
		}
	}
	if ctx.Err() != nil {
		c.gap("", ctx.Err())
		return out
	}
	out.whole = true
	return out
}

// lacks notes that the list does not hold a certificate that it has to: the file was shortened, or is an older copy. So it may
// lack others, which the ledger does not know.
func (i issued) lacks(c *comparison, leases []lease.Lease, revoked map[string]bool) {
	if !i.whole {
		return
	}
	for _, l := range leases {
		_, there := i.alive[l.ID.String()]
		settled := l.CreatedAt.After(i.since) && l.CreatedAt.Before(i.asked.Add(-c.grace()))
		if l.State == lease.Active && settled && !there && !revoked[l.ID.String()] && !ending(l) {
			c.gap("", errListLacks)
			return
		}
	}
}

// signed judges certificates that are not on the CRL. Every one is of a lease, or nobody here knows of it. What is of none may
// have been revoked after the CRL was read, as what is dropped because its commit failed.
func (c *comparison) signed(ctx context.Context, publisher plugins.Publisher, alive map[string]plugins.Found) error {
	known, err := c.known(ctx, alive)
	if err != nil {
		return err
	}
	c.inv.Matched += len(known)
	maps.DeleteFunc(alive, func(serial string, f plugins.Found) bool {
		young := !known[serial] && time.Since(f.IssuedAt) < c.grace()
		if young {
			c.inv.InFlight++
		}
		return young || known[serial]
	})
	if len(alive) == 0 {
		return nil
	}
	revoked, err := readCRL(ctx, publisher)
	if err != nil {
		c.gap("", err)
		return nil
	}
	for _, serial := range slices.Sorted(maps.Keys(alive)) {
		if f := alive[serial]; !revoked[serial] && time.Now().Before(f.NotAfter) {
			c.inv.Findings = append(c.inv.Findings, Finding{
				Kind: Unknown, Key: serial, PublicRef: f.PublicRef, IssuedAt: f.IssuedAt, NotAfter: f.NotAfter, handle: f.Handle,
			})
		}
	}
	return nil
}

// known returns which serials are of leases of this backend, on one snapshot.
func (c *comparison) known(ctx context.Context, alive map[string]plugins.Found) (map[string]bool, error) {
	var known map[string]bool
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		known = map[string]bool{}
		for serial, f := range alive {
			id, err := lease.ParseID(serial)
			if err != nil {
				continue // no lease has a number like this
			}
			l, err := r.Lease(id)
			if err != nil && !errors.Is(err, ledger.ErrNotFound) {
				return err
			}
			if err == nil && l.Backend == c.inv.Backend && !another(l, f) {
				known[serial] = true
			}
		}
		return nil
	})
	return known, err
}

// another reports whether a certificate cannot be that of a lease which has ended, since it ends later: somebody has used the
// number again.
func another(l lease.Lease, f plugins.Found) bool {
	return l.State.Final() && f.NotAfter.After(l.NotAfter.Add(lastMoments))
}
