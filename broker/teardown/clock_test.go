package teardown_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/ledgertest"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // backends in memory
)

// horizon is that of the backend "memory/h".
const horizon = 90 * time.Second

// inFlight enters an intent whose answer will come at the very end of its horizon.
func (y *yard) inFlight(t task.Task) (l lease.Lease, at *plugintest.Memory) {
	y.tb.Helper()
	at = plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon})
	y.backends["memory/h"] = at
	id, err := lease.NewID()
	if err != nil {
		y.tb.Fatal(err)
	}
	now := time.Now()
	l = lease.Lease{
		ID: id, Task: t.ID, TaskName: t.ShortName, Agent: t.Agent, Role: "r", Backend: "memory/h", Lane: "memory/h", State: lease.Intent,
		Ends: plugins.EndsRevocable, RequestID: id.String(), CreatedAt: now, NotAfter: now.Add(2 * time.Hour),
		SweepAt: now.Add(lease.IssueTimeout + horizon), NextAt: now.Add(lease.IssueTimeout + horizon),
	}
	y.update(func(tx *ledger.Tx) error { return tx.InsertLease(l) })
	at.LateNext(plugintest.OpIssue, lease.IssueTimeout+horizon-time.Second)
	ctx, cancel := context.WithTimeout(y.tb.Context(), lease.IssueTimeout)
	y.tb.Cleanup(cancel)
	go func() {
		_, _ = at.Issue(ctx, plugins.Request{Lease: id, Role: plugins.Role{Name: "r"}, NotAfter: l.NotAfter}) // nobody hears it
	}()
	return l, at
}

// noticed waits until a loop has seen that the clock was set.
func (y *yard) noticed(loop interface{ ClockJumps() int64 }, times int64) {
	y.tb.Helper()
	y.until(5*time.Second, func() bool { return loop.ClockJumps() == times })
}

// TestClockSetForward: nothing ends by a clock that was set forward until it was held for a while, an intent is not swept
// before its true horizon, and what is asked to end does so at once.
func TestClockSetForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		idle := y.task(func(t *task.Task) { t.IdleTimeout = 10 * time.Minute })
		expiring, stopped := y.task(nil), y.task(nil)
		lasting := y.lease(expiring, "memory/a")
		asked := y.lease(stopped, "memory/a")
		sweep, late := y.inFlight(stopped)
		loop, stop := y.runLoop()
		defer stop()
		pass(11 * time.Second)

		set := time.Now()
		y.setClock(2 * time.Hour)
		y.noticed(loop, 1)
		y.close(stopped)
		y.until(time.Second, y.final(asked.ID))

		pass(time.Until(set.Add(lease.IssueTimeout + horizon - time.Second)))
		if l := y.readLease(sweep.ID); l.State != lease.Intent || late.Calls(plugintest.OpRevoke) != 0 {
			t.Errorf("the intent is %s before its horizon", l.State)
		}
		y.until(10*time.Second, y.final(sweep.ID))
		pass(lease.IssueTimeout) // whatever was on its way has arrived
		if n := len(late.Alive()); n != 0 {
			t.Errorf("%d credentials came alive after their sweep", n)
		}
		y.until(time.Second, func() bool { return y.readTask(stopped.ID).State == task.Closed })

		pass(time.Until(set.Add(5*time.Minute - time.Second)))
		for _, id := range []task.ID{expiring.ID, idle.ID} {
			if got := y.readTask(id); got.State != task.Active {
				t.Errorf("a task is %s (%s) although the clock was set only now", got.State, got.CloseReason)
			}
		}
		if l := y.readLease(lasting.ID); l.State != lease.Active {
			t.Errorf("a credential is %s although the clock was set only now", l.State)
		}
		y.until(10*time.Second, func() bool { return y.readTask(expiring.ID).State == task.Closed })
		if got := y.readTask(expiring.ID).CloseReason; got != task.Expired {
			t.Errorf("the task closed as %s", got)
		}

		if rec := y.records(audit.ClockSet); len(rec) != 1 || rec[0].Reason != "+2h0m0s" {
			t.Errorf("records %+v", rec)
		}
		if all := y.logs.FilterMessageSnippet("clock was set").All(); len(all) != 1 || all[0].ContextMap()["by"] != 2*time.Hour {
			t.Errorf("logged %v", all)
		}
	})
}

// TestClockSetForwardAndBack: after a glitch everything goes on as if there had been none.
func TestClockSetForwardAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		loop, stop := y.runLoop()
		defer stop()
		pass(time.Second)
		y.setClock(2 * time.Hour)
		y.noticed(loop, 1)
		pass(4 * time.Minute)
		y.setClock(-2 * time.Hour)
		y.noticed(loop, 2)
		pass(time.Until(l.NotAfter) - time.Second)
		if got := y.readLease(l.ID); got.State != lease.Active {
			t.Errorf("the credential is %s (%s) before its end", got.State, got.Cause)
		}
		y.until(5*time.Second, y.final(l.ID))
		pass(time.Until(work.NotAfter) - time.Second)
		if got := y.readTask(work.ID); got.State != task.Active {
			t.Errorf("the task is %s (%s) before its end", got.State, got.CloseReason)
		}
		y.until(5*time.Second, func() bool { return y.readTask(work.ID).State == task.Closed })
	})
}

// TestClockSetBack: what was planned by a clock that was ahead is not waited for: neither attempts, nor claims, nor intents.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		retried, claimed := y.lease(work, "memory/a"), y.lease(work, "memory/b")
		sweep, late := y.inFlight(work)
		y.a.Break()
		y.b.HangNext(plugintest.OpRevoke)
		loop, stop := y.runLoop()
		y.close(work)
		y.until(5*time.Minute, func() bool { return y.readLease(retried.ID).Attempts > 0 })
		y.until(5*time.Minute, func() bool { return !y.readLease(claimed.ID).ClaimUntil.IsZero() })
		y.setClock(-time.Hour)
		y.noticed(loop, 1)
		y.a.Heal()
		y.until(2*time.Minute, y.final(retried.ID))
		y.until(2*time.Minute, y.final(claimed.ID))
		y.until(2*time.Minute, y.final(sweep.ID))
		pass(2 * horizon) // whatever was on its way has arrived
		if n := len(late.Alive()); n != 0 {
			t.Errorf("%d credentials came alive after their sweep", n)
		}
		y.until(time.Second, func() bool { return y.readTask(work.ID).State == task.Closed })

		// Back while nothing runs: the ledger holds records of a time that has not come yet.
		work = y.task(nil)
		waiting := y.lease(work, "memory/a")
		y.close(work)
		y.update(func(tx *ledger.Tx) error {
			from, err := tx.Lease(waiting.ID)
			if err != nil {
				return err
			}
			next := from
			next.NextAt = from.NextAt.Add(time.Hour)
			return tx.UpdateLease(next, from)
		})
		stop()
		y.set.Add(-int64(time.Hour))
		y.run()
		y.until(2*time.Minute, y.final(waiting.ID))
	})
}

// TestClockIsSetWithoutLedger: while the new plans cannot be written, nothing is done by the old ones.
func TestClockIsSetWithoutLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		sweep, late := y.inFlight(y.task(nil))
		y.run()
		pass(time.Second)
		synctest.Wait()
		y.set.Store(int64(time.Hour))
		y.update(func(tx *ledger.Tx) error {
			y.store.yes.Store(true) // from the next transaction on
			return ledgertest.SetClock(tx, time.Hour)
		})
		pass(30 * time.Second)
		if n := late.Calls(plugintest.OpRevoke); n != 0 {
			t.Errorf("%d attempts by plans of before", n)
		}
		y.store.yes.Store(false)
		y.until(3*time.Minute, y.final(sweep.ID))
		pass(2 * horizon) // whatever was on its way has arrived
		if n := len(late.Alive()); n != 0 {
			t.Errorf("%d credentials came alive after their sweep", n)
		}
	})
}

// TestClockOfADamagedLedger: what cannot be read is not planned anew, and keeps nothing else from being, or from ending.
func TestClockOfADamagedLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		expires := y.task(func(t *task.Task) { t.NotAfter, t.NextAt = t.CreatedAt.Add(time.Hour), t.CreatedAt.Add(time.Hour) })
		held := y.lease(expires, "memory/b")
		unread := y.task(nil)
		lost, other := y.lease(unread, "memory/a"), y.lease(y.task(nil), "memory/b")
		loop, stop := y.runLoop()
		defer stop()
		pass(3 * time.Second)
		y.setClock(2 * time.Hour)
		y.store.damaged.Store("memory/a")
		y.store.unread.Store(unread.ID)
		y.noticed(loop, 1)
		pass(time.Minute)
		y.store.unread.Store(task.ID{})
		if got := y.readTask(expires.ID); got.State != task.Active {
			t.Errorf("a task ended by a clock that was set: it is %s (%s)", got.State, got.CloseReason)
		}
		y.close(y.readTask(other.Task))
		y.until(5*time.Second, y.final(other.ID))
		y.until(6*time.Minute, y.final(held.ID))
		if got := y.readLease(lost.ID); got.State.Final() || y.a.Calls(plugintest.OpRevoke) != 0 {
			t.Errorf("what cannot be read is %s", got.State)
		}
	})
}
