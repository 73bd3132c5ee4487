package stop

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// refreshPage is how many leases one snapshot reads again.
const refreshPage = 512

// Progress is how a stop stands.
type Progress struct {
	// Tasks and Leases are what was chosen: open tasks, and leases whose end was not known.
	Tasks, Leases int
	// ByProof counts those of the leases whose end is known by now.
	ByProof map[plugins.Proof]int
	// Open counts the others; Stuck those of them that are overdue, and Unbounded those that have no end of their own.
	Open, Stuck, Unbounded int
	// UsableUntil is until when, at worst, one of the leases could still work, but for the unbounded; zero where that has
	// passed, plugins.NoEnd where one has ended of which nothing is known to have ended it where it is used.
	UsableUntil time.Time
	// Unseen are the leases that ended in a way that proves no end where they are used: it may be later, at UsableUntil at worst.
	// Certificates, which are on a CRL by then, are none of them.
	Unseen int
	// UncheckedUntil is until when who checks no revocation accepts one of them; zero where that has passed.
	UncheckedUntil time.Time
}

// ends is what is remembered of a lease.
type ends struct {
	usable, unchecked time.Time
	stuck             bool
}

// endsOf says until when a lease could still work.
func endsOf(l lease.Lease) ends {
	e := ends{usable: l.UsableUntil, unchecked: l.UncheckedUntil, stuck: l.Stuck}
	if l.State.Final() {
		return e
	}
	if e.usable.IsZero() {
		e.usable = l.NotAfter
	}
	if e.unchecked.IsZero() && l.Exposure.UntilExpiry {
		e.unchecked = l.NotAfter
	}
	return e
}

// count is what has become of the leases that were chosen.
type count struct {
	tasks, leases int
	open          map[lease.ID]ends
	byProof       map[plugins.Proof]int
	ended         ends // the latest instants of those that ended
	// seemed are the instants until when those could work that ended with one after their end, and without a CRL.
	seemed []time.Time
}

func newCount() count {
	return count{open: map[lease.ID]ends{}, byProof: map[plugins.Proof]int{}}
}

// add counts a lease that was chosen, once.
func (c *count) add(l lease.Lease) {
	if _, ok := c.open[l.ID]; !ok {
		c.leases++
		c.open[l.ID] = endsOf(l)
	}
}

// settle counts how a lease stands now.
func (c *count) settle(l lease.Lease) {
	e := endsOf(l)
	if !l.State.Final() {
		c.open[l.ID] = e
		return
	}
	delete(c.open, l.ID)
	c.byProof[l.Proof]++
	if l.State == lease.Disclosed { // it has no end, which is said by its count
		return
	}
	if e.usable.After(l.RevokedAt) && e.unchecked.IsZero() && l.Proof != plugins.OnCRL {
		c.seemed = append(c.seemed, e.usable)
	}
	c.ended.usable, c.ended.unchecked = later(c.ended.usable, e.usable), later(c.ended.unchecked, e.unchecked)
}

// Refresh reads again what had not ended when it was read last.
func (s *Stop) Refresh(ctx context.Context, l *ledger.Ledger) error {
	ids := slices.Collect(maps.Keys(s.count.open))
	for chunk := range slices.Chunk(ids, refreshPage) {
		err := l.View(ctx, func(r ledger.Reader) error {
			for _, id := range chunk {
				row, err := r.Lease(id)
				if err != nil {
					return err
				}
				s.count.settle(row)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Progress returns how it stands, as of the last page or Refresh.
func (s *Stop) Progress(now time.Time) Progress {
	c := &s.count
	p := Progress{Tasks: c.tasks, Leases: c.leases, Open: len(c.open), ByProof: maps.Clone(c.byProof)}
	usable, unchecked := c.ended.usable, c.ended.unchecked
	for _, e := range c.open {
		if e.stuck {
			p.Stuck++
		}
		if e.usable.IsZero() || e.usable.Equal(plugins.NoEnd()) {
			p.Unbounded++
			e.usable = time.Time{}
		}
		usable, unchecked = later(usable, e.usable), later(unchecked, e.unchecked)
	}
	for _, until := range c.seemed {
		if until.After(now) {
			p.Unseen++
		}
	}
	if usable.After(now) {
		p.UsableUntil = usable
	}
	if unchecked.After(now) {
		p.UncheckedUntil = unchecked
	}
	return p
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
