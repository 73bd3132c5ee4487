package teardown_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // backends in memory
)

// TestDeadLaneIsLeftAlone: a lane whose backend is down is asked by one attempt at a time, however many leases wait in it,
// and costs the other lanes nothing; all of it goes on at once when the backend is back.
func TestDeadLaneIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 60
		y := newYard(t)
		work := y.task(nil)
		for range many {
			y.lease(work, "memory/a")
		}
		var inFlight, most int
		var mu sync.Mutex
		y.a.Break()
		loop, stop := y.runLoop()
		defer stop()
		y.close(work)
		pass(30 * time.Second)
		if loop.Held() != 1 {
			t.Errorf("%d lanes are held, want one", loop.Held())
		}
		y.view(func(r ledger.Reader) error {
			leases, err := r.ListLeases(ledger.LeaseFilter{Task: work.ID})
			for _, l := range leases {
				if l.LastError != "backend unavailable" {
					t.Errorf("lease %s does not say what it waits for: %q", l.ID, l.LastError)
				}
			}
			return err
		})
		before := y.a.Calls(plugintest.OpRevoke)
		pass(2 * time.Minute)
		if n := y.a.Calls(plugintest.OpRevoke) - before; n < 11 || n > 28 {
			t.Errorf("%d attempts in two minutes for %d leases; one each 5 to 10 s is what a dead lane gets", n, many)
		}

		other := y.task(nil)
		l := y.lease(other, "memory/b")
		y.close(other)
		y.until(time.Second, y.final(l.ID))

		// What waits is overdue like what is tried.
		y.until(stuckAfter-2*time.Minute, func() bool { return y.stuck(work) == many })
		if n := y.logs.FilterMessage("the end of a lease is overdue").Len(); n != many {
			t.Errorf("%d lines at Error for %d overdue leases", n, many)
		}
		if n := len(y.records(audit.LeaseStuck)); n != many {
			t.Errorf("%d records of %d overdue leases", n, many)
		}

		y.a.Before(plugintest.OpRevoke, func(context.Context, plugins.LeaseID) error {
			mu.Lock()
			inFlight++
			most = max(most, inFlight)
			mu.Unlock()
			pass(10 * time.Millisecond)
			mu.Lock()
			inFlight--
			mu.Unlock()
			return nil
		})
		y.a.Heal()
		y.until(75*time.Second, func() bool { return y.readTask(work.ID).State == task.Closed })
		if most != 8 || loop.Held() != 0 || len(y.a.Alive()) != 0 {
			t.Errorf("after it healed: %d attempts at once, %d lanes held, %d alive", most, loop.Held(), len(y.a.Alive()))
		}
	})
}

// TestFewFailuresHoldNoLane: a few leases that cannot be ended do not hold up those that can.
func TestFewFailuresHoldNoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		bad := y.task(nil)
		var refused []lease.ID
		for range 4 {
			refused = append(refused, y.lease(bad, "memory/a").ID)
		}
		y.a.Before(plugintest.OpRevoke, func(_ context.Context, id plugins.LeaseID) error {
			if slices.Contains(refused, id) {
				return plugins.ErrUnavailable
			}
			return nil
		})
		loop, stop := y.runLoop()
		defer stop()
		y.close(bad)
		pass(10 * time.Minute)
		good := y.task(nil)
		l := y.lease(good, "memory/a")
		y.close(good)
		y.until(500*time.Millisecond, y.final(l.ID))
		if loop.Held() != 0 {
			t.Error("the lane is held")
		}
	})
}

// TestTasksTakeTurns: a task with very many leases does not hold up another in the same lane.
func TestTasksTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, each = 600, 20 * time.Millisecond
		y := newYard(t)
		y.a.Before(plugintest.OpRevoke, func(context.Context, plugins.LeaseID) error { pass(each); return nil })
		y.run()
		hog := y.task(nil)
		for range many {
			y.lease(hog, "memory/a")
		}
		y.close(hog)
		pass(200 * time.Millisecond)
		for n := range 3 {
			work := y.task(nil)
			l := y.lease(work, "memory/a")
			asked := time.Now()
			y.close(work)
			y.until(time.Second, y.final(l.ID))
			if took := time.Since(asked); took > 300*time.Millisecond {
				t.Errorf("task %d waited %s behind one with %d leases", n, took, many)
			}
		}
		if y.readTask(hog.ID).State == task.Closed {
			t.Fatal("the large task was done before: nothing was shown")
		}
		y.until(time.Minute, func() bool { return y.readTask(hog.ID).State == task.Closed })
	})
}

// TestRoundsOfManyTasks: with more tasks than slots, each gets its turn before any gets its last.
func TestRoundsOfManyTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.a.Before(plugintest.OpRevoke, func(context.Context, plugins.LeaseID) error { pass(10 * time.Millisecond); return nil })
		var tasks []task.Task
		for range 12 {
			work := y.task(nil)
			tasks = append(tasks, work)
			for range 40 {
				y.lease(work, "memory/a")
			}
		}
		for _, work := range tasks {
			y.close(work)
		}
		y.run()
		pass(300 * time.Millisecond)
		for n, work := range tasks {
			if sum := y.ended(work); sum == 0 || sum == 40 {
				t.Errorf("task %d has ended %d of 40 after a moment", n, sum)
			}
		}
	})
}

// BenchmarkBacklog ends many leases of one task and measures what the turns cost.
func BenchmarkBacklog(b *testing.B) {
	for _, many := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("leases=%d", many), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				y := newYard(b)
				work := y.task(nil)
				for range many {
					y.lease(work, "memory/a")
				}
				b.StartTimer()
				stop := y.run()
				y.close(work)
				for y.readTask(work.ID).State != task.Closed {
					pass(20 * time.Millisecond)
				}
				b.StopTimer()
				stop()
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*many), "µs/lease")
		})
	}
}

// TestDamagedTask: a task that is due and cannot be read keeps no other from being closed, and is told once.
func TestDamagedTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		unread := y.task(func(t *task.Task) { t.NotAfter, t.NextAt = t.CreatedAt.Add(time.Minute), t.CreatedAt.Add(time.Minute) })
		other := y.task(func(t *task.Task) {
			t.NotAfter, t.NextAt = t.CreatedAt.Add(2*time.Minute), t.CreatedAt.Add(2*time.Minute)
		})
		held := y.lease(other, "memory/a")
		y.store.unread.Store(unread.ID)
		y.run()
		y.until(3*time.Minute, y.final(held.ID))
		pass(time.Minute)
		y.store.unread.Store(task.ID{})
		if now := y.readTask(unread.ID); now.State != task.Active {
			t.Errorf("what cannot be read is %s", now.State)
		}
		if now := y.readTask(other.ID); now.State != task.Closed || now.CloseReason != task.Expired {
			t.Errorf("the other is %s (%s)", now.State, now.CloseReason)
		}
		if !errors.Is(y.ledger.Damaged(), ledger.ErrDamaged) {
			t.Errorf("the ledger says of itself: %v", y.ledger.Damaged())
		}
		if n := y.logs.FilterMessageSnippet("cannot be read").Len(); n != 1 {
			t.Errorf("it is told %d times", n)
		}
	})
}

// TestDamagedLane: what cannot be read of one lane holds up no other, and is told as what it is.
func TestDamagedLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		unread, others := y.lease(work, "memory/a"), y.lease(work, "memory/b")
		y.store.damaged.Store("memory/a")
		y.run()
		y.close(work)
		y.until(5*time.Second, y.final(others.ID))
		pass(time.Minute)
		if l := y.readLease(unread.ID); l.State != lease.Revoking || y.a.Calls(plugintest.OpRevoke) != 0 {
			t.Errorf("what cannot be read is %s", l.State)
		}
		if !errors.Is(y.ledger.Damaged(), ledger.ErrDamaged) {
			t.Errorf("the ledger says of itself: %v", y.ledger.Damaged())
		}
		if n := y.logs.Len(); n == 0 || n > 100 {
			t.Errorf("%d errors in a minute", n)
		}
	})
}
