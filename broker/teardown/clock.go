package teardown

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

// What is in the ledger is planned by the wall clock, which somebody may set; what has to last a while, such as an intent's
// horizon, does so by the monotonic one. Where the two come apart, the wall clock was set, and the plans are made anew (D19).
const (
	// clockStep is by how much the wall clock has to be set to be noticed. Both clocks are slewed alike and read at once, so
	// that neither NTP nor a busy machine comes near it.
	clockStep = time.Second
	// clockMemory is for how long smaller steps add up.
	clockMemory = 10 * time.Minute
	// holdFor is for how long nothing ends by the clock after it was set: time for it to be set back, or for somebody to
	// look. It costs little: what should have ended is issued nothing more, and dies by its backend's clock.
	holdFor = 5 * time.Minute
)

// clock notices that the wall clock was set. Its zero value has nothing to compare with yet.
type clock struct {
	wall time.Time     // when both were last compared
	mono time.Duration // since the start of the process
}

// observe compares a reading of both clocks with the one that was kept, and returns by how much the wall clock was set
// between them: forwards is positive, zero is not at all.
func (c *clock) observe(wall time.Time, mono time.Duration) (jump time.Duration) {
	jump = wall.Round(0).Sub(c.wall) - (mono - c.mono)
	if jump.Abs() >= clockStep {
		return jump
	}
	if mono-c.mono >= clockMemory {
		c.keep(wall, mono)
	}
	return 0
}

// keep makes a reading the one that later ones are compared with.
func (c *clock) keep(wall time.Time, mono time.Duration) { c.wall, c.mono = wall.Round(0), mono }

// ClockJumps returns how often the wall clock was found to have been set, for metrics.
func (l *Loop) ClockJumps() int64 { return l.jumps.Load() }

// checkClock plans everything anew when the wall clock was set. Until that is in the ledger, nothing may be done by the
// plans of before: they are not the time that they say.
func (l *Loop) checkClock(ctx context.Context, now time.Time) error {
	if l.clock.wall.IsZero() {
		last, err := l.lastRecord(ctx)
		if err != nil {
			return err
		}
		// Nothing was recorded later than now, unless the clock was set back while nobody looked.
		read := time.Now()
		l.clock.keep(later(l.wall(read), last), read.Sub(l.started))
	}
	wall, mono := l.wall(now), now.Sub(l.started)
	jump := l.clock.observe(wall, mono)
	if jump == 0 {
		return nil
	}
	if err := l.replan(ctx, shift{now: now, jump: jump}); err != nil {
		return fmt.Errorf("plan anew, the clock was set by %s: %w", jump.Round(time.Millisecond), err)
	}
	l.cfg.Logger.Error("the machine's clock was set; nothing ends by it for a while, and what was planned is planned anew: check its time",
		zap.Duration("by", jump.Round(time.Millisecond)), zap.Time("expected", wall.Add(-jump).UTC()), zap.Time("found", wall.UTC()),
		zap.Duration("held_for", holdFor))
	l.jumps.Add(1)
	l.clock.keep(wall, mono)
	return nil
}

// wall returns what the wall clock said at a reading.
func (l *Loop) wall(read time.Time) time.Time {
	if l.cfg.Wall != nil {
		return l.cfg.Wall(read)
	}
	return read
}

// lastRecord returns the time of the newest record.
func (l *Loop) lastRecord(ctx context.Context) (time.Time, error) {
	var rec audit.Record
	err := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		head, err := r.Head()
		if err != nil || head.Size == 0 {
			return err
		}
		entries, err := r.Entries(head.Size-1, 1, "")
		if err != nil || len(entries) == 0 {
			return err
		}
		return json.Unmarshal(entries[0].JSON, &rec)
	})
	return rec.Time, err
}
