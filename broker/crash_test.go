package broker_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

const (
	// crashDir, crashKind and crashAddr tell the child where its ledger is, of which kind, and where its backends are;
	// crashStory what it goes through.
	crashDir   = "STINT_BROKER_CRASH_DIR"
	crashKind  = "STINT_BROKER_CRASH_KIND"
	crashAddr  = "STINT_BROKER_CRASH_ADDR"
	crashStory = "STINT_BROKER_CRASH_STORY"
)

// What a child goes through, one at a time.
const (
	storyMain       = "declared, issued, ended"
	storySuspension = "suspended"
	storyAbandoned  = "abandoned"
	storyEnds       = "lapsing and disclosed"
	storyInventory  = "compared"
)

// crashStories are all there are, with the states of leases that processes which are killed in it leave.
func crashStories() map[string][]lease.State {
	return map[string][]lease.State{
		storyMain:       {lease.Intent, lease.Active, lease.Revoking, lease.Revoked},
		storySuspension: {lease.Active, lease.Revoking},
		storyAbandoned:  {lease.Active, lease.Revoking},
		storyEnds:       {lease.Active, lease.Revoking, lease.Lapsing, lease.Disclosed},
		storyInventory:  {lease.Active, lease.Revoking},
	}
}

// TestStepsAreComplete: the list of steps holds every step that there is in the code, and no other.
func TestStepsAreComplete(t *testing.T) {
	hit := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	var found []string
	err := filepath.WalkDir(".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(name)
		for _, m := range hit.FindAllSubmatch(raw, -1) {
			found = append(found, string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	steps := failpoint.Steps()
	slices.Sort(found)
	slices.Sort(steps)
	if !slices.Equal(slices.Compact(found), steps) {
		t.Errorf("the code hits %v, the list holds %v", slices.Compact(found), steps)
	}
}

// TestCrash kills a process with SIGKILL at every step of declaring, issuing and ending, and around its commits, and
// starts again on its ledger, of each kind of store. What was handed out is in the ledger and its log; what is alive at a
// backend is in the ledger, and is gone in the end.
func TestCrash(t *testing.T) {
	child := buildChild(t)
	for kind := range stores() {
		t.Run(kind, func(t *testing.T) { crashEverywhere(t, child, kind) })
	}
}

// crashEverywhere goes through each story once to its end, which tells what steps it has, and then kills a process at each.
func crashEverywhere(t *testing.T, child, kind string) {
	t.Helper()
	reached := map[string]bool{}
	for story, leaves := range crashStories() {
		hits := stepsOf(t, child, kind, story)
		left := &statesLeft{states: map[lease.State]bool{}}
		t.Run(story, func(t *testing.T) {
			for step, count := range hits {
				reached[step] = true
				for _, n := range hitsToTry(step, count) {
					at := crashPoint{kind, story, step, n}
					t.Run(fmt.Sprintf("%s:%d", step, n), func(t *testing.T) {
						t.Parallel()
						crashAt(t, child, at, left)
					})
				}
			}
		})
		for _, state := range leaves {
			if !left.states[state] {
				t.Errorf("%s: no process left a lease that was %s", story, state)
			}
		}
		if story == storyMain && !left.swept {
			t.Errorf("%s: no process was killed in a sweep", story)
		}
	}
	for _, step := range failpoint.Steps() {
		if !reached[step] {
			t.Errorf("no process came to %s", step)
		}
	}
}

// statesLeft are the states of leases that killed processes left.
type statesLeft struct {
	mu     sync.Mutex // guards all below
	states map[lease.State]bool
	swept  bool // there was one whose intent was being swept
}

func (s *statesLeft) note(leases []lease.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range leases {
		s.states[l.State] = true
		s.swept = s.swept || (l.State == lease.Revoking && l.Uncertain)
	}
}

// crashAt kills one process and checks what is left.
func crashAt(t *testing.T, child string, at crashPoint, left *statesLeft) {
	t.Helper()
	v, out := at.killed(t, child)
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		pass(time.Until(now)) // a bubble's clock begins long before the child's
		h := &house{
			tb: t, dir: v.dir, kind: at.kind, key: v.key, meter: newMeter(), horizon: v.inv.horizon, vault: v.inv.vault,
			plain: plugintest.NewMemory(plugintest.MemoryConfig{}), // as an embedded CA's: gone with the process
		}
		h.backends = map[string]plugins.Backend{"memory/plain": h.plain, "memory/horizon": h.horizon, "memory/vault": h.vault}
		h.start()
		defer func() { h.stop() }()
		left.note(h.leases())
		h.accounted(t, out)
		h.acknowledged(t, out)
		h.startLoop()
		defer h.endLoop()
		if at.story == storyInventory {
			h.endStrays(t, out)
		}
		h.endsByItself(t, out)
		h.endAll(t)
		h.allEnded()
		h.verify()
	})
}

// accounted holds what is alive at the backends against the ledger. What the process itself called a stranger is in none.
func (h *house) accounted(t *testing.T, out []byte) {
	t.Helper()
	known := map[lease.ID]lease.State{}
	for _, l := range h.leases() {
		known[l.ID] = l.State
	}
	strangers := slices.Collect(told(out, "stranger"))
	for _, id := range append(h.horizon.Alive(), h.vault.Alive()...) {
		state, ok := known[id]
		if (!ok && !slices.Contains(strangers, id.String())) || (state.Final() && state != lease.Disclosed) {
			t.Errorf("credential %s is alive, and its lease is %q", id, state)
		}
	}
}

// acknowledged looks for what a killed process said that it had handed out.
func (h *house) acknowledged(t *testing.T, out []byte) {
	t.Helper()
	for name := range told(out, "acked") {
		if len(h.recorded(audit.LeaseActive, name)) != 1 {
			t.Errorf("lease %s was handed out and is not in the log", name)
		}
	}
}

// endStrays compares the backends with the ledger, as an operator does after a crash. A stranger that a killed process has
// ended already is in the log: that is recorded before the backend is asked.
func (h *house) endStrays(t *testing.T, out []byte) {
	t.Helper()
	about := func(event audit.Event, id string) bool {
		return slices.ContainsFunc(h.recorded(event, ""), func(r audit.Record) bool { return r.Ref == "m-"+id })
	}
	alive := map[string]bool{}
	for _, id := range h.horizon.Alive() {
		alive[id.String()] = true
	}
	h.compare(t)
	for id := range told(out, "stranger") {
		if !about(audit.StrayEnding, id) || (alive[id] && !about(audit.StrayEnded, id)) {
			t.Errorf("stranger %s (alive after the crash: %t) is not in the log", id, alive[id])
		}
		if slices.ContainsFunc(h.horizon.Alive(), func(other lease.ID) bool { return other.String() == id }) {
			t.Errorf("stranger %s is alive", id)
		}
	}
}

// compare compares the backends with the ledger and ends what differs. Nothing is too young to differ: nobody issues.
func (h *house) compare(t *testing.T) {
	t.Helper()
	r := reconcile.New(reconcile.Config{
		Ledger: h.ledger, Roles: func() []resource.Role { return h.catalog.Engine().Set().Roles() }, Backends: h.catalog.Backends,
		Grace: -horizon, Meter: unread{}, Logger: zap.NewNop(),
	})
	order := reconcile.Order{RevokeUnknown: true, Settle: true, Actor: audit.Actor{ID: "spiffe://example.org/ops/oncall"}, Request: "r"}
	if _, err := r.Reconcile(t.Context(), order); err != nil {
		t.Fatal(err)
	}
}

// unread is a meter that nobody reads.
type unread struct{}

func (unread) Reconciled(string, reconcile.Counts, time.Time) {}
func (unread) Only([]string)                                  {}

// endsByItself waits for what nobody has to ask for again: the end of the tasks of a suspended agent, and of those that are
// left alone.
func (h *house) endsByItself(t *testing.T, out []byte) {
	t.Helper()
	suspended := h.broker.Admits(agent("a")) != nil
	if !suspended && len(slices.Collect(told(out, "suspended"))) > 0 {
		t.Error("the suspension was acknowledged, and the agent is admitted")
	}
	why := func(w task.Task) (task.CloseReason, bool) {
		if suspended {
			return task.AgentSuspended, true
		}
		return task.Abandoned, w.IdleTimeout > 0
	}
	for end := time.Now().Add(longWait); ; pass(time.Second) {
		all, err := h.broker.AllTasks(t.Context(), anyTask())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(w task.Task) bool {
			reason, ends := why(w)
			return ends && (w.State != task.Closed || w.CloseReason != reason)
		})
		if i < 0 {
			return
		}
		if all[i].State == task.Closed || time.Now().After(end) {
			reason, _ := why(all[i])
			t.Fatalf("task %s is %s (%s), and should have ended as %s", all[i].ShortName, all[i].State, all[i].CloseReason, reason)
		}
	}
}

// anyTask chooses all tasks.
func anyTask() ledger.TaskFilter { return ledger.TaskFilter{Limit: 1000} }

// endAll stops every task and waits until all are CLOSED.
func (h *house) endAll(t *testing.T) {
	t.Helper()
	all, err := h.broker.AllTasks(t.Context(), anyTask())
	if err != nil {
		t.Fatal(err)
	}
	for _, work := range all {
		out, err := h.broker.Stop(t.Context(), operator(), ref(work), "", longWait)
		if err != nil || out.Task.State != task.Closed || out.Task.Summary.Final != len(out.Leases) {
			t.Errorf("stopped: %+v, %v", out, err)
		}
	}
}

// allEnded is gone, but for what cannot be ended and is said to be.
func (h *house) allEnded() {
	h.tb.Helper()
	disclosed := map[lease.ID]bool{}
	for _, l := range h.leases() {
		disclosed[l.ID] = l.State == lease.Disclosed
		if !l.State.Final() {
			h.tb.Errorf("lease %s of role %s is %s", l.ID, l.Role, l.State)
		}
	}
	for _, id := range append(h.horizon.Alive(), h.vault.Alive()...) {
		if !disclosed[id] {
			h.tb.Errorf("credential %s is alive at its backend", id)
		}
	}
}
