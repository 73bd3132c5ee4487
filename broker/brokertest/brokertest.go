// Package brokertest runs a whole broker for tests: ledger on SQLite, catalog, broker, teardown and the gRPC server with
// its real steps, over mTLS with SVIDs of a development trust domain and with backends in memory. Unless Config.Listen
// is set nothing leaves the process, so that a house works inside a synctest bubble.
package brokertest

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/admin"        //nolint:depguard // a house is made of concrete things
	"github.com/stint-dev/stint/attestor/attestortest" //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/devdomain"    //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/source"       //nolint:depguard // as above
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/server"
	"github.com/stint-dev/stint/broker/teardown"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // as above
)

const (
	// TrustDomain is where the house and its agents are.
	TrustDomain = "example.org"
	// ServerPath is the path of the broker's own SPIFFE ID.
	ServerPath = "/stint"
	// Origin names the audit log.
	Origin = "example.org/audit"
	// Version is what the broker calls itself.
	Version = "test"
	// LocalUID is who calls over the admin endpoint where there is no socket.
	LocalUID = 1000

	stuckAfter = time.Minute
)

// Resources are what a house has unless told otherwise: the roles orders-db (memory/a), vault-like (preparing/a),
// client-cert (memory/a, wants a CSR) and parametric (memory/a, parameter "host"), and the profile agents for
// spiffe://example.org/agent/*.
const Resources = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: orders-db, description: Rows of the orders database}
spec:
  backend: memory/a
  ttl: {default: 10m, max: 30m}
  deliver:
    env: {PGUSER: "{{ .username }}", PGPASSWORD: "{{ .password }}"}
    with: {PGHOST: orders.db.example.org}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: vault-like}
spec:
  backend: preparing/a
  ttl: {default: 5m, max: 10m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: client-cert}
spec:
  backend: memory/a
  memory: {csr: true}
  ttl: {default: 5m, max: 10m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: parametric}
spec:
  backend: memory/a
  ttl: {default: 5m, max: 10m}
  parameters: [{name: host, pattern: "[a-z0-9.]+", required: true, description: Where to}]
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: agents}
spec:
  agents: ["spiffe://example.org/agent/*"]
  owner: platform@example.org
  sponsor: head@example.org
  purposes: [reconcile-invoices, answer-invoice]
  roles: [{name: orders-db}, {name: vault-like}, {name: client-cert}, {name: parametric}]
  task: {default_ttl: 20m, max_ttl: 1h, max_live: 100, max_live_leases: 1000}
  permit: ceiling
`

// Config says what a house is like. The zero value is a house with Resources and backends in memory.
type Config struct {
	// Resources is YAML, applied at the start; "" means Resources.
	Resources string
	// Backends by instance; nil means House.Memory as "memory/a" and House.Preparing as "preparing/a".
	Backends map[string]plugins.Backend
	// Admins are administration roles by pattern; nil means spiffe://example.org/ops/* admin, …/ops/oncall operator and
	// …/audit/* auditor.
	Admins map[string]attestor.AdminRole
	// Dir holds the ledger and the audit key; "" means a directory of the test. A house can be built again on what
	// another left in it.
	Dir string
	// Domain is the house's trust domain; nil means a new one.
	Domain *devdomain.Domain
	// Listen serves on a loopback port and a unix socket in place of memory.
	Listen bool
	// NoTeardown leaves out the loop that ends leases.
	NoTeardown bool
	// Reflect serves the descriptors of the API.
	Reflect bool
	Limits  server.Limits
	Logger  *zap.Logger // nil is silent
}

// House is a running broker. It ends with its test.
type House struct {
	Domain     *devdomain.Domain // its trust domain, which issues SVIDs
	Source     *source.Source    // the broker's own SVID and the bundles that it verifies against
	Memory     *plugintest.Memory
	Preparing  *plugintest.Preparing
	Ledger     *ledger.Ledger
	Broker     *broker.Broker
	Server     *server.Server
	Reconciler *reconcile.Reconciler
	Key        audit.Key // of the audit log
	Dir        string
	// Addr ("127.0.0.1:port") and AdminSocket ("unix:///…") are set with Config.Listen.
	Addr, AdminSocket string

	backends  map[string]plugins.Backend
	endpoints endpoints
	stops     []func() // of what runs, in the order in which it was started
}

// Start runs a house until the test ends.
func Start(tb testing.TB, cfg Config) *House {
	tb.Helper()
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	h := &House{Dir: cfg.Dir, Domain: cfg.Domain}
	tb.Cleanup(h.Stop)
	if h.Domain == nil {
		h.Domain = attestortest.NewDomain(tb, TrustDomain, 0)
	}
	if h.Dir == "" {
		h.Dir = tb.TempDir()
	}
	h.Source = attestortest.NewSource(tb, h.Domain, ServerPath)
	h.addBackends(cfg)
	h.openLedger(tb, cfg)
	admins := roles(tb, cfg.Admins)
	h.startBroker(tb, cfg, admins)
	h.serve(tb, cfg, admins)
	return h
}

// Stop ends the house as a broker ends: the server first, the ledger last. Then another can be started in its directory.
func (h *House) Stop() {
	stops := h.stops
	h.stops = nil
	for _, stop := range slices.Backward(stops) {
		stop()
	}
}

// run runs what lives long until Stop, and fails the test if it fails.
func (h *House) run(tb testing.TB, what string, run func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	h.stops = append(h.stops, func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("run %s: %v", what, err)
		}
	})
}

// ServerID returns the broker's SPIFFE ID.
func (h *House) ServerID() spiffeid.ID { return h.Source.ID() }

func (h *House) addBackends(cfg Config) {
	h.backends = cfg.Backends
	if h.backends == nil {
		h.Memory = plugintest.NewMemory(plugintest.MemoryConfig{})
		h.Preparing = plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: 10 * time.Second})
		h.backends = map[string]plugins.Backend{"memory/a": h.Memory, "preparing/a": h.Preparing}
	}
}

// openLedger opens the ledger in the house's directory, with the key that is there or a new one.
func (h *House) openLedger(tb testing.TB, cfg Config) {
	tb.Helper()
	path := filepath.Join(h.Dir, "audit.key")
	key, err := audit.LoadKey(path)
	if err != nil {
		key, err = audit.CreateKey(path, Origin)
	}
	if err != nil {
		tb.Fatalf("audit key: %v", err)
	}
	h.Key = key
	store, err := sqlite.Open(tb.Context(), filepath.Join(h.Dir, "ledger"))
	if err != nil {
		tb.Fatalf("open store: %v", err)
	}
	h.stops = append(h.stops, func() {
		if closeErr := store.Close(); closeErr != nil {
			tb.Errorf("close store: %v", closeErr)
		}
	})
	h.Ledger, err = ledger.Open(tb.Context(), ledger.Config{
		Store: store, Signer: key.Signer, Verifier: key.Verifier, Origin: Origin, Logger: cfg.Logger,
	})
	if err != nil {
		tb.Fatalf("open ledger: %v", err)
	}
	h.run(tb, "ledger", h.Ledger.Run)
}

// startBroker starts everything between ledger and server.
func (h *House) startBroker(tb testing.TB, cfg Config, admins *admin.Roles) {
	tb.Helper()
	catalog, err := broker.NewCatalog(tb.Context(), h.Ledger, broker.Terms{
		Backends: instance.Configured(h.backends), Forbidden: admins.Overlapping,
	})
	if err != nil {
		tb.Fatalf("make catalog: %v", err)
	}
	h.Broker, err = broker.New(tb.Context(), broker.Config{
		Ledger: h.Ledger, Catalog: catalog, Meter: noMeter{}, Logger: cfg.Logger,
	})
	if err != nil {
		tb.Fatalf("make broker: %v", err)
	}
	h.run(tb, "broker", h.Broker.Run)
	h.Reconciler = reconcile.New(reconcile.Config{
		Ledger: h.Ledger, Roles: func() []resource.Role { return catalog.Engine().Set().Roles() }, Backends: catalog.Backends,
		Grace: broker.UnknownGrace, Meter: noMeter{}, Logger: cfg.Logger,
	})
	for name, b := range h.backends {
		if r, ok := b.(plugins.Runner); ok {
			h.run(tb, "backend "+name, r.Run)
		}
	}
	if !cfg.NoTeardown {
		loop := teardown.New(teardown.Config{
			Ledger: h.Ledger, Backends: catalog.Backends, Presence: h.Broker.Presence(), StuckAfter: stuckAfter, Logger: cfg.Logger,
		})
		h.run(tb, "teardown", loop.Run)
	}
	text := cfg.Resources
	if text == "" {
		text = Resources
	}
	h.Apply(tb, text)
}

// Apply adds resources, as the administrator at the socket would.
func (h *House) Apply(tb testing.TB, text string) broker.Applied {
	tb.Helper()
	caller := broker.Caller{Identity: attestor.Identity{Method: attestor.MethodLocal}, Admin: attestor.RoleAdmin}
	applied, err := h.Broker.Catalog().Apply(tb.Context(), caller, broker.Apply{
		Files: []resource.File{{Name: "resources.yaml", YAML: text, Source: "api"}},
	})
	if err != nil {
		tb.Fatalf("apply resources: %v", err)
	}
	return applied
}

// roles makes the administration roles.
func roles(tb testing.TB, by map[string]attestor.AdminRole) *admin.Roles {
	tb.Helper()
	if by == nil {
		by = map[string]attestor.AdminRole{
			"spiffe://example.org/ops/*":      attestor.RoleAdmin,
			"spiffe://example.org/ops/oncall": attestor.RoleOperator,
			"spiffe://example.org/audit/*":    attestor.RoleAuditor,
		}
	}
	rules := make([]admin.Rule, 0, len(by))
	for text, role := range by {
		pattern, err := attestor.ParsePattern(text)
		if err != nil {
			tb.Fatal(err)
		}
		rules = append(rules, admin.Rule{Pattern: pattern, Role: role})
	}
	r, err := admin.New(rules...)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// noMeter measures nothing.
type noMeter struct{}

func (noMeter) Issued(string, string) {}
func (noMeter) Denied(fault.Reason)   {}

func (noMeter) Reconciled(string, reconcile.Counts, time.Time) {}
func (noMeter) Only([]string)                                  {}

// Eventually polls until ok, and fails the test after ten seconds.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("did not happen in time: %s", what)
		}
	}
}
