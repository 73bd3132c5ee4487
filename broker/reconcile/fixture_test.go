package reconcile_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // a house is made of concrete things
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// grace is more than an unknown credential of the house's backends has to be old: a horizon of 10 s, an issue, and a sweep.
const grace = 51 * time.Second

// operator is who asks in these tests.
func operator() audit.Actor { return audit.Actor{ID: "spiffe://example.org/ops/alice"} }

// fixture is a house and a reconciler of its own, whose metrics and log can be read.
type fixture struct {
	*brokertest.House

	cfg   reconcile.Config
	rec   *reconcile.Reconciler // of cfg
	meter *meter
	logs  *observer.ObservedLogs
}

// fresh starts a house; every is how often its reconciler runs by itself.
func fresh(t *testing.T, every time.Duration, backends map[string]plugins.Backend) fixture {
	t.Helper()
	return reconciled(t, brokertest.Start(t, brokertest.Config{Backends: backends, Resources: resources(backends)}), every)
}

// reconciled gives a house a reconciler.
func reconciled(t *testing.T, h *brokertest.House, every time.Duration) fixture {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	f := fixture{House: h, meter: &meter{seen: map[string][]reconcile.Counts{}}, logs: logs}
	f.cfg = reconcile.Config{
		Ledger: h.Ledger, Roles: func() []resource.Role { return h.Broker.Catalog().Engine().Set().Roles() },
		Backends: h.Broker.Catalog().Backends,
		Grace:    broker.UnknownGrace, Every: every, Meter: f.meter, Logger: zap.New(core),
	}
	f.rec = reconcile.New(f.cfg)
	return f
}

// resources leaves the role of the backend that a house with other backends does not have.
func resources(backends map[string]plugins.Backend) string {
	if backends == nil {
		return ""
	}
	return caResources
}

// compare reconciles and returns the inventory of one backend.
func (f fixture) compare(t *testing.T, o reconcile.Order) reconcile.Inventory {
	t.Helper()
	if o.Backend == "" {
		o.Backend = "memory/a"
	}
	o.Actor, o.Request = operator(), "request-1"
	got, err := f.rec.Reconcile(t.Context(), o)
	if err != nil || len(got) != 1 {
		t.Fatalf("Reconcile returned %v, %v", got, err)
	}
	return got[0]
}

// outside makes a credential under a role as somebody else than the broker.
func outside(t *testing.T, m *plugintest.Memory, id plugins.LeaseID, role string) plugins.Credential {
	t.Helper()
	cred, err := m.Issue(t.Context(), plugins.Request{
		Lease: id, Role: plugins.Role{Name: role}, NotAfter: time.Now().Add(3 * time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// pass lets time pass inside a bubble.
func pass(d time.Duration) { <-time.After(d) }

func newID() plugins.LeaseID { return plugins.LeaseID(uuid.New()) }

// idOf returns the ID in a lease's name.
func idOf(t *testing.T, l *stintv1.Lease) lease.ID {
	t.Helper()
	id, err := lease.ParseID(l.GetName()[len("leases/"):])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// row reads a lease from the ledger.
func (f fixture) row(t *testing.T, id lease.ID) lease.Lease {
	t.Helper()
	var l lease.Lease
	err := f.Ledger.View(t.Context(), func(r ledger.Reader) error {
		var err error
		l, err = r.Lease(id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// records returns the events of the log that this package writes, with who caused them.
func (f fixture) records(t *testing.T, backend string) []string {
	t.Helper()
	res, err := f.As(t, "/audit/eve").Audit.ListRecords(t.Context(), &stintv1.ListRecordsRequest{PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range res.GetRecords() {
		var rec audit.Record
		if err := json.Unmarshal(r.GetJson(), &rec); err != nil {
			t.Fatal(err)
		}
		switch rec.Event { //nolint:exhaustive // the others are of other packages
		case audit.InventoryDiffs, audit.StrayEnding, audit.StrayEnded:
			if rec.Backend == backend {
				out = append(out, string(rec.Event)+" "+rec.Actor.ID+" "+rec.Reason+" "+rec.Ref)
			}
		}
	}
	return out
}

// kinds returns what was found, as "kind outcome".
func kinds(inv reconcile.Inventory) []string {
	var out []string
	for _, f := range inv.Findings {
		out = append(out, string(f.Kind)+" "+string(f.Outcome))
	}
	return out
}

func want(t *testing.T, inv reconcile.Inventory, findings ...string) {
	t.Helper()
	if diff := cmp.Diff(findings, kinds(inv)); diff != "" {
		t.Fatalf("findings (-want +got):\n%s%+v", diff, inv)
	}
}

// meter keeps what it is told.
type meter struct {
	mu   sync.Mutex // guards seen
	seen map[string][]reconcile.Counts
}

func (m *meter) Reconciled(backend string, c reconcile.Counts, _ time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[backend] = append(m.seen[backend], c)
}

func (*meter) Only([]string) {}

func (m *meter) of(backend string) []reconcile.Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[backend]
}

// contextOf returns the test's context with a way to end it.
func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithCancel(t.Context())
}

func (m *meter) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.seen)
}
