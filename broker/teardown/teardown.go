// Package teardown ends leases and proves it. One loop does all of it, whatever asked for the end: the database is its
// timer, so that recovery after a crash is the same loop; what is due is claimed for a limited time, worked on, and its
// outcome recorded. It never gives up.
package teardown

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// Times and sizes that nobody needs to configure.
const (
	// revokeTimeout bounds one attempt at a backend.
	revokeTimeout = 20 * time.Second
	// claimFor is for how long a claim holds: an attempt, its commit, and room for a slow machine.
	claimFor = 60 * time.Second
	// slots is how many leases of one lane are worked on at a time, so that no lane starves another. A lane that does not
	// answer has one (see lane.go).
	slots = 8
	// maxIdle is the longest the loop sleeps without looking.
	maxIdle = time.Second
	// waitingPause is how long the loop sleeps while something is due that has to wait for its lane.
	waitingPause = 250 * time.Millisecond
	// firstRetry and maxRetry bound the jittered exponential back-off.
	firstRetry = 500 * time.Millisecond
	maxRetry   = time.Minute
	// taskBatch is how many due tasks one transaction closes.
	taskBatch = 64
)

// errNotConfigured: nobody can end what a backend issued whose block is gone from the configuration.
var errNotConfigured = errors.New("its backend is not in the configuration")

// Presence says when the agent of a task was last heard of.
type Presence interface {
	LastSeen(id task.ID, now time.Time) time.Time
	// Heard is LastSeen, but false where nothing was heard since this process started.
	Heard(id task.ID, now time.Time) (time.Time, bool)
	Forget(id task.ID)
}

// Config is what a Loop is made of. Every field but Held and Wall is required.
type Config struct {
	Ledger *ledger.Ledger
	// Backends returns those in force.
	Backends func() *instance.Snapshot
	Presence Presence
	// Held, while it is true, keeps every pass from doing anything; nil is never. Attempts under way are finished.
	Held func() bool
	// StuckAfter is how long after it was asked for an end is overdue, until SetStuckAfter.
	StuckAfter time.Duration
	Logger     *zap.Logger
	// Wall is how a test makes the wall clock jump: what it says at a reading, as far as jumps are looked for.
	Wall func(read time.Time) time.Time
}

// Loop ends leases.
type Loop struct {
	cfg  Config
	more chan struct{}    // there was more to do than one pass does
	done chan outcome     // of workers
	lane map[string]*lane // by name; touched by Run's goroutine only
	// unread are due tasks that cannot be read; touched by Run's goroutine only.
	unread []task.ID
	held   atomic.Int64 // how many lanes are held

	started time.Time
	clock   clock        // touched by Run's goroutine only
	jumps   atomic.Int64 // of the clock

	stuckAfter atomic.Int64 // a time.Duration
}

// New makes a Loop; it starts nothing.
func New(cfg Config) *Loop {
	l := &Loop{
		cfg: cfg, more: make(chan struct{}, 1), done: make(chan outcome), lane: map[string]*lane{}, started: time.Now(),
	}
	l.SetStuckAfter(cfg.StuckAfter)
	return l
}

// SetStuckAfter changes how long after it was asked for an end is overdue, from the next failed attempt on.
func (l *Loop) SetStuckAfter(d time.Duration) { l.stuckAfter.Store(int64(d)) }

// Held returns how many lanes do not answer now, for metrics: each is asked by one attempt at a time until one succeeds,
// while the others go on.
func (l *Loop) Held() int { return int(l.held.Load()) }

// Run works until ctx is done, and then waits for the attempts under way. It returns an error only when the ledger is gone
// for good.
func (l *Loop) Run(ctx context.Context) error {
	var workers errgroup.Group
	err := l.loop(ctx, &workers)
	for l.inFlight() > 0 {
		l.record(<-l.done)
	}
	return errors.Join(err, workers.Wait())
}

func (l *Loop) inFlight() int {
	n := 0
	for _, lane := range l.lane {
		n += lane.busy
	}
	return n
}

// record takes a worker's outcome, and says so once when a lane no longer answers, or answers again.
func (l *Loop) record(o outcome) {
	lane := l.lane[o.lane]
	if !lane.record(o, time.Now()) {
		return
	}
	if lane.held() {
		l.held.Add(1)
		l.cfg.Logger.Warn("a lane does not answer; it is asked by one attempt at a time, and the others go on",
			zap.String("lane", o.lane), zap.Error(o.err))
		return
	}
	l.held.Add(-1)
	l.cfg.Logger.Info("a lane answers again", zap.String("lane", o.lane))
}

func (l *Loop) loop(ctx context.Context, workers *errgroup.Group) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-l.done:
			l.record(o)
		case <-l.cfg.Ledger.Kicked():
		case <-l.more:
		case <-timer.C:
		}
		next, err := l.pass(ctx, workers)
		if errors.Is(err, ledger.ErrClosed) || errors.Is(err, audit.ErrFenced) {
			return fmt.Errorf("teardown: %w", err)
		}
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Error("teardown cannot reach the ledger; it tries again", zap.Error(err))
		}
		timer.Reset(next)
	}
}

// pass closes due tasks, starts work on due leases, and says when to look again. All of it goes by one reading of the
// clock, which was found to be in step: what is set meanwhile, the next pass notices before it acts by it.
func (l *Loop) pass(ctx context.Context, workers *errgroup.Group) (time.Duration, error) {
	if l.cfg.Held != nil && l.cfg.Held() {
		return maxIdle, nil
	}
	now := time.Now()
	if err := l.checkClock(ctx, now); err != nil {
		return maxIdle, err
	}
	// What cannot be read of one part of the ledger holds up no other.
	failed := l.closeDue(ctx, now)
	var lanes []string
	err := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		lanes, err = r.DueLanes(now)
		return err
	})
	failed = errors.Join(failed, err)
	waiting := len(l.unread) > 0
	for _, name := range lanes {
		failed = errors.Join(failed, l.startLane(ctx, name, now, workers))
		waiting = waiting || l.lane[name].free(now) == 0
	}
	next, err := l.untilNext(ctx)
	if failed = errors.Join(failed, err); failed != nil {
		return maxIdle, failed
	}
	if waiting {
		next = max(next, waitingPause) // what is due may have to wait; a worker that finishes wakes the loop
	}
	return next, nil
}

// untilNext returns how long nothing is due.
func (l *Loop) untilNext(ctx context.Context) (time.Duration, error) {
	var next time.Time
	err := l.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		next, err = r.NextDue()
		return err
	})
	if err != nil || next.IsZero() {
		return maxIdle, err
	}
	return min(maxIdle, max(time.Until(next), 10*time.Millisecond)), nil
}

// startLane claims as many due leases of a lane as it has free slots, and starts a worker for each.
func (l *Loop) startLane(ctx context.Context, name string, now time.Time, workers *errgroup.Group) error {
	at := l.lane[name]
	if at == nil {
		at = &lane{}
		l.lane[name] = at
	}
	free := at.free(now)
	if free <= 0 && at.held() {
		return l.tell(ctx, name, now)
	}
	if free <= 0 {
		return nil
	}
	claimed, err := l.claim(ctx, name, now, free)
	if err != nil {
		return err
	}
	for _, c := range claimed {
		at.busy++
		workers.Go(func() error {
			// An attempt that has begun is finished: half of one would only have to be made again.
			l.done <- outcome{lane: name, lease: c.ID, err: l.work(context.WithoutCancel(ctx), c)}
			return nil
		})
	}
	return nil
}

// claim takes due leases for a limited time.
func (l *Loop) claim(ctx context.Context, name string, now time.Time, limit int) ([]lease.Lease, error) {
	var claimed []lease.Lease
	_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error {
		claimed = claimed[:0]
		due, err := l.lane[name].turns.pick(tx, name, now, limit)
		if err != nil {
			return err
		}
		for _, from := range due {
			next, err := from.Begin(now)
			if err != nil {
				return err
			}
			next.Claim++
			next.ClaimUntil = now.Add(claimFor)
			if from.AskedAt.IsZero() {
				if _, err := tx.Append(leaseRecord(audit.LeaseEnding, next, now)); err != nil {
					return err
				}
			}
			if err := tx.UpdateLease(next, from); err != nil {
				return err
			}
			claimed = append(claimed, next)
		}
		return nil
	})
	failpoint.Hit("teardown.claimed")
	return claimed, err
}

// work makes one attempt to end a lease, records its outcome, and returns why the backend did not end it.
func (l *Loop) work(ctx context.Context, c lease.Lease) error {
	ctx, cancel := context.WithTimeout(ctx, claimFor-time.Second)
	defer cancel()
	ending, cause := l.attempt(ctx, c)
	failpoint.Hit("teardown.revoked")
	if cause != nil && c.Attempts&(c.Attempts-1) == 0 { // at the first, second, fourth, eighth … attempt
		l.cfg.Logger.Warn("a lease is not ended yet; it is tried again", zap.Stringer("lease", c.ID),
			zap.String("backend", c.Backend), zap.Int("attempts", c.Attempts+1), zap.Error(cause))
	}
	_, err := l.cfg.Ledger.Update(ctx, func(tx *ledger.Tx) error { return l.settle(tx, c, ending, cause) })
	failpoint.Hit("teardown.settled")
	switch {
	case errors.Is(err, ledger.ErrStale):
		l.cfg.Logger.Info("a lease moved on while it was being ended", zap.Stringer("lease", c.ID))
	case err != nil:
		l.cfg.Logger.Error("outcome of a teardown not recorded; it is made again when its claim ends",
			zap.Stringer("lease", c.ID), zap.Error(err))
	}
	return cause
}

// attempt asks the backend to end a lease.
func (l *Loop) attempt(ctx context.Context, c lease.Lease) (plugins.Ending, error) {
	in, ok := l.cfg.Backends().Find(c.Backend)
	if !ok {
		return plugins.Ending{}, fmt.Errorf("%w: %w: put the block of %s back and send SIGHUP", plugins.ErrMisconfigured, errNotConfigured, c.Backend)
	}
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	return in.Backend.Revoke(ctx, c.Held())
}

// settle records what an attempt came to, if the claim still holds.
func (l *Loop) settle(tx *ledger.Tx, c lease.Lease, ending plugins.Ending, cause error) error {
	now := time.Now()
	from, err := tx.Lease(c.ID)
	if err != nil {
		return err
	}
	if from.Claim != c.Claim {
		return ledger.ErrStale
	}
	if cause != nil {
		return l.retry(tx, from, cause, now)
	}
	next, err := from.End(ending)
	if err != nil {
		return l.retry(tx, from, err, now)
	}
	rec := leaseRecord(audit.LeaseEnded, next, now)
	if !next.State.Final() {
		rec.Event = audit.LeaseEnding
	}
	rec.Proof = &audit.Proof{
		Kind: next.Proof, At: ending.At.UTC(), UsableUntil: next.UsableUntil.UTC(), UncheckedUntil: utc(next.UncheckedUntil),
		Detail: next.ProofDetail,
	}
	if _, err := tx.Append(rec); err != nil {
		return err
	}
	if err := tx.UpdateLease(next, from); err != nil {
		return err
	}
	if !next.State.Final() {
		return nil
	}
	return finish(tx, next.Task, now)
}

// utc keeps the zero time zero.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}
