package teardown_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // backends in memory
)

// TestHeld: while the loop is held, nothing that is due is closed, claimed or ended; then all of it is, by itself.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.restored.Store(true)
		expires := y.task(func(w *task.Task) {
			w.NotAfter = time.Now().Add(time.Minute)
			w.NextAt = w.NotAfter
		})
		closed := y.task(nil)
		due, ending := y.lease(expires, "memory/a"), y.lease(closed, "memory/a")
		y.run()
		y.close(closed)
		pass(time.Hour)
		if n := y.a.Calls(plugintest.OpRevoke); n != 0 || y.readTask(expires.ID).State != task.Active ||
			y.readLease(ending.ID).Claim != 0 || y.readLease(due.ID).State != lease.Active {
			t.Errorf("held, and asked %d times; the task that expired is %s", n, y.readTask(expires.ID).State)
		}
		y.restored.Store(false)
		y.until(time.Minute, func() bool { return y.final(due.ID)() && y.final(ending.ID)() })
		if state := y.readTask(expires.ID).State; state != task.Closed || len(y.a.Alive()) != 0 {
			t.Errorf("let go, the task is %s", state)
		}
	})
}
