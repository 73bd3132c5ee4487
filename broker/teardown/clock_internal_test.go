package teardown

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger/ledgertest"
	"github.com/stint-dev/stint/broker/task"
)

// start is any time.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// TestClockNoticesSteps: readings of both clocks go in, and by how much the wall clock was set comes out.
func TestClockNoticesSteps(t *testing.T) {
	type reading struct{ wall, mono, want time.Duration }
	for name, readings := range map[string][]reading{
		"in step":                {{0, 0, 0}, {time.Second, time.Second, 0}, {time.Hour, time.Hour, 0}},
		"a machine that slept":   {{0, 0, 0}, {time.Hour, time.Second, time.Hour - time.Second}},
		"a frozen process":       {{0, 0, 0}, {time.Hour, time.Hour, 0}},
		"forwards":               {{0, 0, 0}, {time.Hour + time.Second, time.Second, time.Hour}},
		"backwards":              {{0, 0, 0}, {-time.Hour + time.Second, time.Second, -time.Hour}},
		"again, and back":        {{0, 0, 0}, {time.Hour, 0, time.Hour}, {0, 0, -time.Hour}, {0, 0, 0}},
		"too little":             {{0, 0, 0}, {1900 * time.Millisecond, time.Second, 0}, {1100 * time.Millisecond, 2 * time.Second, 0}},
		"too little, many times": {{0, 0, 0}, {600 * time.Millisecond, 0, 0}, {1200 * time.Millisecond, 0, 1200 * time.Millisecond}},
		"a drift of years": {
			{0, 0, 0},
			{10*time.Minute + 900*time.Millisecond, 10 * time.Minute, 0},
			{20*time.Minute + 1800*time.Millisecond, 20 * time.Minute, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			c.keep(start(), 0)
			for i, r := range readings {
				got := c.observe(start().Add(r.wall), r.mono)
				if got != r.want {
					t.Errorf("reading %d: set by %s, want %s", i, got, r.want)
				}
				if got != 0 {
					c.keep(start().Add(r.wall), r.mono)
				}
			}
		})
	}
}

// TestPlansFollowTheClock: what each kind of row is planned for after the clock was set.
func TestPlansFollowTheClock(t *testing.T) {
	const horizon = 90 * time.Second
	now := start()
	at := now.Add
	for name, tc := range map[string]struct {
		jump     time.Duration
		from     lease.Lease
		next     time.Time
		earliest time.Time // zero: exactly next
		claim    time.Time
	}{
		"an intent whose horizon seems over": {
			time.Hour, lease.Lease{State: lease.Intent, SweepAt: at(-59 * time.Minute)}, at(100 * time.Second), time.Time{}, time.Time{},
		},
		"an intent of an hour ahead": {
			-time.Hour, lease.Lease{State: lease.Intent, SweepAt: at(61 * time.Minute)}, at(100 * time.Second), time.Time{}, time.Time{},
		},
		"a credential that seems over": {
			time.Hour, lease.Lease{State: lease.Active, NotAfter: at(-time.Minute), NextAt: at(-time.Minute)}, at(holdFor), time.Time{}, time.Time{},
		},
		"a credential that was held, and the clock set back": {
			-time.Hour, lease.Lease{State: lease.Active, NotAfter: at(20 * time.Minute), NextAt: at(61 * time.Minute)}, at(20 * time.Minute), time.Time{}, time.Time{},
		},
		"a credential without an end": {time.Hour, lease.Lease{State: lease.Active}, time.Time{}, time.Time{}, time.Time{}},
		"an attempt of an hour ahead": {
			-time.Hour,
			lease.Lease{State: lease.Revoking, Attempts: 9, NextAt: at(61 * time.Minute), ClaimUntil: at(time.Hour)},
			at(maxRetry), at(maxRetry / 2), at(claimFor),
		},
		"an attempt that is due": {
			time.Hour, lease.Lease{State: lease.Revoking, NextAt: at(-time.Hour), ClaimUntil: at(-time.Hour)}, at(-time.Hour), time.Time{}, at(-time.Hour),
		},
		"lapses in ten minutes by the clock of before": {
			time.Hour,
			lease.Lease{State: lease.Lapsing, AskedAt: at(-70 * time.Minute), UsableUntil: at(-50 * time.Minute), NextAt: at(-50 * time.Minute)},
			at(10 * time.Minute),
			time.Time{},
			time.Time{},
		},
		"began to lapse after the clock was set": {
			time.Hour,
			lease.Lease{State: lease.Lapsing, AskedAt: at(-time.Second), UsableUntil: at(10 * time.Minute), NextAt: at(10 * time.Minute)},
			at(10 * time.Minute),
			time.Time{},
			time.Time{},
		},
		"lapses when both clocks say so": {
			-time.Hour,
			lease.Lease{State: lease.Lapsing, AskedAt: at(50 * time.Minute), UsableUntil: at(70 * time.Minute), NextAt: at(70 * time.Minute)},
			at(70 * time.Minute),
			time.Time{},
			time.Time{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := shift{now: now, jump: tc.jump}.lease(tc.from, horizon)
			earliest := tc.next
			if !tc.earliest.IsZero() {
				earliest = tc.earliest
			}
			if got.NextAt.Before(earliest) || got.NextAt.After(tc.next) || !got.ClaimUntil.Equal(tc.claim) {
				t.Errorf("planned for %s, claimed until %s; want %s and %s", got.NextAt, got.ClaimUntil, tc.next, tc.claim)
			}
			if got.State == lease.Intent && !got.SweepAt.Equal(got.NextAt) {
				t.Errorf("swept from %s on, looked at %s", got.SweepAt, got.NextAt)
			}
		})
	}
	for name, tc := range map[string]struct {
		from task.Task
		next time.Time
	}{
		"seems over":      {task.Task{NotAfter: at(-time.Minute)}, at(holdFor)},
		"has a deadline":  {task.Task{NotAfter: at(time.Hour), NextAt: at(2 * time.Hour)}, at(time.Hour)},
		"is watched over": {task.Task{NotAfter: at(time.Hour), NextAt: at(2 * time.Hour), IdleTimeout: time.Minute}, at(holdFor)},
	} {
		if got := (shift{now: now, jump: time.Hour}).task(tc.from); !got.NextAt.Equal(tc.next) {
			t.Errorf("a task that %s is looked at %s, want %s", name, got.NextAt, tc.next)
		}
	}
}

// TestSilenceIsMeasured: how long an agent is silent does not depend on what the wall clock says, and a task of before it was
// set is not looked at again and again.
func TestSilenceIsMeasured(t *testing.T) {
	seen := time.Now()
	work := task.Task{IdleTimeout: time.Minute, NotAfter: seen.Add(100 * time.Hour)}
	for _, by := range []time.Duration{0, time.Hour, -time.Hour} {
		now := ledgertest.SetReading(seen.Add(59*time.Second), by)
		if why, again := judge(work, seen, now); why != "" || !again.Round(0).Equal(now.Round(0).Add(time.Second)) {
			t.Errorf("set by %s: %q, looked at again %s after now", by, why, again.Round(0).Sub(now.Round(0)))
		}
		if why, _ := judge(work, seen, ledgertest.SetReading(seen.Add(time.Minute), by)); why != task.Abandoned {
			t.Errorf("set by %s, silent for a minute: %q", by, why)
		}
	}
	late := work
	late.NotAfter = seen.Add(time.Minute).Round(0) // as the ledger keeps it
	if why, _ := judge(late, seen, ledgertest.SetReading(seen, time.Hour)); why != task.Expired {
		t.Errorf("a task that is over: %q", why)
	}
	if why, again := judge(late, seen, seen); why != "" || !again.Equal(late.NotAfter) {
		t.Errorf("a task that may be idle at its deadline: %q, %s", why, again)
	}
}
