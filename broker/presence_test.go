package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/task"
)

// TestPresenceForgetsClosedTasks: what lives in memory must not grow with history, whatever is asked of closed tasks.
func TestPresenceForgetsClosedTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain")
		h.complete(work)
		if _, err := h.try(work, "plain"); err == nil {
			t.Error("a closed task was issued a credential")
		}
		if err := h.broker.Watch(t.Context(), agent("a"), ref(work), func(task.Task) error { return nil }); err != nil {
			t.Error(err)
		}
		if _, _, err := h.broker.KeepAlive(t.Context(), agent("a"), ref(work)); err != nil {
			t.Error(err)
		}
		if at, ok := h.broker.Presence().Heard(work.ID, time.Now()); ok {
			t.Errorf("a closed task is remembered as heard of at %s", at)
		}
	})
}

// TestLastSeenOutlivesARestart: what is shown after a restart is what was written, not when the broker started.
func TestLastSeenOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		d := declaration(newID(t), "plain")
		d.IdleTimeout, d.TTL = time.Minute, 30*time.Minute
		out, err := h.broker.Declare(t.Context(), agent("a"), d)
		if err != nil {
			t.Fatal(err)
		}
		pass(50 * time.Second)
		if _, _, err = h.broker.KeepAlive(t.Context(), agent("a"), ref(out.Task)); err != nil {
			t.Fatal(err)
		}
		heard := time.Now()
		pass(20 * time.Second) // the loop looks when the task might be idle, and writes what it knows
		h.restart()
		pass(time.Second)
		if got := h.broker.LastSeen(h.task(out.Task.ID)); !got.Equal(heard) {
			t.Errorf("last seen %s, want %s", got, heard)
		}
	})
}
