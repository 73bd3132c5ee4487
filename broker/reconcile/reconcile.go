// Package reconcile compares what backends hold with what the ledger says, in both directions: what is alive and unknown to
// Stint, or has ended by its record; and what is alive by its record and gone. It reports. By itself it only ends
// again what has ended by the ledger; on the rest it acts when told to.
package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
)

// Times that nobody needs to configure.
const (
	// lastMoments before its end by the backend's clock, a credential may be gone by ours.
	lastMoments = 5 * time.Second
	// callTimeout bounds one question to a backend, and listTimeout a listing.
	callTimeout = 20 * time.Second
	listTimeout = 2 * time.Minute
)

// Meter takes what was found, for metrics. Its methods must not block.
type Meter interface {
	// Reconciled is told of every comparison of a backend that was complete.
	Reconciled(backend string, open Counts, at time.Time)
	// Only is told what there is to compare; of everything else nothing is to be said any more.
	Only(backends []string)
}

// Counts are findings by kind.
type Counts struct{ Unknown, Ended, Gone, Dead int }

// Config is what a Reconciler is made of. Every field is required but Every.
type Config struct {
	Ledger *ledger.Ledger
	// Roles returns the roles in force.
	Roles func() []resource.Role
	// Backends returns those in force.
	Backends func() *instance.Snapshot
	// Grace is how old an unknown credential is at least, beyond its backend's horizon: older than an issue call and the
	// sweep of its intent can take.
	Grace time.Duration
	// Every is how often Run compares, until SetEvery; zero is never.
	Every  time.Duration
	Meter  Meter
	Logger *zap.Logger
}

// Reconciler compares. Its methods are safe for concurrent use; comparisons follow one another.
type Reconciler struct {
	cfg  Config
	turn chan struct{} // held by whoever compares

	every   atomic.Int64  // a time.Duration
	changed chan struct{} // it did
}

// New makes a Reconciler; it starts nothing.
func New(cfg Config) *Reconciler {
	r := &Reconciler{cfg: cfg, turn: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	r.every.Store(int64(cfg.Every))
	return r
}

// SetEvery changes how often Run compares, counted from now; zero is never.
func (r *Reconciler) SetEvery(d time.Duration) {
	if r.every.Swap(int64(d)) == int64(d) {
		return
	}
	select {
	case r.changed <- struct{}{}:
	default: // Run has not looked yet, and will see the newest
	}
}

// Order says what to compare, and what to do about what is found.
type Order struct {
	// Backend is the one to ask, "vault/prod"; all if empty.
	Backend string
	// RevokeUnknown ends what is alive and should not be: what the ledger does not know, and what has ended by it.
	RevokeUnknown bool
	// RevokeEnded ends only the latter.
	RevokeEnded bool
	// Settle hands what is gone at its backend to teardown, which proves it.
	Settle bool
	// Actor and Request name who asked, in records.
	Actor   audit.Actor
	Request string
}

// Kind is what is wrong.
type Kind string

// The kinds of findings.
const (
	// Unknown is alive at the backend under a role of Stint, and not in the ledger.
	Unknown Kind = "unknown"
	// Ended is alive at the backend, and has ended by the ledger.
	Ended Kind = "ended_alive"
	// Gone is ACTIVE in the ledger, and not at the backend.
	Gone Kind = "gone"
	// Dead is an account that is there, of no open lease, and by which nobody is let in any more.
	Dead Kind = "dead"
)

// Outcome is what was done about a finding.
type Outcome string

// The outcomes; "" is nothing.
const (
	Revoked Outcome = "revoked" // with the proof that stands beside it
	Settled Outcome = "settled" // handed to teardown
	Failed  Outcome = "failed"  // what was asked for was not possible; see the problem
)

// Finding is one difference.
type Finding struct {
	Kind Kind
	Role string
	// Key is what the backend calls it, PublicRef what people do.
	Key, PublicRef     string
	IssuedAt, NotAfter time.Time
	// Lease is the ledger's row; nil where it has none.
	Lease   *lease.Lease
	Outcome Outcome
	Proof   plugins.Proof // of a Revoked
	Problem string        // of a Failed

	handle plugins.Handle
}

// Gap is what could not be compared.
type Gap struct {
	Role    string // "" for the whole backend
	Problem string
	// Permanent: it is for good, because the backend cannot tell.
	Permanent bool
}

// Inventory is the comparison of one backend.
type Inventory struct {
	Backend string
	// Source is how the backend told: "list" of what is alive, "crl" of what was revoked, "crl+list" of that and of what was
	// signed; "" where it cannot. SourceUsers is of a system behind a backend.
	Source string
	// Held is how many credentials the backend listed, and Matched how many of them are alive by the ledger too. Of a CA it is what
	// is on the CRL or in the list, and how many of them agree with the ledger.
	Held, Matched int
	// InFlight were issued so lately that the ledger may not know them yet.
	InFlight int
	Findings []Finding
	Gaps     []Gap
}

// All counts the findings.
func (i Inventory) All() Counts {
	return i.count(func(Finding) bool { return true })
}

// Open counts the findings that have been neither revoked nor settled.
func (i Inventory) Open() Counts {
	return i.count(func(f Finding) bool { return f.Outcome != Revoked && f.Outcome != Settled })
}

func (i Inventory) count(which func(Finding) bool) Counts {
	n := map[Kind]int{}
	for _, f := range i.Findings {
		if which(f) {
			n[f.Kind]++
		}
	}
	return Counts{Unknown: n[Unknown], Ended: n[Ended], Gone: n[Gone], Dead: n[Dead]}
}

// complete reports whether everything was compared that can be.
func (i Inventory) complete() bool {
	return !slices.ContainsFunc(i.Gaps, func(g Gap) bool { return !g.Permanent })
}

// Reconcile compares one backend or all, and does what the order says about what it finds. An error is the caller's or the
// ledger's; what a backend does not answer is a Gap.
func (r *Reconciler) Reconcile(ctx context.Context, o Order) ([]Inventory, error) {
	chosen, err := r.choose(o.Backend)
	if err != nil {
		return nil, err
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	out := make([]Inventory, 0, len(chosen))
	for _, in := range chosen {
		inv, err := r.backend(ctx, in, o)
		if err != nil {
			return nil, fmt.Errorf("reconcile %s: %w", in.Name, err)
		}
		users, err := r.systems(ctx, in, o)
		if err != nil {
			return nil, fmt.Errorf("reconcile users behind %s: %w", in.Name, err)
		}
		out = append(append(out, inv), users...)
	}
	return out, nil
}

// choose returns one backend by its name, or all, by name.
func (r *Reconciler) choose(name string) ([]instance.Instance, error) {
	in := r.cfg.Backends()
	if name == "" {
		return slices.SortedFunc(slices.Values(in.All()), func(a, b instance.Instance) int { return cmp.Compare(a.Name, b.Name) }), nil
	}
	one, ok := in.Find(name)
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no backend "+name)
	}
	return []instance.Instance{one}, nil
}

// backend compares one backend, acts, and tells.
func (r *Reconciler) backend(ctx context.Context, in instance.Instance, o Order) (Inventory, error) {
	c := &comparison{Reconciler: r, backend: in.Backend, inv: Inventory{Backend: in.Name}, roles: r.roles(in.Name)}
	var err error
	switch b := in.Backend.(type) {
	case plugins.Lister:
		err = c.byList(ctx, b)
	case plugins.Publisher:
		err = c.byCRL(ctx, b)
	default:
		c.inv.Gaps = append(c.inv.Gaps, Gap{Problem: "this kind of backend cannot say what it holds", Permanent: true})
	}
	if err == nil && (o.RevokeUnknown || o.RevokeEnded || o.Settle) {
		err = c.act(ctx, o)
	}
	if err != nil {
		return Inventory{}, err
	}
	now := time.Now()
	if c.inv.complete() {
		r.cfg.Meter.Reconciled(in.Name, c.inv.Open(), now)
	}
	r.log(c.inv)
	return c.inv, r.record(ctx, c.inv, o)
}

func (r *Reconciler) roles(backend string) []resource.Role {
	return slices.DeleteFunc(slices.Clone(r.cfg.Roles()), func(role resource.Role) bool { return role.Backend != backend })
}
