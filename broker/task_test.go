package broker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// TestDeclareAgain: the same request returns the same task, in turn or at once; another body is refused.
func TestDeclareAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		d := declaration(newID(t), "plain", "vault")
		ids := make([]task.ID, 8)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				out, err := h.broker.Declare(t.Context(), agent("a"), d)
				if err != nil || len(out.Checkpoint) == 0 {
					t.Error(err)
				}
				ids[i] = out.Task.ID
			})
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Errorf("tasks %s and %s of one request", id, ids[0])
			}
		}
		other := d
		other.Purpose = "something else"
		_, err := h.broker.Declare(t.Context(), agent("a"), other)
		want(t, err, fault.RequestIDReused)
		out, err := h.broker.Declare(t.Context(), agent("b"), d)
		if err != nil || out.Task.ID == ids[0] {
			t.Errorf("another agent with the same request ID: %v", err)
		}
		if n := len(h.recorded(audit.TaskDeclared, "")); n != 2 {
			t.Errorf("%d records of two tasks", n)
		}
	})
}

// TestValidateOnly decides and opens nothing, and does not use up the request ID.
func TestValidateOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		d := declaration(newID(t), "plain")
		d.ValidateOnly, d.TTL = true, 5*time.Hour
		out, err := h.broker.Declare(t.Context(), agent("a"), d)
		if err != nil || len(out.Clamps) != 1 || len(out.Task.Grants) != 1 {
			t.Errorf("%+v, %v", out, err)
		}
		if all, _ := h.broker.Tasks(t.Context(), agent("a"), ledger.TaskFilter{Limit: 10}); len(all) != 0 {
			t.Errorf("opened %+v", all)
		}
		d.ValidateOnly = false
		if _, err = h.broker.Declare(t.Context(), agent("a"), d); err != nil {
			t.Error(err)
		}
	})
}

// TestLiveTasksAreCountedInTheTransaction: many at once open no more than the profile allows, and closing makes room.
func TestLiveTasksAreCountedInTheTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var open []task.Task
		for range 12 {
			wg.Go(func() {
				out, err := h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "plain"))
				if err != nil {
					classed(t, wanted(t, err, fault.TooManyTasks), "limit", "5")
					return
				}
				mu.Lock()
				open = append(open, out.Task)
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(open) != 5 || h.meter.count(fault.TooManyTasks) != 7 {
			t.Fatalf("%d tasks, want 5", len(open))
		}
		h.complete(open[0])
		h.declare("plain")
	})
}

// TestDeniedDeclaration is a record with who, why and which policies, and no task.
func TestDeniedDeclaration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, err := h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "plain", "payroll"))
		f := wanted(t, err, fault.RoleOutsideProfile)
		rec := h.recorded(audit.TaskDenied, "")
		if len(rec) != 1 || rec[0].Actor.ID != "spiffe://example.org/agent/a" || rec[0].Actor.Method != string(attestor.MethodX509) ||
			rec[0].Reason != string(fault.RoleOutsideProfile) || rec[0].Profile != "agents" || rec[0].PolicySet == "" ||
			len(rec[0].Roles) != 2 || rec[0].Request != "request-of-a" || f.Metadata["record"] == "" {
			t.Errorf("records %+v of %+v", rec, f.Metadata)
		}
		_, err = h.broker.Declare(t.Context(), broker.Caller{Identity: identity("/nobody")}, declaration(newID(t), "plain"))
		want(t, err, fault.NoProfile)
	})
}

// TestTasksAreTheirAgentsOwn: nobody else sees or ends a task or a lease; an operator does.
func TestTasksAreTheirAgentsOwn(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		ctx, b := t.Context(), h.broker
		work := h.declare("plain")
		l := h.issue(work, "plain").Lease
		other := agent("b")
		_, err := b.Task(ctx, other, ref(work))
		want(t, err, fault.NotFound)
		_, err = b.Lease(ctx, other, l.ID)
		want(t, err, fault.NotFound)
		_, _, err = b.RevokeLease(ctx, other, l.ID, 0)
		want(t, err, fault.NotFound)
		_, err = b.Complete(ctx, other, ref(work), task.Completed, 0)
		want(t, err, fault.NotFound)
		_, _, err = b.KeepAlive(ctx, other, ref(work))
		want(t, err, fault.NotFound)
		_, err = b.Issue(ctx, other, wish(t, work, "plain"))
		want(t, err, fault.NotFound)
		err = b.Watch(ctx, other, ref(work), func(task.Task) error { return errors.New("sent") })
		want(t, err, fault.NotFound)
		byTask := ref(work)
		_, err = b.Leases(ctx, other, &byTask, ledger.LeaseFilter{Limit: 5})
		want(t, err, fault.NotFound)
		local := broker.Caller{Identity: attestor.Identity{Method: attestor.MethodLocal, Local: attestor.Local{UID: 7}}, Admin: attestor.RoleOperator}
		if tasks, cause := b.Tasks(ctx, local, ledger.TaskFilter{Limit: 5}); cause != nil || len(tasks) != 0 {
			t.Errorf("a local peer owns %+v, %v", tasks, cause)
		}
		if leases, cause := b.Leases(ctx, local, nil, ledger.LeaseFilter{Limit: 5}); cause != nil || len(leases) != 0 {
			t.Errorf("a local peer owns %+v, %v", leases, cause)
		}
		mine, err := b.Leases(ctx, agent("a"), &byTask, ledger.LeaseFilter{Limit: 5})
		if err != nil || len(mine) != 1 || mine[0].ID != l.ID {
			t.Errorf("own leases %+v, %v", mine, err)
		}
		all, err := b.AllLeases(ctx, nil, ledger.LeaseFilter{Limit: 5})
		if err != nil || len(all) != 1 {
			t.Errorf("all leases %+v, %v", all, err)
		}
		ended, err := b.Stop(ctx, local, broker.TaskRef{ShortName: work.ShortName}, "Jane Doe asked", longWait)
		if err != nil || ended.Task.CloseReason != task.Stopped {
			t.Errorf("stopped: %+v, %v", ended, err)
		}
		rec := h.recorded(audit.TaskClosing, "")
		if len(rec) != 1 || rec[0].Actor.ID != "uid:7" || rec[0].Actor.UID == nil || *rec[0].Actor.UID != 7 || len(rec[0].Hashes) != 1 {
			t.Errorf("records %+v", rec)
		}
	})
}

// TestWhoIs finds a task and a lease by whatever was found somewhere.
func TestWhoIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		l := h.issue(work, "vault").Lease
		hex := l.ID.String()
		dashed := hex[:8] + "-" + hex[8:12] + "-" + hex[12:16] + "-" + hex[16:20] + "-" + hex[20:]
		for _, query := range []string{
			hex, strings.ToLower(dashed), "leases/" + hex, "serial=" + hex, string(l.Handle), l.PublicRef,
		} {
			got, found, err := h.broker.WhoIs(t.Context(), query)
			if err != nil || found == nil || found.ID != l.ID || got.ID != work.ID {
				t.Errorf("%s: %+v, %v", query, found, err)
			}
		}
		for _, query := range []string{
			work.ShortName, "tasks/" + work.ID.String(), "spiffe://tasks.example.org/agent/example.org/agent/a/task/" + work.ID.String(),
		} {
			got, found, err := h.broker.WhoIs(t.Context(), query)
			if err != nil || found != nil || got.ID != work.ID {
				t.Errorf("%s: %+v, %v", query, got, err)
			}
		}
		for _, query := range []string{"", "a/b", "nothing-like-it", strings.Repeat("0", 32)} {
			_, _, err := h.broker.WhoIs(t.Context(), query)
			want(t, err, fault.NotFound)
		}
	})
}

// TestRevokeLease ends one credential, says so in the log, and leaves the task open; repeating it changes nothing.
func TestRevokeLease(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		l := h.issue(work, role).Lease
		for range 2 {
			got, checkpoint, err := h.broker.RevokeLease(t.Context(), agent("a"), l.ID, longWait)
			if err != nil || got.State != lease.Revoked || got.Cause != lease.Requested || len(checkpoint) == 0 {
				t.Fatalf("%+v, %v", got, err)
			}
		}
		h.gone()
		rec := h.recorded(audit.LeaseEnding, l.ID.String())
		if len(rec) != 1 || rec[0].Actor.ID != "spiffe://example.org/agent/a" || rec[0].Reason != string(lease.Requested) {
			t.Errorf("records %+v", rec)
		}
		if h.task(work.ID).State != task.Active {
			t.Error("the task ended with a lease")
		}
	})
}

// TestWaitsEnd: waiting for an end stops when its time is over or the caller goes away; the end goes on.
func TestWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain")
		l := h.issue(work, "plain").Lease
		h.plain.Break()
		start := time.Now()
		got, _, err := h.broker.RevokeLease(t.Context(), agent("a"), l.ID, 3*time.Second)
		if err != nil || got.State != lease.Revoking || time.Since(start) != 3*time.Second {
			t.Errorf("%+v, %v after %s", got, err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, _, err = h.broker.RevokeLease(ctx, agent("a"), l.ID, longWait); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("revoke: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err = h.broker.Complete(ctx, agent("a"), ref(work), task.Failed, longWait); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("complete: %v", err)
		}
		h.plain.Heal()
		if out := h.complete(work); out.Task.CloseReason != task.Failed {
			t.Errorf("closed as %s; the first reason counts", out.Task.CloseReason)
		}
	})
}

// TestAbandoned: rule 11. No call and no open watch for the idle timeout, and the task ends with all it was given.
func TestAbandoned(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		open := func(name string) task.Task {
			d := declaration(newID(t), "plain")
			d.IdleTimeout = time.Minute
			out, err := h.broker.Declare(t.Context(), agent(name), d)
			if err != nil || out.Task.IdleTimeout != time.Minute {
				t.Fatal(out.Task.IdleTimeout, err)
			}
			return out.Task
		}
		quiet, kept, watched := open("a"), open("b"), open("c")
		h.issue(quiet, "plain")
		ctx, cancel := context.WithCancel(t.Context())
		seen := make(chan error, 1)
		var states []task.State
		go func() {
			seen <- h.broker.Watch(ctx, agent("c"), ref(watched), func(t task.Task) error {
				states = append(states, t.State)
				return nil
			})
		}()
		for range 6 {
			pass(30 * time.Second)
			_, until, err := h.broker.KeepAlive(t.Context(), agent("b"), ref(kept))
			if err != nil || !until.Equal(time.Now().Add(time.Minute)) || !h.broker.LastSeen(kept).Equal(time.Now()) {
				t.Errorf("keep alive until %s, %v", until, err)
			}
		}
		if got := h.task(quiet.ID); got.CloseReason != task.Abandoned {
			t.Errorf("the quiet task: %s, %s", got.State, got.CloseReason)
		}
		h.gone()
		for _, id := range []task.ID{kept.ID, watched.ID} {
			if got := h.task(id); got.State != task.Active {
				t.Errorf("a live task is %s, %s", got.State, got.CloseReason)
			}
		}
		// After a restart the clock starts anew: 50 s of silence before it and 50 s after it abandon nobody.
		cancel()
		if err := <-seen; !errors.Is(err, context.Canceled) {
			t.Errorf("watch: %v", err)
		}
		if slices.ContainsFunc(states, func(s task.State) bool { return s != task.Active }) || len(states) == 0 {
			t.Errorf("watched states %v", states)
		}
		pass(50 * time.Second)
		h.restart()
		pass(50 * time.Second)
		if got := h.task(watched.ID); got.State != task.Active {
			t.Errorf("the restart abandoned a task: %s", got.CloseReason)
		}
		h.until(time.Minute, func() bool { return h.task(watched.ID).State == task.Closed })
		if got := h.task(watched.ID).CloseReason; got != task.Abandoned {
			t.Errorf("closed as %s", got)
		}
		_, until, err := h.broker.KeepAlive(t.Context(), agent("c"), ref(watched))
		if err != nil || !until.IsZero() {
			t.Errorf("kept a closed task alive until %s, %v", until, err)
		}
	})
}

// TestKeepAliveEndsAtTheDeadline: what is promised never goes past the task's own end.
func TestKeepAliveEndsAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		d := declaration(newID(t), "plain")
		d.IdleTimeout, d.TTL = 10*time.Minute, time.Minute
		out, err := h.broker.Declare(t.Context(), agent("a"), d)
		if err != nil {
			t.Fatal(err)
		}
		_, until, err := h.broker.KeepAlive(t.Context(), agent("a"), ref(out.Task))
		if err != nil || !until.Equal(out.Task.NotAfter) {
			t.Errorf("until %s, %v; the task ends at %s", until, err, out.Task.NotAfter)
		}
	})
}

// TestWatch sends every state until the task is CLOSED, and stops when it cannot send.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain")
		h.issue(work, "plain")
		h.plain.HangNext(plugintest.OpRevoke)
		var states []task.State
		done := make(chan error, 1)
		go func() {
			done <- h.broker.Watch(t.Context(), agent("a"), ref(work), func(t task.Task) error {
				states = append(states, t.State)
				return nil
			})
		}()
		synctest.Wait()
		h.complete(work)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if states[0] != task.Active || states[len(states)-1] != task.Closed || states[1] != task.Closing {
			t.Errorf("states %v", states)
		}
		broken := errors.New("the stream broke")
		if err := h.broker.Watch(t.Context(), agent("a"), ref(work), func(task.Task) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("watch: %v", err)
		}
	})
}

// TestDrain: a broker that drains admits nothing new, waits for what is in flight, and goes on ending.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		h.vault.Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
			pass(5 * time.Second)
			return nil
		})
		issued := make(chan error, 1)
		go func() {
			_, err := h.try(work, "vault")
			issued <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.broker.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drained with an issue in flight: %v", err)
		}
		_, err := h.try(work, "vault")
		if f := wanted(t, err, fault.ShuttingDown); f.RetryAfter == 0 {
			t.Error("the caller is not told to try again")
		}
		_, err = h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "plain"))
		want(t, err, fault.ShuttingDown)
		start := time.Now()
		if err = h.broker.Drain(t.Context()); err != nil || time.Since(start) != 4*time.Second {
			t.Errorf("drained after %s: %v", time.Since(start), err)
		}
		if err = <-issued; err != nil {
			t.Errorf("the issue in flight: %v", err)
		}
		if err = h.broker.Drain(t.Context()); err != nil {
			t.Errorf("drained again: %v", err)
		}
		h.complete(work)
		h.gone()
	})
}

// TestRefusalsAreSummed: what is refused faster than it is worth an fsync is counted, and recorded as a sum.
func TestRefusalsAreSummed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for range 100 {
			_, err := h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "payroll"))
			want(t, err, fault.RoleOutsideProfile)
		}
		h.broker.Refused(audit.Actor{ID: "somebody"}, fault.Unauthenticated)
		own := len(h.recorded(audit.TaskDenied, ""))
		if own != 20 {
			t.Errorf("%d records of their own, want 20", own)
		}
		pass(11 * time.Second)
		sums := map[string]int64{}
		for _, r := range h.recorded(audit.CallsRefused, "") {
			sums[r.Actor.ID+" "+r.Reason] += r.Count
		}
		if sums["spiffe://example.org/agent/a ROLE_OUTSIDE_PROFILE"] != 80 || sums["somebody UNAUTHENTICATED"] != 1 || len(sums) != 2 {
			t.Errorf("sums %v", sums)
		}
		if h.meter.count(fault.RoleOutsideProfile) != 100 {
			t.Errorf("%d counted", h.meter.count(fault.RoleOutsideProfile))
		}
		pass(time.Minute)
		_, err := h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "payroll"))
		if f := wanted(t, err, fault.RoleOutsideProfile); f.Metadata["record"] == "" {
			t.Error("no record of its own after a quiet minute")
		}
	})
}

// TestNoSecretIsStored: no byte of a secret, and no free text, is in the ledger's files or in the log's leaves.
func TestNoSecretIsStored(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain", "horizon", "vault", "static")
		var secrets [][]byte
		for _, role := range []string{"plain", "horizon", "vault", "static"} {
			out := h.issue(work, role)
			secrets = append(secrets, bytes.Clone(out.Credential.Fields["password"].Expose()))
		}
		h.plain.LoseNext(plugintest.OpRevoke)
		h.complete(work)
		for _, r := range h.records() {
			for _, s := range append(secrets, []byte("Jane Doe")) {
				if bytes.Contains(mustJSON(t, r), s) {
					t.Errorf("record %+v holds %q", r, s)
				}
			}
			if r.Actor.ID == "" || r.Event == "" || r.Time.IsZero() || r.V != 1 {
				t.Errorf("record %+v says not who, what or when", r)
			}
		}
		seen := 0
		err := filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			for _, s := range secrets {
				if len(s) == 0 || bytes.Contains(raw, s) {
					t.Errorf("%s holds the secret %q", path, s)
				}
			}
			if bytes.Contains(raw, []byte(work.ID.String())) {
				seen++
			}
			return err
		})
		if err != nil || seen == 0 {
			t.Errorf("looked into %d files of the ledger, %v", seen, err)
		}
	})
}

// TestRecordsTellTheStory: who, why and the outcome of each step of a task, in order.
func TestRecordsTellTheStory(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		l := h.issue(work, "vault").Lease
		h.complete(work)
		var story []audit.Event
		for _, r := range h.records() {
			if r.Task != work.ID.String() {
				continue
			}
			story = append(story, r.Event)
			if r.Agent != work.Agent || r.TaskName != work.ShortName {
				t.Errorf("%s of %+v", r.Event, r)
			}
			switch r.Event { //nolint:exhaustive // the others say nothing more
			case audit.TaskDeclared:
				if r.Owner != "platform@example.org" || r.Sponsor != "head@example.org" || r.Manifest == nil || r.PolicySet == "" ||
					len(r.Policies) == 0 || len(r.Roles) != 1 || r.Request != "request-of-a" || len(r.Hashes) == 0 || r.NotAfter.IsZero() {
					t.Errorf("declared: %+v", r)
				}
			case audit.LeaseIntent, audit.LeaseActive:
				if r.Lease != l.ID.String() || r.Role != "vault" || r.Backend != "memory/vault" || r.Owner == "" || r.Profile != "agents" {
					t.Errorf("%s: %+v", r.Event, r)
				}
			case audit.LeaseEnded:
				if r.Ref != l.PublicRef || r.Proof == nil || r.Actor.ID != "stint" {
					t.Errorf("ended: %+v", r)
				}
			}
		}
		want := []audit.Event{
			audit.TaskDeclared, audit.LeaseIntent, audit.LeaseActive, audit.TaskClosing, audit.LeaseEnded, audit.TaskClosed,
		}
		if len(story) != len(want) {
			t.Fatalf("story %v", story)
		}
		for i := range want {
			if story[i] != want[i] {
				t.Errorf("story %v, want %v", story, want)
			}
		}
	})
}
