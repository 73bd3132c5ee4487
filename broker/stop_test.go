package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/stop"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard,nolintlint // backends in memory
)

const (
	agentA = "spiffe://example.org/agent/a"
	agentB = "spiffe://example.org/agent/b"
)

// stopAll pulls the switch as the operator and returns the last report.
func (h *house) stopAll(o broker.StopOrder) broker.Stopping {
	h.tb.Helper()
	var last broker.Stopping
	err := h.broker.StopAll(h.tb.Context(), operator(), o, func(p broker.Stopping) error {
		if last.Done {
			h.tb.Error("a report after the last")
		}
		last = p
		return nil
	})
	if err != nil {
		h.tb.Fatal(err)
	}
	if !last.Done || !last.Chosen || len(last.Checkpoint) == 0 {
		h.tb.Errorf("the last report is %+v", last)
	}
	return last
}

func target(kind stop.Kind, name string) stop.Target { return stop.Target{Kind: kind, Name: name} }

// as declares and issues as another agent than a.
func (h *house) as(name, role string) task.Task {
	h.tb.Helper()
	out, err := h.broker.Declare(h.tb.Context(), agent(name), declaration(newID(h.tb), role))
	if err != nil {
		h.tb.Fatal(err)
	}
	if _, err = h.broker.Issue(h.tb.Context(), agent(name), wish(h.tb, out.Task, role)); err != nil {
		h.tb.Fatal(err)
	}
	return out.Task
}

// TestStopEndsItsTarget: each kind of target ends what belongs to it, and nothing else.
func TestStopEndsItsTarget(t *testing.T) {
	for name, tc := range map[string]struct {
		target        func(first task.Task) stop.Target
		tasks, leases int
		ends          func(l lease.Lease) bool
		closes        bool
	}{
		"task": {
			func(first task.Task) stop.Target { return stop.Target{Kind: stop.Task, Task: first.ID} },
			1, 1, func(l lease.Lease) bool { return l.Agent == agentA && l.Role == "plain" }, true,
		},
		"agent": {
			func(task.Task) stop.Target { return target(stop.Agent, agentA) },
			2, 2, func(l lease.Lease) bool { return l.Agent == agentA }, true,
		},
		"profile": {
			func(task.Task) stop.Target { return target(stop.Profile, "agents") },
			3, 3, func(lease.Lease) bool { return true }, true,
		},
		"all": {
			func(task.Task) stop.Target { return stop.Target{Kind: stop.All} },
			3, 3, func(lease.Lease) bool { return true }, true,
		},
		"role": {
			func(task.Task) stop.Target { return target(stop.Role, "plain") },
			0, 2, func(l lease.Lease) bool { return l.Role == "plain" }, false,
		},
		"backend": {
			func(task.Task) stop.Target { return target(stop.Backend, "memory/vault") },
			0, 1, func(l lease.Lease) bool { return l.Backend == "memory/vault" }, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				first := h.as("a", "plain")
				h.as("a", "vault")
				h.as("b", "plain")
				to := tc.target(first)

				seen := h.stopAll(broker.StopOrder{Target: to, DryRun: true})
				if seen.Tasks != tc.tasks || seen.Leases != tc.leases || seen.Open != tc.leases || h.alive() != 3 {
					t.Errorf("dry run: %+v, %d alive", seen, h.alive())
				}
				got := h.stopAll(broker.StopOrder{Target: to, Comment: "call 17", Wait: longWait})
				if got.Tasks != tc.tasks || got.Leases != tc.leases || got.Open != 0 || got.ByProof[plugins.ReadBack] != tc.leases ||
					!got.UsableUntil.IsZero() {
					t.Errorf("got %+v", got)
				}
				h.wantEnded(tc.ends, tc.closes)
				if h.alive() != 3-tc.leases {
					t.Errorf("%d alive", h.alive())
				}
				h.wantStopRecord(to)
				again := h.stopAll(broker.StopOrder{Target: to, Wait: longWait})
				if again.Tasks != 0 || again.Leases != 0 {
					t.Errorf("again: %+v", again)
				}
			})
		})
	}
}

// wantEnded fails the test unless just the leases that should have ended, and their tasks closed where they should.
func (h *house) wantEnded(ends func(lease.Lease) bool, closes bool) { //nolint:revive // of a table
	h.tb.Helper()
	for _, l := range h.leases() {
		if l.State.Final() != ends(l) {
			h.tb.Errorf("lease of %s by %s is %s", l.Agent, l.Role, l.State)
		}
		if closed := h.task(l.Task).State == task.Closed; closed != (closes && ends(l)) {
			h.tb.Errorf("task of %s by %s: closed is %v", l.Agent, l.Role, closed)
		}
	}
}

// wantStopRecord fails the test unless one stop is on record, with who asked for it and a salted comment.
func (h *house) wantStopRecord(to stop.Target) {
	h.tb.Helper()
	rec := h.recorded(audit.StopAsked, "") // a dry run leaves none
	if len(rec) != 1 || rec[0].Resource != to.String() || rec[0].Actor.ID != "spiffe://example.org/ops/oncall" ||
		len(rec[0].Hashes) != 1 || rec[0].Request != "request-of-operator" {
		h.tb.Errorf("records %+v", rec)
	}
}

// TestStopOfNothing: a name that nothing goes by is refused, since who mistypes must not believe that it worked.
func TestStopOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, to := range []stop.Target{
			target(stop.Agent, agentB), target(stop.Profile, "agent"), target(stop.Role, "plian"), target(stop.Backend, "memory/none"),
		} {
			for _, dry := range []bool{true, false} {
				err := h.broker.StopAll(t.Context(), operator(), broker.StopOrder{Target: to, DryRun: dry}, nil)
				want(t, err, fault.NotFound)
			}
		}
		for _, to := range []stop.Target{target(stop.Role, "plain"), {Kind: stop.All}} {
			err := h.broker.StopAll(t.Context(), operator(), broker.StopOrder{Target: to, Suspend: true}, nil)
			want(t, err, fault.InvalidArgument)
		}
		if got := h.stopAll(broker.StopOrder{Target: stop.Target{Kind: stop.All}}); got.Tasks != 0 {
			t.Errorf("got %+v", got)
		}
	})
}

// TestStopCountsTruthfully: while a backend fails, the report says what is open, what is overdue, and until when it may work.
func TestStopCountsTruthfully(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.as("a", "plain")
		h.as("a", "vault")
		h.as("a", "static")
		h.vault.Break()
		got := h.stopAll(broker.StopOrder{Target: target(stop.Agent, agentA), Wait: 5 * time.Minute})
		if got.Leases != 3 || got.Open != 2 || got.Stuck != 2 || got.ByProof[plugins.ReadBack] != 1 {
			t.Errorf("with the backend down: %+v", got)
		}
		h.vault.Heal()
		got = h.stopAll(broker.StopOrder{Target: target(stop.Agent, agentA), Wait: longWait})
		if got.Tasks != 2 || got.Leases != 2 || got.Open != 0 || got.ByProof[plugins.Disclosed] != 1 {
			t.Errorf("healed: %+v", got)
		}
		if h.task(work.ID).State != task.Closed {
			t.Error("the task whose backend worked is open")
		}
	})
}

// TestUsableUntil: an open lease counts as usable until its own end.
func TestUsableUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.as("a", "plain")
		h.plain.Break()
		ends := h.only().NotAfter
		got := h.stopAll(broker.StopOrder{Target: stop.Target{Kind: stop.All}, Wait: 10 * time.Second})
		if got.Open != 1 || got.Stuck != 0 || got.Unbounded != 0 || !got.UsableUntil.Equal(ends) {
			t.Errorf("got %+v, want usable until %s", got, ends)
		}
	})
}

// TestStopGoesOnAlone: who pulls the switch and goes away has pulled it.
func TestStopGoesOnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for n := range 150 { // more than one page
			if n > 0 {
				h.as(fmt.Sprintf("n%d", n), "plain")
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		reports := 0
		err := h.broker.StopAll(ctx, operator(), broker.StopOrder{Target: stop.Target{Kind: stop.All}, Wait: longWait}, func(broker.Stopping) error {
			reports++
			cancel()
			return context.Canceled
		})
		if !errors.Is(err, context.Canceled) || reports != 1 {
			t.Errorf("%d reports, %v", reports, err)
		}
		h.until(time.Minute, func() bool { return h.alive() == 0 })
		h.until(time.Minute, func() bool {
			open, err := h.broker.AllTasks(t.Context(), ledger.TaskFilter{States: []task.State{task.Active, task.Closing}, Limit: 1})
			return err == nil && len(open) == 0
		})
		h.gone()
	})
}

// TestStopHeldByTheLedger: a page that cannot be stored is said, and calling again goes on.
func TestStopHeldByTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.as("a", "plain")
		h.endLoop()
		h.store.failNth(atCommit, 1)
		o := broker.StopOrder{Target: target(stop.Agent, agentA), Suspend: true}
		if err := h.broker.StopAll(t.Context(), operator(), o, nil); err == nil {
			t.Fatal("a commit that failed was not said")
		}
		h.until(time.Minute, func() bool { return h.broker.Admits(agent("a")) == nil })
		h.store.failNth(atAnswer, 1) // written, but nobody knows
		want(t, h.broker.StopAll(t.Context(), operator(), o, nil), fault.OutcomeUnknown)
		want(t, h.broker.Admits(agent("a")), fault.AgentSuspended)
		h.startLoop()
		h.until(time.Minute, func() bool { return h.alive() == 0 })
	})
}

// TestSuspend: a suspended agent is admitted nothing, also after a restart, until it is resumed; others are not touched.
func TestSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.as("a", "vault")
		other := h.as("b", "plain")
		changed := h.broker.AgentsChanged()
		o := broker.StopOrder{Target: target(stop.Agent, agentA), Suspend: true, Comment: "misbehaves", Wait: longWait}
		got := h.stopAll(o)
		if got.Agent == nil || got.Agent.State != ledger.AgentSuspended || got.Agent.By != "spiffe://example.org/ops/oncall" || got.Open != 0 {
			t.Errorf("got %+v", got)
		}
		<-changed
		if closed := h.task(work.ID); closed.CloseReason != task.AgentSuspended || closed.State != task.Closed {
			t.Errorf("task %+v", closed)
		}
		h.wantSuspended()
		since := got.Agent.Since
		if again := h.stopAll(o); !again.Agent.Since.Equal(since) || len(h.recorded(audit.AgentSuspended, "")) != 1 {
			t.Errorf("suspended twice: %+v", again.Agent)
		}
		h.restart()
		h.wantSuspended()
		if h.task(other.ID).State != task.Active || h.broker.Admits(agent("b")) != nil || h.broker.Admits(operator()) != nil {
			t.Error("others are touched")
		}
		for _, comment := range []string{"mended", ""} { // the second time nothing changes
			a, err := h.broker.ResumeAgent(t.Context(), operator(), agentA, comment)
			if err != nil || a.State != ledger.AgentActive {
				t.Fatalf("resumed %+v, %v", a, err)
			}
		}
		h.as("a", "vault")
		_, err := h.broker.ResumeAgent(t.Context(), operator(), agentB, "")
		want(t, err, fault.NotFound)
		h.wantAgentRecords()
	})
}

// wantSuspended fails the test unless agent a is admitted nothing, by memory and by the ledger.
func (h *house) wantSuspended() {
	h.tb.Helper()
	f := wanted(h.tb, h.broker.Admits(agent("a")), fault.AgentSuspended)
	if f.Metadata["since"] == "" {
		h.tb.Errorf("refused with %+v", f)
	}
	_, err := h.broker.Declare(h.tb.Context(), agent("a"), declaration(newID(h.tb), "plain"))
	want(h.tb, err, fault.AgentSuspended)
	all, err := h.broker.Agents(h.tb.Context(), ledger.AgentFilter{Limit: 10})
	if err != nil || len(all) != 1 || all[0].ID != agentA || all[0].State != ledger.AgentSuspended {
		h.tb.Errorf("agents %+v, %v", all, err)
	}
}

// wantAgentRecords fails the test unless one suspension and one resumption are on record, with salted comments.
func (h *house) wantAgentRecords() {
	h.tb.Helper()
	for _, event := range []audit.Event{audit.AgentSuspended, audit.AgentResumed} {
		rec := h.recorded(event, "")
		if len(rec) != 1 || rec[0].Agent != agentA || rec[0].Actor.ID != "spiffe://example.org/ops/oncall" || len(rec[0].Hashes) != 1 {
			h.tb.Errorf("%s: records %+v", event, rec)
		}
	}
}

// TestSuspendedWhileIssued: the agent is suspended after its backend has made the credential and before that is committed.
func TestSuspendedWhileIssued(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		t.Helper()
		work := h.declare(role)
		h.memoryOf(role).After(plugintest.OpIssue, func(ctx context.Context, _ plugins.LeaseID) error {
			o := broker.StopOrder{Target: target(stop.Agent, agentA), Suspend: true}
			return h.broker.StopAll(ctx, operator(), o, func(broker.Stopping) error { return nil })
		})
		_, err := h.try(work, role)
		want(t, err, fault.AgentSuspended)
		if h.meter.issued != 0 {
			t.Error("handed out")
		}
		h.until(time.Minute, func() bool { return h.alive() == 0 && h.task(work.ID).State == task.Closed })
		h.gone()
	})
}

// TestSuspensionFinishedAfterACrash: what a crash left open between two pages is closed at the next start.
func TestSuspensionFinishedAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.as("a", "vault")
		if _, err := h.ledger.Update(t.Context(), func(tx *ledger.Tx) error { // the first page, and no more
			return tx.PutAgent(ledger.Agent{ID: agentA, State: ledger.AgentSuspended, Since: time.Now(), By: "somebody"})
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.try(work, "plain"); fault.ReasonOf(err) != fault.RoleNotInTask { // memory does not know yet
			t.Errorf("issue: %v", err)
		}
		_, err := h.try(work, "vault") // but the ledger does
		want(t, err, fault.AgentSuspended)
		h.full = true // and it is tried again when there is room
		h.restart()
		pass(time.Minute)
		if got := h.task(work.ID); got.State != task.Active {
			t.Fatalf("closed on a full disk: %s", got.State)
		}
		h.store.fillUp(false)
		h.until(time.Minute, func() bool { return h.task(work.ID).State == task.Closed })
		if got := h.task(work.ID); got.CloseReason != task.AgentSuspended {
			t.Errorf("closed as %s", got.CloseReason)
		}
		h.gone()
	})
}

// TestSuspensionRaces: an agent declares and issues on several connections while it is suspended. Afterwards nothing is
// alive and nothing more is admitted.
func TestSuspensionRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare(kinds()...)
		var wait sync.WaitGroup
		for n := range 6 {
			wait.Go(func() {
				for range 20 {
					role := kinds()[n%len(kinds())]
					if _, err := h.try(work, role); fault.ReasonOf(err) == fault.AgentSuspended {
						return
					}
					if n == 5 {
						_, _ = h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), role)) // denied at the latest by its limit
					}
					pass(time.Millisecond)
				}
			})
		}
		pass(3 * time.Millisecond)
		got := h.stopAll(broker.StopOrder{Target: target(stop.Agent, agentA), Suspend: true, Wait: longWait})
		if got.Tasks == 0 || got.Leases == 0 || got.Open != 0 {
			t.Errorf("got %+v", got)
		}
		wait.Wait()
		h.until(10*time.Minute, func() bool { return h.alive() == 0 })
		open, err := h.broker.AllTasks(t.Context(), ledger.TaskFilter{Agent: agentA, States: []task.State{task.Active}, Limit: 10})
		if err != nil || len(open) != 0 {
			t.Errorf("open tasks %+v, %v", open, err)
		}
		h.until(10*time.Minute, func() bool {
			for _, l := range h.leases() {
				if !l.State.Final() {
					return false
				}
			}
			return true
		})
		h.wantSuspended()
	})
}

// TestStopGivesWayToShutdown: only where the broker stops does a stop end before its next page.
func TestStopGivesWayToShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.as("a", "plain")
		ctx, end := context.WithCancelCause(t.Context())
		end(fault.New(fault.ShuttingDown, "the broker is stopping"))
		everybody := broker.StopOrder{Target: stop.Target{Kind: stop.All}}
		want(t, h.broker.StopAll(ctx, operator(), everybody, nil), fault.ShuttingDown)
		if h.task(work.ID).State != task.Active || len(h.recorded(audit.StopAsked, "")) != 0 {
			t.Error("a page was closed")
		}
		ctx, end = context.WithCancelCause(t.Context())
		end(fault.New(fault.SVIDExpired, "the operator's"))
		if err := h.broker.StopAll(ctx, operator(), everybody, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		h.until(time.Minute, func() bool { return h.task(work.ID).State == task.Closed })
	})
}
