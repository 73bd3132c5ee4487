package teardown_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/mod/sumdb/note"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/ledgertest"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // backends in memory
)

const (
	stuckAfter = 5 * time.Minute
	origin     = "example.org/audit"
)

// yard is a ledger with leases of two backends in memory, "memory/a" and "memory/b", and what it takes to run loops on it.
type yard struct {
	restored atomic.Bool // the ledger, and nobody has confirmed it
	tb       testing.TB
	a, b     *plugintest.Memory
	backends map[string]plugins.Backend
	presence *presence
	ledger   *ledger.Ledger
	kill     context.CancelFunc // ends the ledger
	logger   *zap.Logger
	logs     *observer.ObservedLogs // at Error
	set      atomic.Int64           // by how much the clock was set, in nanoseconds
	store    *failing
}

// failing is the store, which can be made to begin nothing, or to be damaged where the leases of a lane or a task are.
type failing struct {
	*sqlite.Store

	yes     atomic.Bool
	damaged atomic.Value // the lane
	unread  atomic.Value // the task
}

// damagedTx is a transaction that cannot read the leases of a lane, or a task.
type damagedTx struct {
	ledger.StoreTx

	lane, task any
}

func (d damagedTx) Task(id task.ID) (task.Task, error) {
	if id == d.task {
		return task.Task{}, fmt.Errorf("%w: %w", ledger.ErrUnavailable, ledger.ErrDamaged)
	}
	return d.StoreTx.Task(id)
}

func (d damagedTx) DueLeases(lane string, now time.Time, limit int, except ...task.ID) ([]lease.Lease, error) {
	if lane == d.lane {
		return nil, fmt.Errorf("%w: %w", ledger.ErrUnavailable, ledger.ErrDamaged)
	}
	return d.StoreTx.DueLeases(lane, now, limit, except...)
}

// ListLeases and ListTasks come by what cannot be read, where they list all.
func (d damagedTx) ListLeases(f ledger.LeaseFilter) ([]lease.Lease, error) {
	all, err := d.StoreTx.ListLeases(f)
	if (f.Task == task.ID{}) && slices.ContainsFunc(all, func(l lease.Lease) bool { return l.Lane == d.lane }) {
		return nil, fmt.Errorf("%w: %w", ledger.ErrUnavailable, ledger.ErrDamaged)
	}
	return all, err
}

func (d damagedTx) ListTasks(f ledger.TaskFilter) ([]task.Task, error) {
	all, err := d.StoreTx.ListTasks(f)
	if slices.ContainsFunc(all, func(t task.Task) bool { return t.ID == d.task }) {
		return nil, fmt.Errorf("%w: %w", ledger.ErrUnavailable, ledger.ErrDamaged)
	}
	return all, err
}

func (f *failing) Begin(ctx context.Context) (ledger.StoreTx, error) {
	if f.yes.Load() {
		return nil, ledger.ErrUnavailable
	}
	tx, err := f.Store.Begin(ctx)
	return damagedTx{StoreTx: tx, lane: f.damaged.Load(), task: f.unread.Load()}, err
}

func newYard(tb testing.TB) *yard {
	tb.Helper()
	y := &yard{
		tb: tb, a: plugintest.NewMemory(plugintest.MemoryConfig{}), b: plugintest.NewMemory(plugintest.MemoryConfig{}),
		presence: &presence{seen: map[task.ID]time.Time{}, started: time.Now()},
	}
	y.backends = map[string]plugins.Backend{"memory/a": y.a, "memory/b": y.b}
	core, logs := observer.New(zap.ErrorLevel)
	y.logger, y.logs = zap.New(core), logs
	store, err := sqlite.Open(tb.Context(), tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	y.store = &failing{Store: store}
	skey, vkey, err := note.GenerateKey(nil, origin)
	if err != nil {
		tb.Fatal(err)
	}
	signer, _ := note.NewSigner(skey)
	verifier, _ := note.NewVerifier(vkey)
	y.ledger, err = ledger.Open(tb.Context(), ledger.Config{Store: y.store, Signer: signer, Verifier: verifier, Origin: origin})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	y.kill = cancel
	ran := make(chan error, 1)
	go func() { ran <- y.ledger.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			tb.Errorf("ledger: %v", err)
		}
		if err := store.Close(); err != nil {
			tb.Errorf("store: %v", err)
		}
	})
	return y
}

func (y *yard) loop() *teardown.Loop {
	return teardown.New(teardown.Config{
		Ledger: y.ledger, Backends: func() *instance.Snapshot { return instance.Configured(y.backends) }, Presence: y.presence,
		StuckAfter: stuckAfter, Logger: y.logger,
		Wall: func(read time.Time) time.Time { return read.Add(time.Duration(y.set.Load())) },
		Held: y.restored.Load,
	})
}

// setClock sets the machine's clock, as far as anybody can tell.
func (y *yard) setClock(by time.Duration) {
	y.tb.Helper()
	synctest.Wait() // nobody looks while it is set
	y.set.Add(int64(by))
	y.update(func(tx *ledger.Tx) error { return ledgertest.SetClock(tx, by) })
}

// run runs a loop until the test ends or the returned function is called.
func (y *yard) run() (stop func()) {
	_, stop = y.runLoop()
	return stop
}

// runLoop is run that also returns the loop.
func (y *yard) runLoop() (loop *teardown.Loop, stop func()) {
	loop = y.loop()
	ctx, cancel := context.WithCancel(context.WithoutCancel(y.tb.Context()))
	ran := make(chan error, 1)
	go func() { ran <- loop.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			y.tb.Errorf("loop: %v", err)
		}
	})
	y.tb.Cleanup(stop)
	return loop, stop
}

func (y *yard) update(fn func(tx *ledger.Tx) error) {
	y.tb.Helper()
	if _, err := y.ledger.Update(context.WithoutCancel(y.tb.Context()), fn); err != nil {
		y.tb.Fatal(err)
	}
}

func (y *yard) view(fn func(r ledger.Reader) error) {
	y.tb.Helper()
	if err := y.ledger.View(context.WithoutCancel(y.tb.Context()), fn); err != nil {
		y.tb.Fatal(err)
	}
}

// task opens a task that ends in an hour, changed by edit where there is one.
func (y *yard) task(edit func(*task.Task)) task.Task {
	y.tb.Helper()
	id, err := task.NewID()
	if err != nil {
		y.tb.Fatal(err)
	}
	t := task.Task{
		ID: id, ShortName: "work-" + id.String(), Agent: "spiffe://example.org/agent/a", Profile: "agents", Owner: "o", Sponsor: "s",
		Purpose: "work", State: task.Active, NotAfter: time.Now().Add(time.Hour), CreatedAt: time.Now(), RequestID: id.String(),
	}
	if edit != nil {
		edit(&t)
	}
	t.NextAt = t.NotAfter
	if t.IdleTimeout > 0 {
		t.NextAt = t.CreatedAt.Add(t.IdleTimeout)
	}
	y.update(func(tx *ledger.Tx) error { return tx.InsertTask(t) })
	return t
}

// lease issues a credential at a backend, valid for half an hour, and enters its ACTIVE lease.
func (y *yard) lease(t task.Task, backend string) lease.Lease {
	y.tb.Helper()
	id, err := lease.NewID()
	if err != nil {
		y.tb.Fatal(err)
	}
	until := time.Now().Add(30 * time.Minute)
	l := lease.Lease{
		ID: id, Task: t.ID, TaskName: t.ShortName, Agent: t.Agent, Role: "r", Backend: backend, Lane: backend, State: lease.Active,
		Ends: plugins.EndsRevocable, RequestID: id.String(), CreatedAt: time.Now(), NotAfter: until, NextAt: until,
	}
	if m, ok := y.backends[backend].(*plugintest.Memory); ok {
		cred, err := m.Issue(y.tb.Context(), plugins.Request{Lease: id, Role: plugins.Role{Name: "r"}, NotAfter: until})
		if err != nil {
			y.tb.Fatal(err)
		}
		l.Handle, l.PublicRef = cred.Handle, cred.PublicRef
	}
	y.update(func(tx *ledger.Tx) error { return tx.InsertLease(l) })
	return l
}

// close asks for the end of a task.
func (y *yard) close(t task.Task) {
	y.tb.Helper()
	y.update(func(tx *ledger.Tx) error {
		return teardown.Close(tx, t.ID, teardown.Cause{Actor: teardown.Stint(), Why: task.Completed, Now: time.Now()})
	})
}

func (y *yard) readTask(id task.ID) task.Task {
	y.tb.Helper()
	var t task.Task
	y.view(func(r ledger.Reader) error {
		var err error
		t, err = r.Task(id)
		return err
	})
	return t
}

func (y *yard) readLease(id lease.ID) lease.Lease {
	y.tb.Helper()
	var l lease.Lease
	y.view(func(r ledger.Reader) error {
		var err error
		l, err = r.Lease(id)
		return err
	})
	return l
}

// ended counts the leases of a task that are final.
func (y *yard) ended(t task.Task) int {
	y.tb.Helper()
	n := 0
	y.view(func(r ledger.Reader) error {
		leases, err := r.ListLeases(ledger.LeaseFilter{Task: t.ID})
		for _, l := range leases {
			if l.State.Final() {
				n++
			}
		}
		return err
	})
	return n
}

// stuck counts the leases of a task that are flagged as stuck.
func (y *yard) stuck(t task.Task) int {
	y.tb.Helper()
	n := 0
	y.view(func(r ledger.Reader) error {
		leases, err := r.ListLeases(ledger.LeaseFilter{Task: t.ID, Stuck: true})
		n = len(leases)
		return err
	})
	return n
}

// records returns the records of an event.
func (y *yard) records(event audit.Event) []audit.Record {
	y.tb.Helper()
	var out []audit.Record
	y.view(func(r ledger.Reader) error {
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
	return slices.DeleteFunc(out, func(r audit.Record) bool { return r.Event != event })
}

// until polls in the time of the bubble until cond holds.
func (y *yard) until(limit time.Duration, cond func() bool) {
	y.tb.Helper()
	for end := time.Now().Add(limit); !cond(); pass(20 * time.Millisecond) {
		if time.Now().After(end) {
			y.tb.Fatalf("not so within %s", limit)
		}
	}
}

func (y *yard) final(id lease.ID) func() bool {
	return func() bool { return y.readLease(id).State.Final() }
}

// pass lets time pass. Inside a bubble that takes none.
func pass(d time.Duration) { <-time.After(d) }

// presence is when agents were last heard of.
type presence struct {
	started time.Time

	mu     sync.Mutex // guards all below
	seen   map[task.ID]time.Time
	forgot []task.ID
}

func (p *presence) touch(id task.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[id] = time.Now()
}

func (p *presence) LastSeen(id task.ID, _ time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.seen[id]; ok {
		return at
	}
	return p.started
}

func (p *presence) Heard(id task.ID, _ time.Time) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.seen[id]
	return at, ok
}

func (p *presence) Forget(id task.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgot = append(p.forgot, id)
}

// fixed is a backend whose every end is the same.
type fixed struct {
	plugins.Backend

	mu    sync.Mutex // guards all below
	next  plugins.Ending
	err   error
	calls int
}

func (f *fixed) set(e plugins.Ending, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next, f.err = e, err
}

func (f *fixed) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fixed) Revoke(context.Context, plugins.Held) (plugins.Ending, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	return f.next, f.err
}
