package broker

import (
	"context"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/teardown"
)

// Renewal is an operator's change of all that decides: what resources are held against, and the resources themselves.
type Renewal struct {
	Terms

	// FromFiles: the resources are what Files say, and the API may not change them. Otherwise those that are stored stay.
	FromFiles bool
	Files     []resource.File
	// Note says in the record what changed besides resources.
	Note string
}

// LoadCatalog is NewCatalog where resources come from files: what is stored need not compile any more, for the files take
// its place. What was issued by a role that is in neither ends.
func LoadCatalog(ctx context.Context, l *ledger.Ledger, r Renewal) (*Catalog, Applied, error) {
	c := &Catalog{ledger: l, changing: newTurns(), readOnly: true}
	stored, err := c.stored(ctx)
	if err != nil {
		return nil, Applied{}, err
	}
	docs := make([]resource.Document, 0, len(stored))
	for _, s := range stored {
		docs = append(docs, resource.Stored(s.Name, s.YAML, s.Source))
	}
	set, problems := resource.Parse(r.Files, r.Backends.Configured())
	s, err := r.prospect(resource.Remember(docs...), set, problems)
	if err != nil {
		return nil, Applied{}, err
	}
	if !l.Held() { // one that is held takes no change: the files decide all the same, and Settle stores them
		if _, err = c.change(ctx, s); err != nil {
			return nil, Applied{}, err
		}
	}
	c.force.Store(s.next) // also where nothing changed
	return c, s.out, nil
}

// Settle stores what the files of LoadCatalog say, once a ledger that was held takes changes.
func (c *Catalog) Settle(ctx context.Context) error {
	if err := c.changing.take(ctx); err != nil {
		return err
	}
	defer c.changing.give()
	stored, err := c.stored(ctx)
	if err != nil || !c.readOnly {
		return err
	}
	docs := make([]resource.Document, 0, len(stored))
	for _, s := range stored {
		docs = append(docs, resource.Stored(s.Name, s.YAML, s.Source))
	}
	force := c.force.Load()
	s, err := force.prospect(resource.Remember(docs...), force.engine.Set(), nil)
	if err != nil {
		return err
	}
	_, err = c.change(ctx, s)
	return err
}

// Renew puts a renewal in force, all or nothing. It is one commit with its record, and one moment for everybody who decides:
// a role and the backend that it names come together. What was issued by a role or a backend that is gone ends.
func (c *Catalog) Renew(ctx context.Context, r Renewal) (Applied, error) {
	if err := c.changing.take(ctx); err != nil {
		return Applied{}, err
	}
	defer c.changing.give()
	force := c.force.Load()
	var set resource.Set
	var problems []resource.Problem
	if r.FromFiles {
		set, problems = resource.Parse(r.Files, r.Backends.Configured())
	} else {
		set, problems = force.engine.Set().Update(nil, r.Backends.Configured())
	}
	s, err := r.prospect(force.engine.Set(), set, problems)
	if err != nil {
		return Applied{}, err
	}
	s.more = func(tx *ledger.Tx) error { return r.commit(tx, force.Backends, s.out.PolicySet) }
	if _, err = c.change(ctx, s); err != nil {
		return Applied{}, err
	}
	c.readOnly = r.FromFiles
	return s.out, nil
}

// commit asks for the end of what backends issued that are gone, and records the renewal.
func (r Renewal) commit(tx *ledger.Tx, before *instance.Snapshot, policySet string) error {
	now := time.Now()
	gone := func(i instance.Instance) bool { return !i.Leaving && !r.Backends.Has(i.Name) }
	if slices.ContainsFunc(before.All(), gone) {
		if _, err := teardown.EndUnconfigured(tx, r.Backends.Has, now); err != nil {
			return err
		}
	}
	_, err := tx.Append(audit.Record{
		V: 1, Time: now.UTC(), Event: audit.ConfigReloaded, Actor: teardown.Stint(), Reason: r.Note, PolicySet: policySet,
	})
	return err
}

// LetGo takes a backend that is leaving out of what is in force. One that is configured stays.
func (c *Catalog) LetGo(ctx context.Context, backend string) error {
	if err := c.changing.take(ctx); err != nil {
		return err
	}
	defer c.changing.give()
	next := *c.force.Load()
	next.Backends = next.Backends.Without(backend)
	c.force.Store(&next)
	return nil
}
