package broker_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/ledgertest"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

const (
	// horizon is the backends', as Vault's.
	horizon    = 90 * time.Second
	stuckAfter = time.Minute
	// longWait is more than any end in these tests takes, in the time of a bubble.
	longWait = time.Hour
)

// roles are of each kind: without intent (plain), with one (horizon), prepared (vault), and each way to end.
const roles = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: plain}
spec: {backend: memory/plain, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: plain-cert}
spec: {backend: memory/plain, memory: {csr: true}, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: horizon}
spec: {backend: memory/horizon, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: horizon-cert}
spec: {backend: memory/horizon, memory: {csr: true}, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: vault}
spec: {backend: memory/vault, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: lapsing}
spec: {backend: memory/plain, memory: {ends: lapsing}, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: lapsing-horizon}
spec: {backend: memory/horizon, memory: {ends: lapsing}, ttl: {default: 5m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: static}
spec: {backend: memory/vault, memory: {ends: never}, accept_permanent: true, ttl: {default: 5m, max: 30m}}
`

const profile = `
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: agents}
spec:
  agents: ["spiffe://example.org/agent/*"]
  owner: platform@example.org
  sponsor: head@example.org
  purposes: [work]
  roles: [{name: plain}, {name: plain-cert}, {name: horizon}, {name: horizon-cert}, {name: vault}, {name: lapsing}, {name: lapsing-horizon}, {name: static}]
  task: {default_ttl: 20m, max_ttl: 2h, max_live: 5, max_live_leases: 10}
  permit: ceiling
`

// house is a broker over a real ledger, with backends in memory. It can be stopped and started again on the same ledger
// and the same backends.
type house struct {
	tb             testing.TB
	dir            string
	key            audit.Key
	plain, horizon *plugintest.Memory
	vault          *plugintest.Preparing
	backends       map[string]plugins.Backend
	meter          *meter
	kind           string // of store; "" is firstStore
	lies           lies   // what the store lies about; nil is nothing
	full           bool   // the disk is full at a start

	set   atomic.Int64 // by how much the clock was set, in nanoseconds
	blind bool         // nobody watches the clock

	mortal bool // no call of a dead process reaches a backend

	store   *store
	ledger  *ledger.Ledger
	catalog *broker.Catalog
	broker  *broker.Broker
	loop    func() // ends the loop; nil where it does not run
	jumps   func() int64
	stop    func() // ends the rest
}

// newHouse starts a house until the test ends; in the end it verifies its log.
func newHouse(tb testing.TB) *house {
	tb.Helper()
	return newHouseWith(tb, mutant{})
}

// newHouseWith starts a house with a deliberate bug.
func newHouseWith(tb testing.TB, bug mutant) *house {
	tb.Helper()
	h := &house{
		tb: tb, dir: tb.TempDir(), meter: newMeter(),
		plain:   plugintest.NewMemory(plugintest.MemoryConfig{}),
		horizon: plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon}),
		vault:   plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: horizon}),
	}
	h.backends = map[string]plugins.Backend{"memory/plain": h.plain, "memory/horizon": h.horizon, "memory/vault": h.vault}
	if bug.plant != nil {
		bug.plant(h)
	}
	h.mortal = bug.mortal
	var err error
	if h.key, err = audit.CreateKey(filepath.Join(h.dir, "key"), "example.org/audit"); err != nil {
		tb.Fatal(err)
	}
	h.start()
	tb.Cleanup(func() {
		h.endLoop()
		h.verify()
		h.stop()
	})
	h.apply(roles + "---" + profile)
	h.startLoop()
	return h
}

// start opens everything but the loop.
func (h *house) start() {
	h.tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.tb.Context()))
	if h.kind == "" {
		h.kind = firstStore
	}
	inner, err := stores()[h.kind](ctx, filepath.Join(h.dir, "data"))
	if err != nil {
		h.tb.Fatal(err)
	}
	h.store = &store{Store: inner, lies: h.lies, full: h.full}
	h.ledger, err = ledger.Open(ctx, ledger.Config{
		Store: h.store, Signer: h.key.Signer, Verifier: h.key.Verifier, Origin: h.key.Signer.Name(),
		StopIssuingBelow: 1, FreeBytes: h.store.FreeBytes,
	})
	if err != nil {
		h.tb.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- h.ledger.Run(ctx) }()
	backends := h.backends
	if h.mortal {
		backends = mortals(backends, h.store.isDead)
	}
	h.catalog, err = broker.NewCatalog(ctx, h.ledger, terms(backends))
	if err != nil {
		h.tb.Fatal(err)
	}
	h.broker, err = broker.New(ctx, broker.Config{
		Ledger: h.ledger, Catalog: h.catalog, Meter: h.meter, Logger: zap.NewNop(),
	})
	if err != nil {
		h.tb.Fatal(err)
	}
	flushing, flushed := make(chan struct{}), make(chan error, 1)
	bctx, bcancel := context.WithCancel(ctx)
	go func() { close(flushing); flushed <- h.broker.Run(bctx) }()
	<-flushing
	h.stop = func() {
		bcancel()
		if err := <-flushed; err != nil {
			h.tb.Errorf("broker: %v", err)
		}
		cancel()
		if err := <-ran; err != nil {
			h.tb.Errorf("ledger: %v", err)
		}
		if err := h.store.Close(); err != nil {
			h.tb.Errorf("store: %v", err)
		}
	}
}

// startLoop starts the teardown loop.
func (h *house) startLoop() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.tb.Context()))
	loop := teardown.New(teardown.Config{
		Ledger: h.ledger, Backends: h.catalog.Backends, Presence: h.broker.Presence(), StuckAfter: stuckAfter, Logger: zap.NewNop(),
		Wall: func(read time.Time) time.Time {
			if h.blind {
				return read
			}
			return read.Add(time.Duration(h.set.Load()))
		},
	})
	h.jumps = loop.ClockJumps
	ran := make(chan error, 1)
	go func() { ran <- loop.Run(ctx) }()
	h.loop = func() {
		cancel()
		if err := <-ran; err != nil {
			h.tb.Errorf("teardown: %v", err)
		}
	}
}

func (h *house) endLoop() {
	if h.loop != nil {
		h.loop()
		h.loop = nil
	}
}

// setClock sets the machine's clock, as far as anybody can tell, and waits until that was noticed. The clock and what stands
// against it move in one transaction, which does not fail: whoever notices the one plans by the other.
func (h *house) setClock(by time.Duration) {
	h.tb.Helper()
	synctest.Wait() // nobody looks while it is set
	h.store.calm()
	before := h.jumps()
	set := false
	if _, err := h.ledger.Update(context.WithoutCancel(h.tb.Context()), func(tx *ledger.Tx) error {
		if !set { // it may run again
			h.set.Add(int64(by))
			set = true
		}
		return ledgertest.SetClock(tx, by)
	}); err != nil {
		h.tb.Fatal(err)
	}
	if !h.blind {
		h.until(time.Minute, func() bool { return h.jumps() > before })
	}
}

// restart stops everything and opens it again on the same ledger. What the backends hold stays.
func (h *house) restart() {
	h.tb.Helper()
	h.endLoop()
	h.stop()
	h.start()
	h.startLoop()
}

// terms are those of backends, with the administrators of these tests.
func terms(backends map[string]plugins.Backend) broker.Terms {
	return broker.Terms{Backends: instance.Configured(backends), Forbidden: administrators}
}

// administrators says that spiffe://example.org/ops/* administer.
func administrators(p attestor.Pattern) []attestor.Pattern {
	ops, err := attestor.ParsePattern("spiffe://example.org/ops/*")
	if err == nil && p.Overlaps(ops) {
		return []attestor.Pattern{ops}
	}
	return nil
}

// agent returns a caller with a valid SVID.
func agent(name string) broker.Caller {
	return broker.Caller{Identity: identity("/agent/" + name), Request: "request-of-" + name}
}

// operator returns a caller that administers.
func operator() broker.Caller {
	return broker.Caller{Identity: identity("/ops/oncall"), Admin: attestor.RoleOperator, Request: "request-of-operator"}
}

func identity(path string) attestor.Identity {
	return attestor.Identity{
		ID:     spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("example.org"), path),
		Method: attestor.MethodX509, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(1000 * time.Hour),
	}
}

func (h *house) apply(yaml string) broker.Applied {
	h.tb.Helper()
	out, err := h.catalog.Apply(h.tb.Context(), operator(), broker.Apply{Files: []resource.File{{Name: "api", YAML: yaml}}})
	if err != nil {
		h.tb.Fatal(err)
	}
	return out
}

// declaration asks for every role of the profile that is given.
func declaration(request string, names ...string) broker.Declaration {
	d := broker.Declaration{Purpose: "work", Description: "reconcile the books of Jane Doe", RequestID: request}
	for _, name := range names {
		d.Roles = append(d.Roles, broker.RoleRequest{Role: name})
	}
	return d
}

// declare opens a task of agent a.
func (h *house) declare(names ...string) task.Task {
	h.tb.Helper()
	out, err := h.broker.Declare(h.tb.Context(), agent("a"), declaration(newID(h.tb), names...))
	if err != nil {
		h.tb.Fatal(err)
	}
	return out.Task
}

func newID(tb testing.TB) string {
	tb.Helper()
	id, err := task.NewID()
	if err != nil {
		tb.Fatal(err)
	}
	return id.String()
}

func ref(t task.Task) broker.TaskRef { return broker.TaskRef{ID: t.ID} }

// wish asks for a credential; certificates get a CSR.
func wish(tb testing.TB, t task.Task, role string) broker.IssueRequest {
	tb.Helper()
	req := broker.IssueRequest{Task: ref(t), Role: role, RequestID: newID(tb)}
	if role == "plain-cert" || role == "horizon-cert" {
		req.CSR = []byte("a request")
	}
	return req
}

// try asks for a credential as agent a.
func (h *house) try(t task.Task, role string) (broker.Issued, error) {
	h.tb.Helper()
	return h.broker.Issue(h.tb.Context(), agent("a"), wish(h.tb, t, role))
}

// issue is try that must succeed.
func (h *house) issue(t task.Task, role string) broker.Issued {
	h.tb.Helper()
	out, err := h.try(t, role)
	if err != nil {
		h.tb.Fatalf("issue %s: %v", role, err)
	}
	return out
}

// complete closes a task and waits until it is CLOSED.
func (h *house) complete(t task.Task) broker.Ended {
	h.tb.Helper()
	return h.completeWithin(t, longWait)
}

// completeWithin is complete with another wait.
func (h *house) completeWithin(t task.Task, wait time.Duration) broker.Ended {
	h.tb.Helper()
	out, err := h.broker.Complete(h.tb.Context(), agent("a"), ref(t), task.Completed, wait)
	if err != nil {
		h.tb.Fatal(err)
	}
	if out.Task.State != task.Closed {
		h.tb.Fatalf("task is %s after %s: %+v", out.Task.State, wait, out.Leases)
	}
	return out
}

func (h *house) view(fn func(ledger.Reader) error) {
	h.tb.Helper()
	if err := h.ledger.View(context.WithoutCancel(h.tb.Context()), fn); err != nil {
		h.tb.Fatal(err)
	}
}

// task reads a task as it stands.
func (h *house) task(id task.ID) task.Task {
	h.tb.Helper()
	var t task.Task
	h.view(func(r ledger.Reader) error {
		var err error
		t, err = r.Task(id)
		return err
	})
	return t
}

// leases reads all leases, oldest first.
func (h *house) leases() []lease.Lease {
	h.tb.Helper()
	var all []lease.Lease
	h.view(func(r ledger.Reader) error {
		var err error
		all, err = r.ListLeases(ledger.LeaseFilter{Limit: 100_000})
		return err
	})
	slices.Reverse(all)
	return all
}

// only returns the one lease that there is.
func (h *house) only() lease.Lease {
	h.tb.Helper()
	all := h.leases()
	if len(all) != 1 {
		h.tb.Fatalf("%d leases in the ledger, want one", len(all))
	}
	return all[0]
}

// records reads the log.
func (h *house) records() []audit.Record {
	h.tb.Helper()
	var out []audit.Record
	h.view(func(r ledger.Reader) error {
		entries, err := r.Entries(0, 1_000_000, "")
		for _, e := range entries {
			var rec audit.Record
			if cause := json.Unmarshal(e.JSON, &rec); cause != nil {
				return cause
			}
			out = append(out, rec)
		}
		return err
	})
	return out
}

// recorded returns the records of an event, and of a lease where one is named.
func (h *house) recorded(event audit.Event, id string) []audit.Record {
	h.tb.Helper()
	return slices.DeleteFunc(h.records(), func(r audit.Record) bool { return r.Event != event || (id != "" && r.Lease != id) })
}

// verify recomputes the log.
func (h *house) verify() {
	h.tb.Helper()
	h.view(func(r ledger.Reader) error {
		_, err := audit.VerifyLog(context.WithoutCancel(h.tb.Context()), r, audit.LogCheck{VerifierKey: h.key.Text})
		return err
	})
}

// alive counts what works at the backends, behind the broker's back.
func (h *house) alive() int {
	return len(h.plain.Alive()) + len(h.horizon.Alive()) + len(h.vault.Alive())
}

// gone fails the test unless nothing is alive and every lease is final.
func (h *house) gone() {
	h.tb.Helper()
	disclosed := 0
	for _, l := range h.leases() {
		if !l.State.Final() {
			h.tb.Errorf("lease %s of role %s is %s", l.ID, l.Role, l.State)
		}
		if l.State == lease.Disclosed {
			disclosed++
		}
	}
	if n := h.alive(); n > disclosed {
		h.tb.Errorf("%d credentials are alive at the backends, of which %d cannot be ended", n, disclosed)
	}
}

// until polls in the time of the bubble until cond holds.
func (h *house) until(limit time.Duration, cond func() bool) {
	h.tb.Helper()
	for end := time.Now().Add(limit); !cond(); pass(20 * time.Millisecond) {
		if time.Now().After(end) {
			h.tb.Fatalf("not so within %s", limit)
		}
	}
}

// pass lets time pass. Inside a bubble that takes none.
func pass(d time.Duration) { <-time.After(d) }

// want fails the test unless err has the reason.
func want(tb testing.TB, err error, reason fault.Reason) {
	tb.Helper()
	if fault.ReasonOf(err) != reason {
		tb.Fatalf("error %v, want the reason %s", err, reason)
	}
}

// wanted is want, and returns the refusal.
func wanted(tb testing.TB, err error, reason fault.Reason) *fault.Error {
	tb.Helper()
	want(tb, err, reason)
	return fault.As(err)
}

// classed holds that a refusal says what class of condition failed, and the limit where there is one.
func classed(tb testing.TB, f *fault.Error, class, limit string) {
	tb.Helper()
	if f.Metadata[policy.MetaClasses] != class || f.Metadata[policy.MetaLimit] != limit {
		tb.Errorf("%s carries %v, want class %s and limit %q", f.Reason, f.Metadata, class, limit)
	}
}

// meter counts what happens.
type meter struct {
	mu     sync.Mutex // guards all below
	issued int
	denied map[fault.Reason]int
}

func newMeter() *meter { return &meter{denied: map[fault.Reason]int{}} }

func (m *meter) Issued(string, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.issued++
}

func (m *meter) Denied(r fault.Reason) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.denied[r]++
}

func (m *meter) count(r fault.Reason) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.denied[r]
}

func mustJSON(tb testing.TB, v any) []byte {
	tb.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}
