package teardown_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // backends in memory
)

// TestNeverGivesUp: rule 8. A backend that is down for long is asked again and again, never slower than the cap; being
// stuck is said once, and heals.
func TestNeverGivesUp(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		y.a.Break()
		y.run()
		y.close(work)

		pass(10 * time.Second)
		early := y.a.Calls(plugintest.OpRevoke)
		if early < 3 || early > 12 {
			t.Errorf("%d attempts in the first ten seconds", early)
		}
		if got := y.readLease(l.ID); got.Stuck || got.Attempts != early || got.LastError != "backend unavailable" {
			t.Errorf("after ten seconds: %+v", got)
		}
		pass(stuckAfter)
		before := y.a.Calls(plugintest.OpRevoke)
		pass(10 * time.Minute)
		if n := y.a.Calls(plugintest.OpRevoke) - before; n < 9 || n > 21 {
			t.Errorf("%d attempts in ten minutes; a minute is the longest and half of it the shortest back-off", n)
		}
		var stats ledger.Stats
		y.view(func(r ledger.Reader) (err error) {
			stats, err = r.Stats()
			return err
		})
		rec := y.records(audit.LeaseStuck)
		if got := y.readLease(l.ID); !got.Stuck || stats.Stuck != 1 || len(rec) != 1 || rec[0].Lease != l.ID.String() || rec[0].Count == 0 {
			t.Errorf("stuck %t, %d in the statistics, records %+v", got.Stuck, stats.Stuck, rec)
		}
		if state := y.readTask(work.ID).State; state != task.Closing {
			t.Errorf("the task is %s", state)
		}
		y.a.Heal()
		y.until(time.Minute, y.final(l.ID))
		if got := y.readLease(l.ID); got.Stuck || got.Proof != plugins.ReadBack || len(y.a.Alive()) != 0 {
			t.Errorf("healed: %+v", got)
		}
		if got := y.readTask(work.ID); got.State != task.Closed || got.Summary.Stuck != 0 {
			t.Errorf("task %+v", got)
		}
	})
}

// TestReasons: what a failed attempt leaves in the ledger is the class of its error, never its text.
func TestReasons(t *testing.T) {
	for err, reason := range map[error]string{
		fmt.Errorf("password hunter2: %w", plugins.ErrUnavailable):   "backend unavailable",
		fmt.Errorf("password hunter2: %w", plugins.ErrMisconfigured): "backend misconfigured",
		fmt.Errorf("password hunter2: %w", plugins.ErrNotProven):     "end not proven",
		fmt.Errorf("password hunter2: %w", plugins.ErrUnknownHandle): "unknown handle",
		fmt.Errorf("password hunter2: %w", context.DeadlineExceeded): "no answer in time",
		errors.New("password hunter2"):                               "failed; see the log",
	} {
		synctest.Test(t, func(t *testing.T) {
			y := newYard(t)
			f := &fixed{err: err}
			y.backends["fixed"] = f
			work := y.task(nil)
			l := y.lease(work, "fixed")
			y.run()
			y.close(work)
			y.until(time.Minute, func() bool { return y.readLease(l.ID).Attempts > 0 })
			if got := y.readLease(l.ID).LastError; got != reason {
				t.Errorf("%v left %q, want %q", err, got, reason)
			}
		})
	}
}

// TestProofs: rule 7. Each kind of end is final with its proof, in the lease, the record, and the task's summary.
func TestProofs(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	for proof, state := range map[plugins.Proof]lease.State{
		plugins.ReadBack: lease.Revoked, plugins.OnCRL: lease.Revoked, plugins.Swept: lease.Revoked,
		plugins.LostAtBackend: lease.Revoked, plugins.NotIssued: lease.Revoked, plugins.Lapsed: lease.Lapsed,
		plugins.Disclosed: lease.Disclosed,
	} {
		t.Run(string(proof), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t)
				at := time.Now()
				y.backends["fixed"] = &fixed{next: plugins.Ending{
					Proof: proof, At: at, UncheckedUntil: at.Add(time.Hour), Detail: "what was seen",
				}}
				work := y.task(nil)
				l := y.lease(work, "fixed")
				y.run()
				y.close(work)
				y.until(time.Minute, func() bool { return y.readTask(work.ID).State == task.Closed })
				got := y.readLease(l.ID)
				if got.State != state || got.Proof != proof || got.ProofDetail != "what was seen" || !got.RevokedAt.Equal(at) || !got.NextAt.IsZero() {
					t.Errorf("lease %+v", got)
				}
				rec := y.records(audit.LeaseEnded)
				if len(rec) != 1 || rec[0].Proof == nil || rec[0].Proof.Kind != proof || rec[0].Proof.Detail != "what was seen" ||
					!rec[0].Proof.UncheckedUntil.Equal(at.Add(time.Hour)) || rec[0].Reason != string(lease.TaskClosed) {
					t.Errorf("records %+v", rec)
				}
				if sum := y.readTask(work.ID).Summary; sum.ByProof[proof] != 1 || sum.Final != 1 || sum.Leases != 1 {
					t.Errorf("summary %+v", sum)
				}
				closed := y.records(audit.TaskClosed)
				if len(closed) != 1 || closed[0].Summary == nil || closed[0].Summary.ByProof[proof] != 1 {
					t.Errorf("records of the close %+v", closed)
				}
			})
		})
	}
}

// TestNoProofNoEnd: an answer without a proof, or a pending one without its instant, is tried again.
func TestNoProofNoEnd(t *testing.T) {
	for _, e := range []plugins.Ending{{}, {Proof: "trust me"}, {Proof: plugins.Pending}} {
		synctest.Test(t, func(t *testing.T) {
			y := newYard(t)
			f := &fixed{next: e}
			y.backends["fixed"] = f
			work := y.task(nil)
			l := y.lease(work, "fixed")
			y.run()
			y.close(work)
			pass(time.Minute)
			if got := y.readLease(l.ID); got.State != lease.Revoking || f.count() < 3 {
				t.Errorf("%q ended in %s after %d attempts", e.Proof, got.State, f.count())
			}
			if n := len(y.records(audit.LeaseEnded)); n != 0 {
				t.Errorf("%d records of an end", n)
			}
		})
	}
}

// TestLapsing: what cannot be revoked is looked at again at its instant, and its task waits for it.
func TestLapsing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		until := time.Now().Add(5 * time.Minute)
		f := &fixed{next: plugins.Ending{Proof: plugins.Pending, At: time.Now(), UsableUntil: until}}
		y.backends["fixed"] = f
		work := y.task(nil)
		l := y.lease(work, "fixed")
		y.run()
		y.close(work)
		pass(time.Minute)
		got := y.readLease(l.ID)
		if got.State != lease.Lapsing || !got.NextAt.Equal(until) || f.count() != 1 || y.readTask(work.ID).State != task.Closing {
			t.Errorf("lease %+v after %d attempts", got, f.count())
		}
		pass(3*time.Minute + 59*time.Second)
		f.set(plugins.Ending{Proof: plugins.Lapsed, At: until, UsableUntil: until}, nil)
		if f.count() != 1 {
			t.Errorf("asked %d times before its instant", f.count())
		}
		y.until(10*time.Second, y.final(l.ID))
		if got = y.readLease(l.ID); got.State != lease.Lapsed || y.readTask(work.ID).State != task.Closed {
			t.Errorf("lease %+v", got)
		}
	})
}

// TestLostAtBackend: what was ended behind the broker's back is recorded as that.
func TestLostAtBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		y.a.Drop(l.ID)
		y.run()
		y.close(work)
		y.until(time.Minute, y.final(l.ID))
		if got := y.readLease(l.ID); got.Proof != plugins.LostAtBackend {
			t.Errorf("proof %s", got.Proof)
		}
	})
}

// TestClaimOfTheDead: rule 4. A lease that a process claimed before it died is left alone until the claim ends, and then
// taken.
func TestClaimOfTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		y.close(work)
		y.update(func(tx *ledger.Tx) error {
			from, err := tx.Lease(l.ID)
			if err != nil {
				return err
			}
			next := from
			next.Claim, next.ClaimUntil = 7, time.Now().Add(time.Minute)
			return tx.UpdateLease(next, from)
		})
		y.run()
		pass(59 * time.Second)
		if n := y.a.Calls(plugintest.OpRevoke); n != 0 {
			t.Errorf("%d attempts while the claim held", n)
		}
		y.until(2*time.Second, y.final(l.ID))
		if got := y.readLease(l.ID); got.Claim != 8 {
			t.Errorf("claim %d", got.Claim)
		}
	})
}

// TestLateWorkerWritesNothing: rule 4. A worker whose claim was taken by another writes nothing of its outcome.
func TestLateWorkerWritesNothing(t *testing.T) {
	for name, fail := range map[string]error{"ended": nil, "failed": plugins.ErrUnavailable} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t)
				work := y.task(nil)
				l := y.lease(work, "memory/a")
				var taken lease.Lease
				y.a.Before(plugintest.OpRevoke, func(context.Context, plugins.LeaseID) error {
					y.update(func(tx *ledger.Tx) error { //nolint:contextcheck // the other worker has its own
						from, err := tx.Lease(l.ID)
						if err != nil {
							return err
						}
						taken = from
						taken.Claim, taken.ClaimUntil = from.Claim+1, time.Now().Add(time.Hour)
						return tx.UpdateLease(taken, from)
					})
					return fail
				})
				y.run()
				y.close(work)
				pass(10 * time.Minute)
				got := y.readLease(l.ID)
				if got.State != lease.Revoking || got.Claim != taken.Claim || got.Attempts != 0 || got.LastError != "" || taken.Claim != 2 {
					t.Errorf("a late worker wrote %+v over %+v", got, taken)
				}
				if n := len(y.records(audit.LeaseEnded)) + len(y.records(audit.LeaseStuck)); n != 0 {
					t.Errorf("%d records", n)
				}
			})
		})
	}
}

// TestFrozenWorker: rule 4. A worker that is frozen for longer than its claim loses the lease to another.
func TestFrozenWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		var thawed atomic.Bool
		y.a.Before(plugintest.OpRevoke, func(context.Context, plugins.LeaseID) error {
			if !thawed.Swap(true) {
				pass(2 * time.Minute)
			}
			return nil
		})
		y.run()
		y.close(work)
		pass(5 * time.Minute)
		if got := y.readLease(l.ID); got.Claim != 2 || !got.State.Final() || len(y.records(audit.LeaseEnded)) != 1 {
			t.Errorf("lease %+v with %d records of its end", got, len(y.records(audit.LeaseEnded)))
		}
	})
}

// TestHangingBackend: an attempt that hangs is cut off, and is one attempt.
func TestHangingBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		y.a.HangNext(plugintest.OpRevoke)
		y.run()
		start := time.Now()
		y.close(work)
		y.until(time.Minute, y.final(l.ID))
		if took := time.Since(start); took < 20*time.Second || took > 30*time.Second {
			t.Errorf("ended after %s; one attempt takes at most 20 s", took)
		}
	})
}

// TestLanesDoNotStarveEachOther: a lane whose backend hangs takes its own slots only.
func TestLanesDoNotStarveEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		for range 20 {
			y.lease(work, "memory/a")
			y.a.HangNext(plugintest.OpRevoke)
		}
		l := y.lease(work, "memory/b")
		y.run()
		y.close(work)
		y.until(time.Second, y.final(l.ID))
		if n := y.a.Calls(plugintest.OpRevoke); n != 8 {
			t.Errorf("%d attempts at once in one lane, want 8", n)
		}
		y.until(10*time.Minute, func() bool { return y.readTask(work.ID).State == task.Closed })
		if sum := y.readTask(work.ID).Summary; sum.Final != 21 || len(y.a.Alive()) != 0 {
			t.Errorf("summary %+v", sum)
		}
	})
}

// TestUnknownBackend: a lease whose backend is not configured waits for it, and ends when it is there again.
func TestUnknownBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		delete(y.backends, "memory/a")
		stop := y.run()
		y.close(work)
		pass(time.Minute)
		if got := y.readLease(l.ID); got.Attempts == 0 || got.LastError != "its backend is not in the configuration" {
			t.Errorf("lease %+v", got)
		}
		stop()
		y.backends["memory/a"] = y.a
		y.run()
		y.until(2*time.Minute, y.final(l.ID))
	})
}

// TestCredentialEndsBeforeItsTask: rule 4. A lease is ended at its own NotAfter, and its task goes on.
func TestCredentialEndsBeforeItsTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		y.run()
		pass(time.Until(l.NotAfter) - time.Second)
		if got := y.readLease(l.ID); got.State != lease.Active {
			t.Errorf("the lease is %s before its end", got.State)
		}
		y.until(3*time.Second, y.final(l.ID))
		if got := y.readLease(l.ID); got.Proof != plugins.Lapsed || got.Cause != lease.Expired {
			t.Errorf("lease %+v", got)
		}
		if rec := y.records(audit.LeaseEnding); len(rec) != 1 || rec[0].Reason != string(lease.Expired) {
			t.Errorf("records %+v", rec)
		}
		if y.readTask(work.ID).State != task.Active {
			t.Error("the task ended with its credential")
		}
	})
}

// TestTasksExpire: many at once, each at its deadline, and not before.
func TestTasksExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		const many = 150
		ids := make([]task.ID, many)
		for i := range ids {
			ids[i] = y.task(nil).ID
		}
		deadline := y.readTask(ids[0]).NotAfter
		y.run()
		pass(time.Until(deadline) - time.Second)
		if got := y.readTask(ids[0]).State; got != task.Active {
			t.Errorf("%s before its deadline", got)
		}
		pass(3 * time.Second)
		for _, id := range ids {
			if got := y.readTask(id); got.State != task.Closed || got.CloseReason != task.Expired {
				t.Fatalf("task %s, %s", got.State, got.CloseReason)
			}
		}
		if n := len(y.presence.forgot); n != many {
			t.Errorf("%d of %d closed tasks were forgotten", n, many)
		}
	})
}

// TestIdleTasksAreAbandoned: rule 11, by whatever presence says.
func TestIdleTasksAreAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		idle := func(t *task.Task) { t.IdleTimeout = time.Minute }
		quiet, busy, patient := y.task(idle), y.task(idle), y.task(nil)
		y.run()
		for range 10 {
			pass(30 * time.Second)
			y.presence.touch(busy.ID)
		}
		if got := y.readTask(quiet.ID); got.CloseReason != task.Abandoned || got.ClosedAt.Sub(got.CreatedAt) > 62*time.Second {
			t.Errorf("the quiet task: %+v", got)
		}
		if got := y.readTask(busy.ID); got.State != task.Active {
			t.Errorf("the busy task is %s (%s)", got.State, got.CloseReason)
		}
		if got := y.readTask(patient.ID); got.State != task.Active {
			t.Errorf("the task without a timeout is %s", got.State)
		}
		pass(2 * time.Minute)
		if got := y.readTask(busy.ID); got.CloseReason != task.Abandoned {
			t.Errorf("the busy task that fell silent is %s (%s)", got.State, got.CloseReason)
		}
	})
}

// TestCloseTwice: a task that is closing is not closed again, and nothing is written.
func TestCloseTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		y.lease(work, "memory/a")
		cause := teardown.Cause{Actor: teardown.Stint(), Why: task.Stopped, Comment: "a text about Jane Doe", Now: time.Now()}
		y.update(func(tx *ledger.Tx) error { return teardown.Close(tx, work.ID, cause) })
		before := y.ledger.Head().Size
		_, err := y.ledger.Update(t.Context(), func(tx *ledger.Tx) error { return teardown.Close(tx, work.ID, cause) })
		if !errors.Is(err, task.ErrState) || y.ledger.Head().Size != before {
			t.Errorf("closed twice: %v, %d records more", err, y.ledger.Head().Size-before)
		}
		rec := y.records(audit.TaskClosing)
		if len(rec) != 1 || len(rec[0].Hashes) != 1 || rec[0].Reason != string(task.Stopped) {
			t.Errorf("records %+v", rec)
		}
		id, err := task.NewID()
		if err != nil {
			t.Fatal(err)
		}
		_, err = y.ledger.Update(t.Context(), func(tx *ledger.Tx) error { return teardown.Close(tx, id, cause) })
		if !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("closed what is not there: %v", err)
		}
	})
}

// TestStopWaitsForAttempts: a loop that is stopped finishes what it has begun.
func TestStopWaitsForAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		work := y.task(nil)
		l := y.lease(work, "memory/a")
		begun := make(chan struct{})
		y.a.Before(plugintest.OpRevoke, func(context.Context, plugins.LeaseID) error {
			close(begun)
			pass(5 * time.Second)
			return nil
		})
		stop := y.run()
		y.close(work)
		<-begun
		stop()
		if got := y.readLease(l.ID); !got.State.Final() {
			t.Errorf("the lease is %s", got.State)
		}
	})
}

// TestLoopEndsWithItsLedger: a ledger that is gone for good ends the loop with an error.
func TestLoopEndsWithItsLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		ended := make(chan error, 1)
		started := make(chan struct{})
		go func() {
			close(started)
			ended <- y.loop().Run(context.WithoutCancel(t.Context()))
		}()
		<-started
		y.task(func(t *task.Task) { t.NotAfter = time.Now().Add(time.Second) })
		y.kill()
		select {
		case err := <-ended:
			if !errors.Is(err, ledger.ErrClosed) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the loop goes on without its ledger")
		}
	})
}
