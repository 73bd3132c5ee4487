package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/teardown"
)

// Catalog is the roles, profiles and policies in force: an immutable engine that changes as a whole.
type Catalog struct {
	ledger *ledger.Ledger
	force  atomic.Pointer[inForce]
	// next is what is being committed; nil at other times. A role must be in both to be issued by.
	next atomic.Pointer[inForce]

	// changing is taken while a change is compiled and committed, so that changes follow one another. It guards what follows.
	changing turns
	readOnly bool // resources come from files
}

// Terms are what resources are held against.
type Terms struct {
	// Backends are those in force. Roles may name the configured ones.
	Backends *instance.Snapshot
	// Forbidden says which patterns belong to administrators, who are never agents.
	Forbidden func(attestor.Pattern) []attestor.Pattern
}

// inForce is the resources of one moment and what they were held against. It is immutable and changes as a whole, so that
// no decision is made by the roles of one moment and carried out by the backends of another.
type inForce struct {
	Terms

	engine *policy.Engine
}

// NewCatalog reads the resources of the ledger and compiles them. Resources that no longer compile, say because their
// backend is gone, are an error: what is in force must not shrink silently.
func NewCatalog(ctx context.Context, l *ledger.Ledger, terms Terms) (*Catalog, error) {
	c := &Catalog{ledger: l, changing: newTurns()}
	if err := c.read(ctx, terms); err != nil {
		return nil, err
	}
	return c, nil
}

// stored returns the resources that the ledger holds.
func (c *Catalog) stored(ctx context.Context) ([]ledger.Resource, error) {
	var stored []ledger.Resource
	err := c.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		stored, err = r.Resources()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	return stored, nil
}

// read puts in force what the ledger holds.
func (c *Catalog) read(ctx context.Context, terms Terms) error {
	stored, err := c.stored(ctx)
	if err != nil {
		return err
	}
	files := make([]resource.File, 0, len(stored))
	for _, s := range stored {
		files = append(files, resource.File{Name: s.Source, YAML: s.YAML})
	}
	set, problems := resource.Parse(files, terms.Backends.Configured())
	force, err := terms.compile(set, problems)
	if err != nil {
		return fmt.Errorf("resources in the ledger: %w", err)
	}
	c.force.Store(force)
	return nil
}

// Engine returns what decides now.
func (c *Catalog) Engine() *policy.Engine { return c.force.Load().engine }

// Backends returns the backends in force now.
func (c *Catalog) Backends() *instance.Snapshot { return c.force.Load().Backends }

// has reports whether a role and the backend that issues by it are there and not being removed. It is asked inside the
// transaction that inserts a lease, which comes before the one that removes them, and is then ended by it, or after, and is
// then refused.
func (c *Catalog) has(role, backend string) bool {
	next := c.next.Load() // read first: it is in force before it is taken away here
	return (next == nil || next.has(role, backend)) && c.force.Load().has(role, backend)
}

func (f *inForce) has(role, backend string) bool {
	_, ok := f.engine.Set().Role(role)
	return ok && f.Backends.Has(backend)
}

// compile checks what a set as a whole must satisfy.
func (t Terms) compile(set resource.Set, problems []resource.Problem) (*inForce, error) {
	for _, p := range set.Profiles() {
		for _, pattern := range p.Agents {
			for _, admin := range t.Forbidden(pattern) {
				problems = append(problems, resource.Problem{At: p.At, Message: fmt.Sprintf(
					"profile %s: agents %q overlaps the administrators %q; an ID cannot be both", p.Name, pattern, admin)})
			}
		}
	}
	if len(problems) == 0 {
		var engine *policy.Engine
		if engine, problems = policy.Compile(set); len(problems) == 0 {
			return &inForce{Terms: t, engine: engine}, nil
		}
	}
	return nil, invalidResources(problems)
}

func invalidResources(problems []resource.Problem) error {
	lines := make([]string, 0, len(problems))
	fields := make([]fault.Field, 0, len(problems))
	for _, p := range problems {
		lines = append(lines, p.String())
		fields = append(fields, fault.Field{Name: p.At.String(), Problem: p.Message})
	}
	f := fault.New(fault.ResourceInvalid, strings.Join(lines, "\n"))
	f.Fields = fields
	return f
}

// Apply is a change of resources.
type Apply struct {
	Files  []resource.File
	DryRun bool
	// Prune also deletes what the files do not name.
	Prune bool
}

// Applied is what a change came to.
type Applied struct {
	Changes   []resource.Change
	Warnings  []string
	PolicySet string
}

// writable refuses the API where resources come from files.
func (c *Catalog) writable() error {
	if c.readOnly {
		return fault.New(fault.ResourcesReadOnly, "resources come from files here; change them and send SIGHUP")
	}
	return nil
}

// Apply makes resources what the files say, all or nothing.
func (c *Catalog) Apply(ctx context.Context, caller Caller, a Apply) (Applied, error) {
	if err := c.changing.take(ctx); err != nil {
		return Applied{}, err
	}
	defer c.changing.give()
	if err := c.writable(); err != nil && !a.DryRun {
		return Applied{}, err
	}
	force := c.force.Load()
	var set resource.Set
	var problems []resource.Problem
	if a.Prune {
		set, problems = resource.Parse(a.Files, force.Backends.Configured())
	} else {
		set, problems = force.engine.Set().Update(a.Files, force.Backends.Configured())
	}
	s, err := force.prospect(force.engine.Set(), set, problems)
	if err != nil || a.DryRun {
		return s.out, err
	}
	s.caller = caller
	_, err = c.change(ctx, s)
	return s.out, err
}

// Delete removes one resource ("roles/orders-db-read") and returns how many leases end because of it.
func (c *Catalog) Delete(ctx context.Context, caller Caller, id string) (int, error) {
	if err := c.changing.take(ctx); err != nil {
		return 0, err
	}
	defer c.changing.give()
	if err := c.writable(); err != nil {
		return 0, err
	}
	force := c.force.Load()
	if _, ok := force.engine.Set().Document(id); !ok {
		return 0, fault.New(fault.NotFound, "there is no "+id)
	}
	set, problems := force.engine.Set().Without(id, force.Backends.Configured())
	s, err := force.prospect(force.engine.Set(), set, problems)
	if err != nil {
		return 0, err
	}
	s.caller = caller
	return c.change(ctx, s)
}

// step leads from what is stored to what will be in force.
type step struct {
	caller Caller
	next   *inForce
	out    Applied
	// more is what else belongs into the transaction; nil for a step that is nothing without a change of resources.
	more func(tx *ledger.Tx) error
}

// prospect compiles a set and says what putting it in force would change of what is stored.
func (t Terms) prospect(stored, set resource.Set, problems []resource.Problem) (step, error) {
	next, err := t.compile(set, problems)
	if err != nil {
		return step{}, err
	}
	warnings := slices.Clone(set.Warnings())
	for _, w := range next.engine.Warnings() {
		warnings = append(warnings, w.String())
	}
	return step{next: next, out: Applied{
		Changes: resource.Diff(stored, set), Warnings: warnings, PolicySet: next.engine.Hash(),
	}}, nil
}

// change commits a step, puts it in force from the next decision on, and returns how many leases end because roles are gone.
func (c *Catalog) change(ctx context.Context, s step) (int, error) {
	if !anyChange(s.out.Changes) && s.more == nil {
		return 0, nil
	}
	c.next.Store(s.next)
	defer c.next.Store(nil)
	var ending int
	_, err := c.ledger.Update(ctx, func(tx *ledger.Tx) error {
		ending = 0
		for _, ch := range s.out.Changes {
			n, cause := s.commit(tx, ch)
			if cause != nil {
				return cause
			}
			ending += n
		}
		if s.more == nil {
			return nil
		}
		return s.more(tx)
	})
	failpoint.Hit("role.removed")
	if errors.Is(err, ledger.ErrOutcomeUnknown) { // what is in force has to be what is stored
		err = errors.Join(err, c.readAgain(context.WithoutCancel(ctx), s.next.Terms))
	}
	if err != nil {
		return 0, storeFault(err)
	}
	c.force.Store(s.next)
	return ending, nil
}

// readAgain puts in force what turns out to be stored: under the terms of before, or, where it was made for others and has
// come to be stored, under those.
func (c *Catalog) readAgain(ctx context.Context, terms Terms) error {
	if now := c.force.Load(); now != nil {
		if err := c.read(ctx, now.Terms); fault.ReasonOf(err) != fault.ResourceInvalid {
			return err
		}
	}
	return c.read(ctx, terms)
}

func anyChange(changes []resource.Change) bool {
	for _, ch := range changes {
		if ch.Action != resource.Unchanged {
			return true
		}
	}
	return false
}

// commit writes one change and its record. Removing a role ends what was issued by it.
func (s step) commit(tx *ledger.Tx, ch resource.Change) (int, error) {
	rec := audit.Record{
		V: 1, Time: time.Now().UTC(), Event: audit.ResourceApplied, Request: s.caller.Request, Actor: s.caller.actor(),
		Resource: ch.ID, PolicySet: s.out.PolicySet, Reason: string(ch.Action),
	}
	switch ch.Action {
	case resource.Unchanged:
		return 0, nil
	case resource.Deleted:
		rec.Event = audit.ResourceDeleted
		if _, err := tx.Append(rec); err != nil {
			return 0, err
		}
		if err := tx.DeleteResource(ch.ID); err != nil {
			return 0, err
		}
		if role, ok := strings.CutPrefix(ch.ID, resource.KindRole.Collection()+"/"); ok {
			return teardown.EndRole(tx, role, time.Now())
		}
		return 0, nil
	case resource.Created, resource.Updated:
	}
	doc, ok := s.next.engine.Set().Document(ch.ID)
	if !ok {
		return 0, errors.New("a change names no document")
	}
	rec.Etag = doc.ETag()
	if _, err := tx.Append(rec); err != nil {
		return 0, err
	}
	return 0, tx.PutResource(ledger.Resource{Name: ch.ID, YAML: doc.YAML, Source: doc.Source})
}
