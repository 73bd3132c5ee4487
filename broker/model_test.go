package broker_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// clockHeld is for how long at least nothing ends by a clock that was set.
const clockHeld = 5*time.Minute - 5*time.Second

// op is one step of a random program. What it does not need is ignored.
type op struct {
	Do      string
	Pick    int // which task, lease or backend
	Role    string
	Seconds int
}

func ops() *rapid.Generator[[]op] {
	return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) op {
		return op{
			Do: rapid.SampledFrom([]string{
				"declare", "declare", "issue", "issue", "issue", "issue", "issue", "issue", "issue", "lose", "hang", "late", "refuse", "revoke", "complete", "race",
				"overtake", "pass", "pass", "drop", "break", "heal", "disk", "unknown", "restart", "crash", "crash", "clock",
				"suspend", "resume", "resume", "remove", "restore", "restore",
			}).Draw(rt, "do"),
			Pick:    rapid.IntRange(0, 20).Draw(rt, "pick"),
			Role:    rapid.SampledFrom(modelKinds()).Draw(rt, "role"),
			Seconds: rapid.SampledFrom([]int{1, 5, 20, 100}).Draw(rt, "seconds"),
		}
	}), 100, 140)
}

// TestModel runs random programs of agents, faults and restarts against a small model: what was handed out and not asked
// to end works until its own end; what was ended does not; nothing is alive that the ledger does not hold as open; and in
// the end, with everything healed, everything is gone, and the log verifies. It runs modelSteps steps.
func TestModel(t *testing.T) {
	ran, failed := 0, false
	rapid.Check(t, func(rt *rapid.T) {
		program := ops().Draw(rt, "program")
		if ran >= modelSteps && !failed {
			return
		}
		ran += len(program)
		if failures := runProgram(t, program, mutant{}); len(failures) > 0 {
			failed = true
			rt.Fatalf("%v", failures)
		}
	})
	t.Logf("%d steps", ran)
	if !failed && ran < modelSteps {
		t.Errorf("%d steps are too few: want %d", ran, modelSteps)
	}
}

// judge is a testing.TB that remembers failures, so that rapid can look for a smaller program.
type judge struct {
	testing.TB

	mu       sync.Mutex // guards all below
	failures []string
	over     bool // nothing is left to stop
}

// stopped ends a program that cannot go on.
type stopped struct{}

func (*judge) Helper() {}

func (j *judge) note(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failures = append(j.failures, s)
}

func (j *judge) failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.failures) > 0
}

func (j *judge) Errorf(format string, args ...any) { j.note(fmt.Sprintf(format, args...)) }
func (j *judge) Error(args ...any)                 { j.note(fmt.Sprint(args...)) }

func (j *judge) Fatalf(format string, args ...any) { j.Fatal(fmt.Sprintf(format, args...)) }

func (j *judge) Fatal(args ...any) {
	j.note(fmt.Sprint(args...))
	if !j.over {
		panic(stopped{}) //nolint:forbidigo // as FailNow does, where rapid can still shrink
	}
}

// runProgram runs one program in a bubble and returns what went wrong.
func runProgram(t *testing.T, program []op, bug mutant) []string {
	t.Helper()
	var j *judge
	synctest.Test(t, func(t *testing.T) {
		j = &judge{TB: t}
		defer func() {
			if r := recover(); r != nil && r != any(stopped{}) {
				j.note(fmt.Sprint(r))
			}
			j.over = true
		}()
		bug.mortal = true
		m := &model{house: newHouseWith(j, bug), bug: bug, given: map[lease.ID]given{}, heard: map[task.ID]heard{}}
		m.countIssues()
		m.step(op{Do: "declare"})
		for i, o := range program {
			m.step(o)
			synctest.Wait()
			if j.failed() {
				return
			}
			m.check(fmt.Sprintf("%d %s", i, o.Do))
		}
		m.finish()
	})
	return j.failures
}

// given is a credential that was handed out.
type given struct {
	task     task.ID
	role     string
	cred     plugins.Credential
	notAfter time.Time // by the clock of the broker; cred's is by the backend's
}

// model is what a small program in the head of an agent believes.
type model struct {
	*house

	bug   mutant
	tasks []task.Task
	open  map[task.ID]bool
	given map[lease.ID]given // not asked to end, and not dropped
	setAt time.Time          // when the clock was set last

	suspended bool   // agent a is, for certain
	removed   string // the role that is, for certain

	mu    sync.Mutex // guards calls, open, given and heard
	calls map[plugins.LeaseID]int
	heard map[task.ID]heard // of tasks with an idle timeout
}

// countIssues watches that issue is called at most once per lease, and only with its intent in the ledger.
func (m *model) countIssues() {
	m.calls, m.open = map[plugins.LeaseID]int{}, map[task.ID]bool{}
	for name, memory := range map[string]*plugintest.Memory{"plain": m.plain, "horizon": m.horizon, "vault": m.vault.Memory} {
		memory.Before(plugintest.OpIssue, func(ctx context.Context, id plugins.LeaseID) error {
			m.mu.Lock()
			m.calls[id]++
			twice := m.calls[id] > 1
			m.mu.Unlock()
			if twice {
				m.tb.Errorf("issue was called twice for %s", id)
			}
			if name == "plain" {
				return nil
			}
			return m.ledger.View(ctx, func(r ledger.Reader) error {
				if _, err := r.Lease(id); err != nil {
					m.tb.Errorf("issue without an intent: %v", err)
				}
				return nil
			})
		})
	}
}

// pick returns one of the open tasks.
func (m *model) pick(o op) (task.Task, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var open []task.Task
	for _, t := range m.tasks {
		if m.open[t.ID] {
			open = append(open, t)
		}
	}
	if len(open) == 0 {
		return task.Task{}, false
	}
	return open[o.Pick%len(open)], true
}

func (m *model) memory(o op) *plugintest.Memory { return m.memoryOf(kinds()[o.Pick%len(kinds())]) }

func (m *model) step(o op) { //nolint:cyclop // one line a kind
	switch o.Do {
	case "declare":
		m.declareOne(o)
	case "issue":
		m.issueOne(o)
	case "lose":
		m.memoryOf(o.Role).LoseNext(plugintest.OpIssue)
		m.issueOne(o)
	case "hang":
		m.memoryOf(o.Role).HangNext(plugintest.OpIssue)
		m.issueOne(o)
	case "late":
		m.late(o)
	case "refuse":
		m.memoryOf(o.Role).FailNext(plugintest.OpIssue, plugins.ErrNotIssued)
		m.issueOne(o)
	case "revoke":
		m.revokeOne(o)
	case "complete":
		m.completeOne(o)
	case "race":
		var wg sync.WaitGroup
		wg.Go(func() { m.issueOne(o) })
		wg.Go(func() { m.completeOne(o) })
		wg.Wait()
	case "overtake":
		m.overtake(o)
	case "crash":
		m.crash(o)
	case "pass":
		pass(time.Duration(o.Seconds) * time.Second)
	case "drop":
		for _, id := range m.sorted() {
			m.plain.Drop(id)
			m.forget(id)
			break
		}
	case "break":
		m.memory(o).Break()
	case "heal":
		m.memory(o).Heal()
	case "disk":
		m.store.failNth(atLog, 1+o.Pick%3)
	case "unknown":
		m.store.failNth([]step{atCommit, atAnswer}[o.Pick%2], 1+o.Pick%3)
	case "restart":
		m.restart()
		m.startedAnew()
	case "clock":
		m.clock(o)
	case "suspend":
		m.suspend(o)
	case "resume":
		m.resume()
	case "remove":
		m.remove(o)
	case "restore":
		m.restoreRoles()
	}
}

// clock sets the machine's clock, by up to hours and either way. What seems over by it may end once it was held for a while.
func (m *model) clock(o op) {
	by := time.Duration(o.Seconds*o.Seconds+10) * time.Second
	if o.Pick%2 == 1 {
		by = -by
	}
	m.setClock(by)
	m.setAt = time.Now()
	for id, g := range m.given {
		if !g.notAfter.IsZero() {
			g.notAfter = g.notAfter.Add(-by)
		}
		m.given[id] = g
	}
}

// overtake completes a task while an answer for it is on its way.
func (m *model) overtake(o op) {
	memory := m.memoryOf(o.Role)
	memory.After(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error { pass(2 * time.Second); return nil })
	defer memory.After(plugintest.OpIssue, nil)
	var wg sync.WaitGroup
	wg.Go(func() { m.issueOne(o) })
	pass(time.Second)
	wg.Go(func() { m.completeOne(o) })
	wg.Wait()
}

// crash ends the process before or after one of its next commits, or at once, in the middle of an issue or a complete,
// and starts another on its ledger.
func (m *model) crash(o op) {
	m.store.die(1+o.Pick%4, o.Seconds%2 == 0)
	switch o.Pick % 6 {
	case 0, 1:
		m.issueOne(o)
	case 2:
		m.completeOne(o)
	case 3:
		m.revokeOne(o)
	case 4:
		m.suspend(o)
	case 5:
		m.remove(o)
	}
	m.store.kill()
	tb := m.tb
	m.tb = deaf{tb} // what a dying process complains of is nobody's concern
	m.endLoop()
	m.stop()
	m.tb = tb
	m.start()
	m.dropUnknown()
	m.startLoop()
	m.startedAnew()
}

// dropUnknown drops what a dead process had made of the kind without intent and not committed: it was in its memory only.
func (m *model) dropUnknown() {
	known := map[lease.ID]bool{}
	for _, l := range m.leases() {
		known[l.ID] = true
	}
	for _, id := range m.plain.Alive() {
		if !known[id] {
			m.plain.Drop(id)
		}
	}
}

// late makes an answer come after its call's deadline and within the horizon, where the backend has one.
func (m *model) late(o op) {
	memory := m.memoryOf(o.Role)
	if memory.Descriptor().Horizon > 0 {
		memory.LateNext(plugintest.OpIssue, broker.IssueTimeout+horizon-time.Second)
	}
	m.issueOne(o)
}

func (m *model) issueOne(o op) {
	t, ok := m.pick(o)
	if !ok {
		return
	}
	called := time.Now()
	out, err := m.try(t, o.Role)
	if err != nil {
		called = time.Time{}
	}
	m.hear(t.ID, called)
	if m.bug.release != nil {
		out, err = m.bug.release(m.house, out, err)
	}
	if err != nil {
		if out.Credential.Fields != nil || out.Credential.Chain != nil {
			m.tb.Errorf("a refusal carries a credential: %v", err)
		}
		return
	}
	m.admitted("issued", o.Role)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open[t.ID] {
		m.given[out.Lease.ID] = given{task: t.ID, role: o.Role, cred: out.Credential, notAfter: out.Credential.NotAfter}
	}
}

func (m *model) forget(id lease.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.given, id)
}

func (m *model) sorted() []lease.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Keys(m.given), func(a, b lease.ID) int { return slices.Compare(a[:], b[:]) })
}

func (m *model) revokeOne(o op) {
	ids := m.sorted()
	if len(ids) == 0 {
		return
	}
	id := ids[o.Pick%len(ids)]
	m.forget(id) // from now on it may or may not work
	l, _, err := m.broker.RevokeLease(m.tb.Context(), agent("a"), id, time.Second)
	m.hear(l.Task, time.Time{})
	if err == nil && l.State == lease.Active {
		m.tb.Errorf("revoked, and %s is %s", id, l.State)
	}
}

func (m *model) completeOne(o op) {
	t, ok := m.pick(o)
	if !ok {
		return
	}
	m.mu.Lock()
	for id, g := range m.given {
		if g.task == t.ID {
			delete(m.given, id)
		}
	}
	m.open[t.ID] = false
	m.mu.Unlock()
	_, err := m.broker.Complete(m.tb.Context(), agent("a"), ref(t), task.Completed, time.Second)
	m.hear(t.ID, time.Time{})
	if err != nil {
		m.mu.Lock()
		m.open[t.ID] = true // it is not known; ask again
		m.mu.Unlock()
	}
}

// check holds ledger and backends against the model.
func (m *model) check(at string) {
	leases := map[lease.ID]lease.Lease{}
	live, closed := 0, map[task.ID]bool{}
	for _, l := range m.leases() {
		leases[l.ID] = l
		if !l.State.Final() {
			live++
		}
		if _, seen := closed[l.Task]; !seen {
			closed[l.Task] = m.task(l.Task).State == task.Closed
		}
		if l.State == lease.Active && m.task(l.Task).State != task.Active {
			m.tb.Errorf("%s: lease %s is ACTIVE, and its task is not", at, l.ID)
		}
		if closed[l.Task] && !l.State.Final() {
			m.tb.Errorf("%s: lease %s of a closed task is %s", at, l.ID, l.State)
		}
	}
	if live > 10 {
		m.tb.Errorf("%s: %d live leases; the profile allows 10", at, live)
	}
	for _, id := range slices.Concat(m.plain.Alive(), m.horizon.Alive(), m.vault.Alive()) {
		if l, ok := leases[id]; !ok || l.State.Final() && l.State != lease.Disclosed {
			m.tb.Errorf("%s: credential %s is alive, its lease is %q", at, id, l.State)
		}
	}
	m.checkGiven(at, leases)
	m.checkEnds(at, leases)
}

// checkGiven sees that what was handed out, and not asked to end, works.
func (m *model) checkGiven(at string, leases map[lease.ID]lease.Lease) {
	for id, g := range m.given {
		l := leases[id]
		end := g.cred.NotAfter
		if end.IsZero() { // it does not end, but its task does
			end = m.task(g.task).NotAfter
		}
		if time.Until(end) < 2*time.Second { // at the very end of a credential or its task either may be the case
			continue
		}
		over := !g.notAfter.IsZero() && time.Until(g.notAfter) < 2*time.Second || time.Until(m.task(g.task).NotAfter) < 2*time.Second
		if over && time.Since(m.setAt) > clockHeld {
			delete(m.given, id) // it may have ended for good, wherever the clock is set to from now on
			continue
		}
		if m.maySilent(g.task) {
			delete(m.given, id) // its task may have been abandoned
			continue
		}
		if l.State != lease.Active || !m.memoryOf(g.role).Works(m.tb.Context(), g.cred) {
			m.tb.Errorf("%s: lease %s of role %s is %s (%s) and was not asked to end", at, id, g.role, l.State, l.Cause)
		}
	}
}

// finish heals everything and ends every task.
func (m *model) finish() {
	for _, at := range []step{atLog, atCommit, atAnswer} {
		m.store.failNth(at, 1_000)
	}
	m.plain.Heal()
	m.horizon.Heal()
	m.vault.Heal()
	m.resume()
	for _, t := range m.tasks {
		m.completeWithin(t, 48*time.Hour) // what cannot be revoked is believed for as much longer as the clock was set back
	}
	pass(2 * horizon) // whatever was still on its way has arrived
	m.gone()
	if m.vault.Tokens() != 0 { // made before an intent that a dead process did not come to: they end unused
		pass(40 * time.Minute)
	}
	if n := m.vault.Tokens(); n != 0 {
		m.tb.Errorf("%d tokens are left", n)
	}
}
