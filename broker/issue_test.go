package broker_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// kinds are one role of each kind of backend.
func kinds() []string { return []string{"plain", "plain-cert", "horizon", "horizon-cert", "vault"} }

// memoryOf returns the memory behind a role's backend.
func (h *house) memoryOf(role string) *plugintest.Memory {
	switch role {
	case "horizon", "horizon-cert", "lapsing-horizon":
		return h.horizon
	case "vault", "static":
		return h.vault.Memory
	default:
		return h.plain
	}
}

// eachKind runs a test in a bubble of its own for each kind of backend.
func eachKind(t *testing.T, names []string, fn func(h *house, role string)) {
	t.Helper()
	for _, role := range names {
		t.Run(role, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { fn(newHouse(t), role) })
		})
	}
}

// TestIntentIsDurableBeforeIssue: rule 1. While the backend is asked, another process can read the intent from the file,
// with the handle that ends it and the record that says why it was allowed.
func TestIntentIsDurableBeforeIssue(t *testing.T) {
	eachKind(t, []string{"horizon", "horizon-cert", "vault"}, func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		asked := 0
		start := time.Now()
		h.memoryOf(role).Before(plugintest.OpIssue, func(ctx context.Context, id plugins.LeaseID) error {
			asked++
			file, err := sqlite.OpenReader(ctx, filepath.Join(h.dir, "data", sqlite.File))
			if err != nil {
				return err
			}
			return errors.Join(file.View(ctx, func(r ledger.Reader) error {
				l, err := r.Lease(id)
				if err != nil || l.State != lease.Intent {
					t.Errorf("at the backend's call the lease is %q (%v)", l.State, err)
				}
				if l.Handle == "" && !h.memoryOf(role).Descriptor().HandleIsLeaseID || role == "vault" && l.Handle == "" {
					t.Error("the intent has no handle")
				}
				if at := start.Add(broker.IssueTimeout + horizon); !l.SweepAt.Equal(at) || !l.NextAt.Equal(at) {
					t.Errorf("sweep at %s, next at %s, want %s", l.SweepAt, l.NextAt, at)
				}
				return err
			}), file.Close())
		})
		out := h.issue(work, role)
		if asked != 1 {
			t.Errorf("issue was called %d times", asked)
		}
		rec := h.recorded(audit.LeaseIntent, out.Lease.ID.String())
		if len(rec) != 1 || rec[0].PolicySet == "" || len(rec[0].Policies) == 0 {
			t.Errorf("records of the intent: %+v", rec)
		}
	})
}

// TestLateAnswerIsNotHandedOut: rule 2. The task ends, the lease's end is asked for, or its role is removed after the
// backend has made the credential and before its answer is committed.
func TestLateAnswerIsNotHandedOut(t *testing.T) {
	ends := map[string]struct {
		end    func(h *house, work task.Task) error
		reason fault.Reason
	}{
		"completed": {func(h *house, work task.Task) error {
			_, err := h.broker.Complete(h.tb.Context(), agent("a"), ref(work), task.Completed, 0)
			return err
		}, fault.TaskClosed},
		"stopped": {func(h *house, work task.Task) error {
			_, err := h.broker.Stop(h.tb.Context(), operator(), ref(work), "no more", 0)
			return err
		}, fault.TaskClosed},
		"expired": {func(h *house, work task.Task) error { // as a process that was frozen
			pass(time.Until(work.NotAfter))
			return nil
		}, fault.TaskExpired},
		"role removed": {func(h *house, _ task.Task) error {
			h.withoutRole("plain", "plain-cert", "horizon", "horizon-cert", "vault")
			return nil
		}, fault.RoleOutsideProfile},
	}
	for name, tc := range ends {
		t.Run(name, func(t *testing.T) {
			eachKind(t, kinds(), func(h *house, role string) {
				t := h.tb
				work := h.declare(role)
				h.memoryOf(role).After(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error { return tc.end(h, work) })
				out, err := h.try(work, role)
				want(t, err, tc.reason)
				if out.Credential.Fields != nil || out.Credential.Chain != nil || h.meter.issued != 0 {
					t.Errorf("handed out %+v", out)
				}
				if n := h.memoryOf(role).Made(); n != 1 {
					t.Fatalf("%d credentials were made, want one that is dropped", n)
				}
				h.until(time.Minute, func() bool { return h.alive() == 0 })
				h.complete(work)
				h.gone()
				for _, l := range h.leases() {
					if l.Proof != plugins.ReadBack || len(h.recorded(audit.LeaseFailed, l.ID.String())) != 1 {
						t.Errorf("lease %+v with records %+v", l, h.recorded(audit.LeaseFailed, ""))
					}
				}
			})
		})
	}
}

// withoutRole applies the resources anew without some roles.
func (h *house) withoutRole(names ...string) {
	h.tb.Helper()
	if _, err := h.catalog.Apply(h.tb.Context(), broker.Caller{}, allBut(names...)); err != nil {
		h.tb.Error(err)
	}
}

// allBut makes the resources what they are in the beginning, but for some roles.
func allBut(names ...string) broker.Apply {
	var docs []string
	for doc := range strings.SplitSeq(roles, "---") {
		keep := true
		for _, name := range names {
			keep = keep && !strings.Contains(doc, "{name: "+name+"}")
		}
		if keep {
			docs = append(docs, doc)
		}
	}
	p := profile
	for _, name := range names {
		p = strings.Replace(p, "{name: "+name+"}, ", "", 1)
	}
	return broker.Apply{Files: files(strings.Join(docs, "---") + "---" + p), Prune: true}
}

// TestRevokedWhileIssued: rule 2 for a single lease, whose end is asked for while its answer is on the way.
func TestRevokedWhileIssued(t *testing.T) {
	eachKind(t, []string{"horizon", "horizon-cert", "vault"}, func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		h.memoryOf(role).After(plugintest.OpIssue, func(ctx context.Context, id plugins.LeaseID) error {
			_, _, err := h.broker.RevokeLease(ctx, agent("a"), id, 0)
			return err
		})
		_, err := h.try(work, role)
		f := wanted(t, err, fault.AlreadyIssued)
		l := h.only()
		if f.Metadata["lease"] != "leases/"+l.ID.String() || l.Cause != lease.Requested {
			t.Errorf("answer %+v, lease %+v", f.Metadata, l)
		}
		h.until(time.Minute, func() bool { return h.only().State.Final() })
		h.gone()
	})
}

// TestAnswerAfterTheSweep: rules 2 and 5. A process frozen for longer than the horizon gets its answer when the intent was
// swept: the credential is ended again, by the handle of its answer.
func TestAnswerAfterTheSweep(t *testing.T) {
	eachKind(t, []string{"horizon", "vault"}, func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		var swept lease.Lease
		h.memoryOf(role).Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
			pass(broker.IssueTimeout + horizon + time.Minute)
			swept = h.only() //nolint:contextcheck // the look into the ledger has the test's own
			return nil
		})
		_, err := h.try(work, role)
		if !swept.State.Final() {
			t.Fatalf("the intent is %s long after its horizon", swept.State)
		}
		if err == nil || h.meter.issued != 0 {
			t.Fatal("handed out")
		}
		h.complete(work)
		if role == "vault" {
			h.gone()
		}
	})
}

// TestCompleteRacesIssue: rules 2 and 6 with everything at once. Whatever was handed out and whatever was not, nothing is
// alive afterwards.
func TestCompleteRacesIssue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, m := range []*plugintest.Memory{h.plain, h.horizon, h.vault.Memory} {
			var mu sync.Mutex
			n := 0
			m.Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
				mu.Lock()
				n++
				delay := time.Duration(n) * time.Millisecond
				mu.Unlock()
				pass(delay)
				return nil
			})
		}
		for range 5 {
			work := h.declare(kinds()...)
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() {
					if _, err := h.try(work, kinds()[i%len(kinds())]); err != nil {
						want(t, err, fault.TaskClosed)
					}
				})
			}
			wg.Go(func() {
				pass(2 * time.Millisecond)
				h.complete(work)
			})
			wg.Wait()
			h.until(longWait, func() bool { return h.task(work.ID).State == task.Closed })
			h.gone()
		}
		if h.meter.issued == 0 || h.meter.issued == 50 {
			t.Errorf("%d of 50 were handed out; the race was none", h.meter.issued)
		}
	})
}

// TestDeadlineTooClose: rule 5. A task with less than the issue's timeout left is issued nothing.
func TestDeadlineTooClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		d := declaration(newID(t), "plain")
		d.TTL = 30 * time.Second
		out, err := h.broker.Declare(t.Context(), agent("a"), d)
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Until(out.Task.NotAfter) - broker.IssueTimeout)
		h.issue(out.Task, "plain")
		pass(time.Millisecond)
		_, err = h.try(out.Task, "plain")
		classed(t, wanted(t, err, fault.DeadlineTooClose), "deadline", "")
		pass(broker.IssueTimeout)
		_, err = h.try(out.Task, "plain")
		want(t, err, fault.TaskExpired)
		h.until(time.Minute, func() bool { return h.task(out.Task.ID).State == task.Closed })
		if why := h.task(out.Task.ID).CloseReason; why != task.Expired {
			t.Errorf("closed as %s", why)
		}
		_, err = h.try(out.Task, "plain")
		want(t, err, fault.TaskExpired)
		h.gone()
	})
}

// atWorst returns until when the credential of the only intent could work, which its task says while nobody knows more.
func (h *house) atWorst(role string) time.Time {
	h.tb.Helper()
	worst := h.only().UsableUntil
	if said := lease.Summarise(h.leases()).UsableUntil; role == "vault" && (worst.IsZero() || !said.Equal(worst)) {
		h.tb.Errorf("usable at worst until %s, and the task says %s", worst, said)
	}
	return worst
}

// TestLostAnswerIsSwept: rule 5. An issue call that hangs ends after its timeout. What it may have brought to life, then
// or later, is swept after its deadline plus the horizon, and never before.
func TestLostAnswerIsSwept(t *testing.T) {
	faults := map[string]struct {
		inject func(m *plugintest.Memory)
		takes  time.Duration
		proof  map[string]plugins.Proof
	}{
		"hangs": {
			func(m *plugintest.Memory) { m.HangNext(plugintest.OpIssue) }, broker.IssueTimeout,
			map[string]plugins.Proof{"vault": plugins.Swept, "horizon": plugins.NotIssued},
		},
		"late": {
			func(m *plugintest.Memory) { m.LateNext(plugintest.OpIssue, broker.IssueTimeout+horizon-time.Second) },
			broker.IssueTimeout,
			map[string]plugins.Proof{"vault": plugins.ReadBack, "horizon": plugins.ReadBack},
		},
		"lost": {
			func(m *plugintest.Memory) { m.LoseNext(plugintest.OpIssue) }, 0,
			map[string]plugins.Proof{"vault": plugins.ReadBack, "horizon": plugins.ReadBack},
		},
	}
	for name, tc := range faults {
		t.Run(name, func(t *testing.T) {
			eachKind(t, []string{"horizon", "vault"}, func(h *house, role string) {
				t := h.tb
				work := h.declare(role)
				tc.inject(h.memoryOf(role))
				start := time.Now()
				_, err := h.try(work, role)
				f := wanted(t, err, fault.BackendUnavailable)
				if took := time.Since(start); took != tc.takes || f.RetryAfter == 0 {
					t.Errorf("took %s, retry after %s", took, f.RetryAfter)
				}
				// The task closes meanwhile and waits for the intent.
				if _, err := h.broker.Complete(t.Context(), agent("a"), ref(work), task.Completed, 0); err != nil {
					t.Fatal(err)
				}
				sweep := start.Add(broker.IssueTimeout + horizon)
				pass(time.Until(sweep) - time.Millisecond)
				synctest.Wait()
				worst := h.atWorst(role)
				if l := h.only(); l.State != lease.Intent || h.memoryOf(role).Calls(plugintest.OpRevoke) != 0 {
					t.Errorf("the intent is %s before its horizon, %d revokes", l.State, h.memoryOf(role).Calls(plugintest.OpRevoke))
				}
				if state := h.task(work.ID).State; state != task.Closing {
					t.Errorf("the task is %s with an open intent", state)
				}
				h.until(time.Minute, func() bool { return h.task(work.ID).State == task.Closed })
				l := h.only()
				if l.Proof != tc.proof[role] || !l.Uncertain || l.RevokedAt.Before(sweep) {
					t.Errorf("swept lease %+v, want the proof %s", l, tc.proof[role])
				}
				if l.Proof == plugins.Swept && !l.UsableUntil.Equal(worst) {
					t.Errorf("swept, but counted as usable until %s, not %s", l.UsableUntil, worst)
				}
				h.gone()
				if rec := h.recorded(audit.LeaseFailed, l.ID.String()); len(rec) != 1 || rec[0].Reason != "outcome_unknown" {
					t.Errorf("records of the failure: %+v", rec)
				}
			})
		})
	}
}

// TestRefusedIssueEndsAtOnce: what a backend certainly did not make needs no horizon.
func TestRefusedIssueEndsAtOnce(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		for cause, reason := range map[error]fault.Reason{
			errors.Join(plugins.ErrNotIssued, plugins.ErrUnavailable):   fault.BackendUnavailable,
			errors.Join(plugins.ErrNotIssued, plugins.ErrSealed):        fault.BackendUnavailable,
			errors.Join(plugins.ErrNotIssued, plugins.ErrMisconfigured): fault.BackendMisconfigured,
			plugins.ErrNotIssued: fault.BackendMisconfigured,
			&plugins.RejectedError{Field: "csr", Problem: "too small"}:        fault.CSRInvalid,
			&plugins.RejectedError{Field: "parameters.x", Problem: "too big"}: fault.ParameterInvalid,
		} {
			h.memoryOf(role).FailNext(plugintest.OpIssue, cause)
			_, err := h.try(work, role)
			f := wanted(t, err, reason)
			if says := strings.HasSuffix(f.Message, " is sealed, retry in 5 s; nothing was issued"); says != errors.Is(cause, plugins.ErrSealed) {
				t.Errorf("%v is told as %q", cause, f.Message)
			}
			if class := map[fault.Reason]string{fault.CSRInvalid: "csr", fault.ParameterInvalid: "parameter"}[reason]; class != "" {
				classed(t, f, class, "")
			}
		}
		h.until(time.Second, func() bool {
			for _, l := range h.leases() {
				if l.Proof != plugins.NotIssued {
					return false
				}
			}
			return true
		})
		h.gone()
		if n := h.vault.Tokens(); n != 0 {
			t.Errorf("%d tokens are left", n)
		}
		if n := len(h.recorded(audit.LeaseFailed, "")) + len(h.recorded(audit.LeaseDenied, "")); n < 6 {
			t.Errorf("%d records of 6 failures", n)
		}
	})
}

// TestPrepareFails: nothing is in the ledger of what never got a handle.
func TestPrepareFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		h.vault.HangNext(plugintest.OpPrepare)
		start := time.Now()
		_, err := h.try(work, "vault")
		want(t, err, fault.BackendUnavailable)
		if took := time.Since(start); took != broker.IssueTimeout {
			t.Errorf("took %s", took)
		}
		h.vault.Break()
		_, err = h.try(work, "vault")
		want(t, err, fault.BackendUnavailable)
		if n := len(h.leases()); n != 0 || h.vault.Calls(plugintest.OpIssue) != 0 {
			t.Errorf("%d leases, %d calls", n, h.vault.Calls(plugintest.OpIssue))
		}
		if n := len(h.recorded(audit.LeaseFailed, "")); n != 2 {
			t.Errorf("%d records of two failures", n)
		}
	})
}

// TestUnknownErrorOfABackend: what is not classified is internal, and swept like everything of unknown outcome.
func TestUnknownErrorOfABackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		h.vault.FailNext(plugintest.OpIssue, errors.New("a secret text"))
		_, err := h.try(work, "vault")
		if f := wanted(t, err, fault.Internal); strings.Contains(f.Message, "secret") {
			t.Errorf("message %q", f.Message)
		}
		h.complete(work)
		if l := h.only(); l.Proof != plugins.Swept {
			t.Errorf("proof %s", l.Proof)
		}
	})
}

// TestClosingWaitsForNobody: rule 6. With an issue in flight that hangs, what is ACTIVE ends at once.
func TestClosingWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault", "plain")
		held := h.issue(work, "plain")
		h.vault.HangNext(plugintest.OpIssue)
		answered := make(chan error, 1)
		go func() {
			_, err := h.try(work, "vault")
			answered <- err
		}()
		synctest.Wait()
		start := time.Now()
		out, err := h.broker.Complete(t.Context(), agent("a"), ref(work), task.Completed, time.Second)
		if err != nil || out.Task.State != task.Closing {
			t.Fatalf("task %s, %v", out.Task.State, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("completing took %s with a wait of a second", took)
		}
		if len(h.plain.Alive()) != 0 || out.Task.Summary.Final != 1 || out.Task.Summary.Leases != 2 {
			t.Errorf("summary %+v; the lease %s was to end at once", out.Task.Summary, held.Lease.ID)
		}
		want(t, <-answered, fault.BackendUnavailable)
		_, err = h.try(work, "plain")
		want(t, err, fault.TaskClosed)
		h.complete(work)
		h.gone()
	})
}

// TestIssueOutlivesItsCaller: a caller that goes away changes nothing about what is recorded.
func TestIssueOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		ctx, cancel := context.WithCancel(t.Context())
		h.vault.Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
			cancel()
			return nil
		})
		if _, err := h.broker.Issue(ctx, agent("a"), wish(t, work, "vault")); err != nil {
			t.Fatal(err)
		}
		if l := h.only(); l.State != lease.Active {
			t.Errorf("lease %s", l.State)
		}
	})
}

// TestIssueIsCalledOnce: rule 13. The same request is never issued for twice, in turn or at once.
func TestIssueIsCalledOnce(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		req := wish(t, work, role)
		first, err := h.broker.Issue(t.Context(), agent("a"), req)
		if err != nil {
			t.Fatal(err)
		}
		req.Task = broker.TaskRef{ShortName: work.ShortName}
		h.again(t, req, first)
		other := req
		other.TTL = time.Minute
		_, err = h.broker.Issue(t.Context(), agent("a"), other)
		if f := wanted(t, err, fault.RequestIDReused); f.Metadata["name"] != "leases/"+first.Lease.ID.String() {
			t.Errorf("metadata %v", f.Metadata)
		}
		if n := h.memoryOf(role).Calls(plugintest.OpIssue); n != 1 || len(h.leases()) != 1 {
			t.Errorf("issue was called %d times for %d leases", n, len(h.leases()))
		}
		h.complete(work)
		_, err = h.broker.Issue(t.Context(), agent("a"), req)
		want(t, err, fault.AlreadyIssued)
	})
}

// again repeats a request that was answered.
func (h *house) again(tb testing.TB, req broker.IssueRequest, first broker.Issued) {
	tb.Helper()
	out, err := h.broker.Issue(tb.Context(), agent("a"), req)
	if first.Credential.Chain == nil {
		f := wanted(tb, err, fault.AlreadyIssued)
		if f.Metadata["lease"] != "leases/"+first.Lease.ID.String() {
			tb.Errorf("metadata %v", f.Metadata)
		}
		return
	}
	if err != nil || out.Lease.ID != first.Lease.ID || string(out.Credential.Chain[0]) != string(first.Credential.Chain[0]) ||
		string(out.Credential.Bundle[0]) != string(first.Credential.Bundle[0]) || len(out.Checkpoint) == 0 {
		tb.Errorf("again: %+v, %v", out, err)
	}
}

// TestSameRequestAtOnce: rule 13 with many connections. One lease comes of it, and nothing else is alive.
func TestSameRequestAtOnce(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		req := wish(t, work, role)
		h.memoryOf(role).Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
			pass(time.Second) // all are under way
			return nil
		})
		var wg sync.WaitGroup
		var mu sync.Mutex
		answers := map[plugins.LeaseID]int{}
		for range 8 {
			wg.Go(func() {
				out, err := h.broker.Issue(t.Context(), agent("a"), req)
				if err != nil {
					want(t, err, fault.AlreadyIssued)
					return
				}
				mu.Lock()
				answers[out.Lease.ID]++
				mu.Unlock()
			})
		}
		wg.Wait()
		l := h.only()
		if len(answers) != 1 || answers[l.ID] == 0 || h.alive() != 1 {
			t.Errorf("answers %v for lease %s, %d alive", answers, l.ID, h.alive())
		}
		if role == "plain-cert" && answers[l.ID] != 8 {
			t.Errorf("%d of 8 got the certificate", answers[l.ID])
		}
		h.complete(work)
		h.gone()
		if n := h.vault.Tokens(); n != 0 {
			t.Errorf("%d tokens are left", n)
		}
	})
}

// TestLiveLeasesAreCountedInTheTransaction: many at once get no more than the profile allows.
func TestLiveLeasesAreCountedInTheTransaction(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		h.memoryOf(role).Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
			pass(time.Second)
			return nil
		})
		var wg sync.WaitGroup
		for range 25 {
			wg.Go(func() {
				if _, err := h.try(work, role); err != nil {
					classed(t, wanted(t, err, fault.TooManyLeases), "limit", "10")
				}
			})
		}
		wg.Wait()
		if h.meter.issued != 10 || h.alive() != 10 || h.meter.count(fault.TooManyLeases) != 15 {
			t.Errorf("%d handed out, %d alive, %d refused", h.meter.issued, h.alive(), h.meter.count(fault.TooManyLeases))
		}
		h.complete(work)
		h.gone()
		if n := h.vault.Tokens(); n != 0 {
			t.Errorf("%d tokens are left", n)
		}
	})
}
