package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/admin"
	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/attestor/x509svid"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/server"
	"github.com/stint-dev/stint/broker/status"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
)

// drainTimeout is how long stopping waits for issues in flight: an issue, its commit, and some room.
const drainTimeout = 2*broker.IssueTimeout + 5*time.Second

// partingTimeout bounds the last record, which is written also where draining took all its time.
const partingTimeout = 5 * time.Second

// blueprint is what a house is built from.
type blueprint struct {
	cfg      *config.Config
	source   *source.Source // the daemon's own SVID and the bundles
	keys     audit.Key
	backends *instance.Snapshot // at the start; the catalog says which are in force
	texts    map[string]string  // what each was made from, where it may change
	logger   *zap.Logger
	level    zap.AtomicLevel // the logger's, where it may change
	// endTasks makes stopping end every task first, as a development broker does.
	endTasks bool
	// wrap and wall are how a test makes the ledger's store and the wall clock fail; nil is neither.
	wrap func(*sqlite.Store) ledger.Store
	wall func(read time.Time) time.Time
}

// around returns what the ledger is kept in.
func (b *blueprint) around(store *sqlite.Store) ledger.Store {
	if b.wrap == nil {
		return store
	}
	return b.wrap(store)
}

// house is the daemon, assembled. It is built once and run once.
type house struct {
	blueprint
	store    *sqlite.Store
	ledger   *ledger.Ledger
	exporter *audit.Exporter
	admins   *admin.Current
	opened   map[string]*opened // the backends in force, by name
	metrics  *status.Metrics

	// These need the ledger to run, and are made by serve.
	catalog    *broker.Catalog
	broker     *broker.Broker
	reconciler *reconcile.Reconciler
	teardown   *teardown.Loop
	server     *server.Server
	status     *status.Server
	guard      *x509svid.Credentials
	accepting  []accepting
	missing    atomic.Pointer[map[string]int] // leases of backends that are not configured, as they were at the start
	// goes runs something until it is stopped, which waits for its end, or the ground gives way.
	goes func(what string, run func(context.Context) error) (stop func())

	stopping atomic.Bool
	left     int // tasks that stayed open when the house stopped
}

// accepting is an attestor, which is told when the trust domains that it may accept change.
type accepting interface {
	SetDomains(domains attestor.Domains)
}

// build opens the ledger. Nothing runs yet.
func build(ctx context.Context, b blueprint) (*house, error) {
	admins, err := adminRoles(b.cfg)
	if err != nil {
		return nil, err
	}
	store, err := sqlite.Open(ctx, b.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	metrics := status.NewMetrics(version)
	known, err := knownElsewhere(b.cfg.Audit.Checkpoints)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	l, err := ledger.Open(ctx, ledger.Config{
		Known: known,
		Store: b.around(store), Signer: b.keys.Signer, Verifier: b.keys.Verifier, Origin: b.cfg.Audit.Origin, Logger: b.logger.Named("ledger"),
		StopIssuingBelow: uint64(b.cfg.Ledger.StopIssuingBelow), //nolint:gosec // the configuration refuses negative sizes
		FreeBytes:        store.FreeBytes,
		Committed:        metrics.ObserveCommit,
	})
	if err != nil {
		return nil, errors.Join(checkpointHint(err, b.cfg.Audit.Checkpoints), store.Close())
	}
	return &house{
		blueprint: b, store: store, ledger: l, admins: admin.NewCurrent(admins), metrics: metrics,
		opened: openedBackends(b.cfg, b.backends, b.texts),
	}, nil
}

func adminRoles(cfg *config.Config) (*admin.Roles, error) {
	rules := make([]admin.Rule, 0, len(cfg.Admins))
	for _, a := range cfg.Admins {
		rules = append(rules, admin.Rule{Pattern: a.Pattern, Role: a.Role})
	}
	return admin.New(rules...)
}

// run works until ctx is done, and then stops in order: admit nothing, finish what is in flight, tear down what can be,
// say what is left, and only then let go of the ledger.
func (h *house) run(ctx context.Context, ready func(context.Context) error) error {
	base, stopBase := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBase()
	ground, groundCtx := errgroup.WithContext(base)
	ground.Go(func() error { return h.ledger.Run(groundCtx) })
	ground.Go(func() error { return h.source.Run(groundCtx) })
	h.goes = func(what string, run func(context.Context) error) func() {
		runCtx, stop := context.WithCancel(groundCtx)
		done := make(chan struct{})
		ground.Go(func() error {
			defer close(done)
			if err := run(runCtx); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
		return func() { stop(); <-done }
	}
	for name, o := range h.opened {
		h.start(name, o)
	}
	// When the ground gives way, everything above it stops.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	detach := context.AfterFunc(groundCtx, stop)
	defer detach()

	err := h.serve(ctx, base, ready)
	stopBase()
	return errors.Join(err, ground.Wait(), h.store.Close(), h.source.Close())
}

// serve makes what needs a running ledger, and runs it.
func (h *house) serve(ctx, base context.Context, ready func(context.Context) error) error {
	if err := h.assemble(ctx); err != nil {
		return err
	}
	if !h.ledger.Held() {
		if err := h.takeUp(ctx); err != nil {
			return err
		}
	}
	statusListener, err := listenTCP(ctx, h.cfg.Listen.HTTP)
	if err != nil {
		return err
	}
	upper, upperCtx := errgroup.WithContext(base)
	upperCtx, stopUpper := context.WithCancel(upperCtx)
	defer stopUpper()
	h.teardown = teardown.New(teardown.Config{
		Ledger: h.ledger, Backends: h.catalog.Backends, Presence: h.broker.Presence(), StuckAfter: h.cfg.Teardown.StuckAfter,
		Held: h.broker.Held, Logger: h.logger.Named("teardown"), Wall: h.wall,
	})
	upper.Go(func() error { return h.teardown.Run(upperCtx) })
	upper.Go(func() error { return h.broker.Run(upperCtx) })
	upper.Go(func() error { return h.reconciler.Run(upperCtx) })
	upper.Go(func() error { return h.guard.Run(upperCtx) })
	upper.Go(func() error { return h.status.Run(upperCtx, statusListener) })
	upper.Go(func() error { return h.onceConfirmed(upperCtx, h.exporter.Run) })
	serverCtx, stopServer := context.WithCancel(upperCtx)
	defer stopServer()
	upper.Go(func() error { return h.server.Run(serverCtx) })

	if h.ledger.Held() {
		h.sayHeld()
		upper.Go(func() error { return h.onceConfirmed(upperCtx, h.goOn) })
	} else {
		err = h.record(ctx, audit.ServerStarted, "")
	}
	if err == nil {
		err = ready(ctx)
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case <-upperCtx.Done():
		}
	}
	err = errors.Join(err, h.wind(base))
	stopServer()
	stopUpper()
	return errors.Join(err, upper.Wait())
}

// assemble makes catalog, broker, gRPC server and status server.
func (h *house) assemble(ctx context.Context) error {
	var err error
	if err = h.openCatalog(ctx); err != nil {
		return err
	}
	if h.broker, err = broker.New(ctx, broker.Config{
		Ledger: h.ledger, Catalog: h.catalog, Meter: h.metrics, Logger: h.logger.Named("broker"),
	}); err != nil {
		return err
	}
	h.reconciler = reconcile.New(reconcile.Config{
		Ledger: h.ledger, Roles: func() []resource.Role { return h.catalog.Engine().Set().Roles() }, Backends: h.catalog.Backends,
		Grace: broker.UnknownGrace, Every: h.cfg.Reconcile.Every, Meter: h.metrics, Logger: h.logger.Named("reconcile"),
	})
	if err = h.openExporter(); err != nil {
		return err
	}
	if h.server, err = h.newServer(ctx); err != nil {
		return err
	}
	h.status, err = h.newStatus()
	return err
}

// openCatalog puts in force the folder of resources, or without one what is stored.
func (h *house) openCatalog(ctx context.Context) error {
	admins, err := adminRoles(h.cfg)
	if err != nil {
		return err
	}
	terms := broker.Terms{Backends: h.backends, Forbidden: admins.Overlapping}
	if h.cfg.Resources == "" {
		h.catalog, err = broker.NewCatalog(ctx, h.ledger, terms)
		return err
	}
	files, err := readResources(h.cfg.Resources)
	if err != nil {
		return err
	}
	var applied broker.Applied
	h.catalog, applied, err = broker.LoadCatalog(ctx, h.ledger, broker.Renewal{Terms: terms, FromFiles: true, Files: files})
	for _, warning := range applied.Warnings {
		h.logger.Warn(warning)
	}
	return err
}

// wind stops in order, while the ledger and teardown still run.
func (h *house) wind(ctx context.Context) error {
	h.stopping.Store(true)
	drain, cancelDrain := context.WithTimeout(ctx, drainTimeout)
	defer cancelDrain()
	if err := h.broker.Drain(drain); err != nil {
		h.logger.Warn("issues in flight were cut; what they leave is swept", zap.Error(err))
	}
	if h.ledger.Held() {
		h.logger.Info("stopping; the ledger is still held")
		return nil
	}
	if h.endTasks {
		h.endEveryTask(drain)
	}
	ctx, cancel := context.WithTimeout(ctx, partingTimeout) // also where all the time to drain was used
	defer cancel()
	var err error
	if h.left, err = h.openTasks(ctx); err != nil {
		return fmt.Errorf("count open tasks: %w", err)
	}
	h.logger.Info("stopping; open tasks stay open, and go on when the broker is back", zap.Int("open_tasks", h.left))
	return h.record(ctx, audit.ServerStopped, fmt.Sprintf("%d tasks left open", h.left))
}

// endEveryTask stops what is still open, and gives teardown until ctx is done.
func (h *house) endEveryTask(ctx context.Context) {
	var open []task.Task
	err := h.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		open, err = r.ListTasks(ledger.TaskFilter{States: []task.State{task.Active}, Limit: 10_000})
		return err
	})
	if err != nil {
		h.logger.Error("open tasks not ended", zap.Error(err))
		return
	}
	for _, t := range open {
		if _, err := h.broker.Stop(ctx, broker.Caller{}, broker.TaskRef{ID: t.ID}, "the broker is stopping", 0); err != nil {
			h.logger.Error("task not ended", zap.String("task", t.ShortName), zap.Error(err))
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := h.openTasks(ctx); err != nil || n == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// openTasks counts tasks that are not closed.
func (h *house) openTasks(ctx context.Context) (int, error) {
	n := 0
	err := h.ledger.View(ctx, func(r ledger.Reader) error {
		stats, err := r.Stats()
		n = stats.TasksByState[task.Active] + stats.TasksByState[task.Closing]
		return err
	})
	return n, err
}

// record writes what the daemon itself did.
func (h *house) record(ctx context.Context, event audit.Event, reason string) error {
	_, err := h.ledger.Update(ctx, func(tx *ledger.Tx) error {
		_, err := tx.Append(audit.Record{
			V: 1, Time: time.Now().UTC(), Event: event, Actor: teardown.Stint(), Reason: reason, PolicySet: h.policySet(),
		})
		return err
	})
	if err != nil && !errors.Is(err, ledger.ErrHeld) { // a ledger that is held takes no record before that of its restore
		return fmt.Errorf("record %s: %w", event, err)
	}
	return nil
}

func (h *house) policySet() string { return h.catalog.Engine().Hash() }
