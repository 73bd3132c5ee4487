// Package broker is the whole story: an agent declares a task, is issued credentials for it, completes it, and everything
// it was given ends. It decides nothing (package policy does), stores nothing by itself (package ledger does), and ends
// nothing by itself (package teardown does); it puts these in the one order that keeps the promise:
//
//	no credential outlives its task, whatever fails, and the record says so truthfully.
package broker

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/teardown"
)

// IssueTimeout is the hard end of an issue call, preparing included. A task with less than this left is issued nothing.
const IssueTimeout = lease.IssueTimeout

// UnknownGrace is how old a credential is at least, beyond its backend's horizon, that the ledger should know: older than
// an issue call and the sweep of its intent can take.
const UnknownGrace = IssueTimeout + 30*time.Second

// Caller is who is calling, attested for this very call. The zero Caller is the broker itself: at its start, or on SIGHUP.
type Caller struct {
	Identity attestor.Identity
	// Admin is the administration role the caller holds, or "".
	Admin attestor.AdminRole
	// Request is the ID that correlates answer, log and audit record.
	Request string
}

// actor is how records name the caller: the broker itself where nobody called.
func (c Caller) actor() audit.Actor {
	if c.Identity.IsZero() {
		return teardown.Stint()
	}
	a := audit.Actor{ID: c.Identity.String(), Method: string(c.Identity.Method)}
	if c.Identity.Method == attestor.MethodLocal {
		uid := c.Identity.Local.UID
		a.UID = &uid
	}
	return a
}

// agent is the SPIFFE ID by which the caller owns tasks; empty for a local peer, who owns none.
func (c Caller) agent() string {
	if c.Identity.Method == attestor.MethodLocal {
		return ""
	}
	return c.Identity.ID.String()
}

// Meter counts what happens, for metrics. Its methods must not block.
type Meter interface {
	// Issued counts a credential that was handed out.
	Issued(backend, role string)
	// Denied counts a refusal.
	Denied(reason fault.Reason)
}

// Config is what a Broker is made of. Every field is required.
type Config struct {
	Ledger  *ledger.Ledger
	Catalog *Catalog
	Meter   Meter
	Logger  *zap.Logger
}

// Broker declares, issues and completes. Its methods are safe for concurrent use.
type Broker struct {
	ledger   *ledger.Ledger
	catalog  *Catalog
	meter    Meter
	log      *zap.Logger
	presence *Presence
	refusals *refusals
	gate     gate

	suspensions suspensions

	waits    atomic.Bool   // for the confirmation of a restore
	admitted chan struct{} // closed while it is not held
}

// New makes a Broker and reads which agents are suspended; it starts nothing.
func New(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Ledger == nil || cfg.Catalog == nil || cfg.Meter == nil || cfg.Logger == nil {
		return nil, errors.New("broker: every field of the configuration is required")
	}
	b := &Broker{
		ledger: cfg.Ledger, catalog: cfg.Catalog, meter: cfg.Meter, log: cfg.Logger,
		presence: newPresence(time.Now()), refusals: newRefusals(),
		suspensions: suspensions{changing: newTurns()}, admitted: make(chan struct{}),
	}
	b.waits.Store(true)
	if !b.ledger.Held() {
		b.Admit()
	}
	if err := b.suspensions.load(ctx, b.ledger); err != nil {
		return nil, err
	}
	return b, nil
}

// Presence is when agents were last heard of, by task.
func (b *Broker) Presence() *Presence { return b.presence }

// Catalog is the roles, profiles and policies in force.
func (b *Broker) Catalog() *Catalog { return b.catalog }

// Run finishes what a crash or a failing ledger left of suspending agents, and writes aggregated refusals, now and then until
// ctx is done. While the broker is held, it waits.
func (b *Broker) Run(ctx context.Context) error {
	select {
	case <-b.admitted:
	case <-ctx.Done():
		if b.Held() {
			return nil
		}
	}
	b.finishSuspensions(ctx)
	tick := time.NewTicker(refusalFlush)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.flushRefusals(ctx)
			b.finishSuspensions(ctx)
		case <-ctx.Done():
			b.flushRefusals(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// Drain stops admitting declarations and issues, and returns when those in flight have ended: each within IssueTimeout
// and the ledger's commit, or when ctx is done.
func (b *Broker) Drain(ctx context.Context) error { return b.gate.drain(ctx) }
