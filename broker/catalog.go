package broker

import (
	"context"
	"errors"
	"fmt"
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
	ledger   *ledger.Ledger
	force    atomic.Pointer[inForce]
	readOnly atomic.Bool
	// next is what is being committed; nil at other times. A role must be in both to be issued by.
	next atomic.Pointer[inForce]

	// changing is taken while a change is compiled and committed, so that changes follow one another.
	changing turns
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

// read puts in force what the ledger holds.
func (c *Catalog) read(ctx context.Context, terms Terms) error {
	var stored []ledger.Resource
	err := c.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		stored, err = r.Resources()
		return err
	})
	if err != nil {
		return fmt.Errorf("read resources: %w", err)
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

// has reports whether a role is there and is not being removed. It is asked inside the transaction that inserts a lease,
// which comes before the one that removes the role, and is then ended by it, or after, and is then refused.
func (c *Catalog) has(role string) bool {
	if next := c.next.Load(); next != nil { // read first: it is in force before it is taken away here
		if _, ok := next.engine.Set().Role(role); !ok {
			return false
		}
	}
	_, ok := c.Engine().Set().Role(role)
	return ok
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

// SetReadOnly says that resources come from files: the API may then not change them.
func (c *Catalog) SetReadOnly(yes bool) { c.readOnly.Store(yes) }

// Apply makes resources what the files say, all or nothing.
func (c *Catalog) Apply(ctx context.Context, caller Caller, a Apply) (Applied, error) {
	if c.readOnly.Load() && !a.DryRun {
		return Applied{}, fault.New(fault.ResourcesReadOnly, "resources come from files here; change them and send SIGHUP")
	}
	return c.apply(ctx, caller, a)
}

// Load makes resources what the operator's files say, at start and on SIGHUP.
func (c *Catalog) Load(ctx context.Context, caller Caller, files []resource.File) (Applied, error) {
	return c.apply(ctx, caller, Apply{Files: files, Prune: true})
}

func (c *Catalog) apply(ctx context.Context, caller Caller, a Apply) (Applied, error) {
	if err := c.changing.take(ctx); err != nil {
		return Applied{}, err
	}
	defer c.changing.give()
	force := c.force.Load()
	var set resource.Set
	var problems []resource.Problem
	if a.Prune {
		set, problems = resource.Parse(a.Files, force.Backends.Configured())
	} else {
		set, problems = force.engine.Set().Update(a.Files, force.Backends.Configured())
	}
	if a.DryRun {
		_, out, err := c.prospect(force.Terms, set, problems)
		return out, err
	}
	_, out, err := c.change(ctx, caller, set, problems)
	return out, err
}

// Delete removes one resource ("roles/orders-db-read") and returns how many leases end because of it.
func (c *Catalog) Delete(ctx context.Context, caller Caller, id string) (int, error) {
	if c.readOnly.Load() {
		return 0, fault.New(fault.ResourcesReadOnly, "resources come from files here; change them and send SIGHUP")
	}
	if err := c.changing.take(ctx); err != nil {
		return 0, err
	}
	defer c.changing.give()
	force := c.force.Load()
	if _, ok := force.engine.Set().Document(id); !ok {
		return 0, fault.New(fault.NotFound, "there is no "+id)
	}
	set, problems := force.engine.Set().Without(id, force.Backends.Configured())
	ending, _, err := c.change(ctx, caller, set, problems)
	return ending, err
}

// prospect compiles a set and says what putting it in force would change.
func (c *Catalog) prospect(terms Terms, set resource.Set, problems []resource.Problem) (*inForce, Applied, error) {
	next, err := terms.compile(set, problems)
	if err != nil {
		return nil, Applied{}, err
	}
	return next, Applied{
		Changes: resource.Diff(c.Engine().Set(), set), Warnings: append(set.Warnings(), next.engine.Warnings()...),
		PolicySet: next.engine.Hash(),
	}, nil
}

// change compiles a set, commits it, and puts it in force from the next decision on.
func (c *Catalog) change(
	ctx context.Context, caller Caller, set resource.Set, problems []resource.Problem,
) (int, Applied, error) {
	terms := c.force.Load().Terms
	next, out, err := c.prospect(terms, set, problems)
	if err != nil {
		return 0, Applied{}, err
	}
	if !anyChange(out.Changes) {
		return 0, out, nil
	}
	c.next.Store(next)
	defer c.next.Store(nil)
	var ending int
	_, err = c.ledger.Update(ctx, func(tx *ledger.Tx) error {
		ending = 0
		for _, ch := range out.Changes {
			n, cause := commitChange(tx, caller, set, out.PolicySet, ch)
			if cause != nil {
				return cause
			}
			ending += n
		}
		return nil
	})
	failpoint.Hit("role.removed")
	if errors.Is(err, ledger.ErrOutcomeUnknown) { // what is in force has to be what is stored
		err = errors.Join(err, c.read(context.WithoutCancel(ctx), terms))
	}
	if err != nil {
		return 0, Applied{}, storeFault(err)
	}
	c.force.Store(next)
	return ending, out, nil
}

func anyChange(changes []resource.Change) bool {
	for _, ch := range changes {
		if ch.Action != resource.Unchanged {
			return true
		}
	}
	return false
}

// commitChange writes one change and its record. Removing a role ends what was issued by it.
func commitChange(tx *ledger.Tx, caller Caller, set resource.Set, policySet string, ch resource.Change) (int, error) {
	rec := audit.Record{
		V: 1, Time: time.Now().UTC(), Event: audit.ResourceApplied, Request: caller.Request, Actor: caller.actor(),
		Resource: ch.ID, PolicySet: policySet, Reason: string(ch.Action),
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
	doc, ok := set.Document(ch.ID)
	if !ok {
		return 0, errors.New("a change names no document")
	}
	rec.Etag = doc.ETag()
	if _, err := tx.Append(rec); err != nil {
		return 0, err
	}
	return 0, tx.PutResource(ledger.Resource{Name: ch.ID, YAML: doc.YAML, Source: doc.Source})
}
