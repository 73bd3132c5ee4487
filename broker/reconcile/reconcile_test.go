package reconcile_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/zap/zapcore"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // a house is made of concrete things
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func TestNothingDiffers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "orders-db", "vault-like")
		agent.Issue(t, task, "orders-db")
		agent.Issue(t, task, "vault-like")
		pass(grace)
		for _, backend := range []string{"memory/a", "preparing/a"} {
			inv := f.compare(t, reconcile.Order{Backend: backend})
			if inv.Held != 1 || inv.Matched != 1 || inv.Source != "list" || len(inv.Gaps) != 0 {
				t.Errorf("%+v", inv)
			}
			want(t, inv)
			if got := f.records(t, backend); len(got) != 0 {
				t.Errorf("recorded %v", got)
			}
			if diff := cmp.Diff([]reconcile.Counts{{}}, f.meter.of(backend)); diff != "" {
				t.Errorf("metrics: %s", diff)
			}
		}
		if n := f.logs.Len(); n != 0 {
			t.Errorf("logged %v", f.logs.All())
		}
	})
}

// What somebody made under a role of Stint is reported when it is older than an issue in flight, and ended only when told.
func TestUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db")
		cred := outside(t, f.Memory, newID(), "orders-db")
		foreign := outside(t, f.Memory, newID(), "others")

		if inv := f.compare(t, reconcile.Order{RevokeUnknown: true}); inv.InFlight != 1 || inv.Matched != 1 || len(inv.Findings) != 0 {
			t.Fatalf("too early: %+v", inv)
		}
		pass(grace)
		inv := f.compare(t, reconcile.Order{Settle: true})
		want(t, inv, "unknown ")
		got := inv.Findings[0]
		if got.IssuedAt.IsZero() || got.Key == "" {
			t.Errorf("found %+v", got)
		}
		expected := reconcile.Finding{
			Kind: reconcile.Unknown, Role: "orders-db", PublicRef: cred.PublicRef, Key: got.Key, IssuedAt: got.IssuedAt, NotAfter: cred.NotAfter,
		}
		if diff := cmp.Diff(expected, got, cmpopts.IgnoreUnexported(reconcile.Finding{})); diff != "" {
			t.Errorf("found (-want +got):\n%s", diff)
		}
		if !f.Memory.Works(t.Context(), cred) {
			t.Fatal("it was ended without being told to")
		}
		errs := f.logs.FilterLevelExact(zapcore.ErrorLevel).Len()
		if diff := cmp.Diff([]reconcile.Counts{{}, {Unknown: 1}}, f.meter.of("memory/a")); diff != "" || errs != 1 {
			t.Errorf("%d errors are logged; metrics: %s", errs, diff)
		}

		inv = f.compare(t, reconcile.Order{RevokeUnknown: true})
		want(t, inv, "unknown revoked")
		if f.Memory.Works(t.Context(), cred) || inv.Findings[0].Proof != plugins.ReadBack || inv.Open() != (reconcile.Counts{}) {
			t.Errorf("not ended: %+v", inv)
		}
		want(t, f.compare(t, reconcile.Order{}))
		if !f.Memory.Works(t.Context(), foreign) || len(f.Memory.Alive()) != 2 {
			t.Error("something else was ended")
		}
		wantUnknownRecorded(t, f, cred.PublicRef)
	})
}

// wantUnknownRecorded expects the records of one unknown credential that was found, found again, and revoked.
func wantUnknownRecorded(t *testing.T, f fixture, ref string) {
	t.Helper()
	const alice = " spiffe://example.org/ops/alice "
	if diff := cmp.Diff([]string{
		"inventory.differs" + alice + "1 unknown, 0 alive after their end, 0 gone ",
		"stray.ending" + alice + "unknown " + ref, "stray.ended" + alice + "unknown " + ref,
		"inventory.differs" + alice + "1 unknown, 0 alive after their end, 0 gone ",
	}, f.records(t, "memory/a")); diff != "" {
		t.Errorf("records: %s", diff)
	}
}

// What is gone at the backend stays ACTIVE until somebody settles it; teardown then proves it.
func TestGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "orders-db")
		id := idOf(t, agent.Issue(t, task, "orders-db").GetLease())
		agent.Issue(t, task, "orders-db")
		f.Memory.Drop(id)

		inv := f.compare(t, reconcile.Order{RevokeUnknown: true})
		want(t, inv, "gone ")
		if inv.Findings[0].Lease.ID != id || f.row(t, id).State != lease.Active || inv.Matched != 1 {
			t.Fatalf("%+v", inv)
		}
		if f.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 0 {
			t.Error("what is gone is no error")
		}
		want(t, f.compare(t, reconcile.Order{Settle: true}), "gone settled")
		pass(5 * time.Second)
		if l := f.row(t, id); l.State != lease.Revoked || l.Proof != plugins.LostAtBackend || l.Cause != lease.Missing {
			t.Errorf("the lease is %s by %s because of %s", l.State, l.Proof, l.Cause)
		}
		want(t, f.compare(t, reconcile.Order{}))
		if len(f.Memory.Alive()) != 1 {
			t.Error("the other one was ended too")
		}
	})
}

// What has ended by the ledger and works is no unknown: the ledger is wrong, and says whose it was.
func TestEndedAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		l := agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db").GetLease()
		if _, err := agent.Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: l.GetName()}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		id := idOf(t, l)
		if f.row(t, id).State != lease.Revoked {
			t.Fatal("not revoked")
		}
		want(t, f.compare(t, reconcile.Order{}))
		cred := outside(t, f.Memory, id, "orders-db") // as a backend that was restored from a backup has it
		inv := f.compare(t, reconcile.Order{})
		want(t, inv, "ended_alive ")
		if inv.Findings[0].Lease.ID != id {
			t.Errorf("%+v", inv.Findings[0])
		}
		want(t, f.compare(t, reconcile.Order{RevokeUnknown: true}), "ended_alive revoked")
		if f.Memory.Works(t.Context(), cred) {
			t.Error("it still works")
		}
	})
}

// A backend that does not answer is a gap, and no reason to believe that anything is gone.
func TestBackendDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db")
		f.Memory.Break()
		inv := f.compare(t, reconcile.Order{Settle: true, RevokeUnknown: true})
		f.Memory.Heal()
		want(t, inv)
		if len(inv.Gaps) != 3 || inv.Gaps[0].Permanent || !strings.Contains(inv.Gaps[0].Problem, "unavailable") {
			t.Errorf("gaps %+v", inv.Gaps)
		}
		if len(f.meter.of("memory/a")) != 0 {
			t.Error("metrics say that it was compared")
		}
	})
}

// A revoke that fails is told, and nothing is said to have ended.
func TestRevokeFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		cred := outside(t, f.Memory, newID(), "orders-db")
		pass(grace)
		f.Memory.FailNext(plugintest.OpRevoke, plugins.ErrUnavailable)
		inv := f.compare(t, reconcile.Order{RevokeUnknown: true})
		want(t, inv, "unknown failed")
		if inv.Findings[0].Problem != plugins.ErrUnavailable.Error() || inv.Open().Unknown != 1 {
			t.Errorf("%+v", inv)
		}
		got := f.records(t, "memory/a")
		if len(got) != 2 || !strings.HasPrefix(got[0], "stray.ending") || !f.Memory.Works(t.Context(), cred) {
			t.Errorf("recorded %v", got)
		}
	})
}

// Credentials that end while backend and ledger are compared are no difference.
func TestMovesWhileComparing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "orders-db", "vault-like")
		for range 20 {
			agent.Issue(t, task, "orders-db")
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 20 {
				agent.Issue(t, task, "orders-db")
			}
			if _, err := agent.Tasks.CompleteTask(t.Context(), &stintv1.CompleteTaskRequest{Name: task.GetName()}); err != nil {
				t.Error(err)
			}
		}()
		for running := true; running; {
			want(t, f.compare(t, reconcile.Order{}))
			select {
			case <-done:
				running = false
			default:
			}
		}
	})
}

func TestRunComparesNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 4*time.Minute, nil)
		cred := outside(t, f.Memory, newID(), "orders-db")
		done := make(chan error)
		ctx, cancel := contextOf(t)
		go func() { done <- f.rec.Run(ctx) }()
		pass(2 * time.Minute)
		if diff := cmp.Diff([]reconcile.Counts{{}, {Unknown: 1}}, f.meter.of("memory/a")); diff != "" {
			t.Errorf("soon after the start, while it may be in flight, and a little later: %s", diff)
		}
		pass(4 * time.Minute)
		if diff := cmp.Diff([]reconcile.Counts{{}, {Unknown: 1}, {}}, f.meter.of("memory/a")); diff != "" {
			t.Errorf("by the next it has ended by itself: %s", diff)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := f.records(t, "memory/a"); len(got) != 1 || !strings.HasPrefix(got[0], "inventory.differs stint ") {
			t.Errorf("recorded %v for %s", got, cred.PublicRef)
		}
	})
}

// forgetful is a CA that has lost the revocation of a certificate which has ended by the ledger.
func forgetful(t *testing.T) (f fixture, ca *ca, over lease.ID) {
	t.Helper()
	ca = newCA(t)
	f = fresh(t, time.Hour, map[string]plugins.Backend{"ca/a": ca, "plain/a": plain{plugintest.NewMemory(plugintest.MemoryConfig{})}})
	over = f.issue(t)
	if _, err := f.As(t, "/ops/alice").Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: "leases/" + over.String()}); err != nil {
		t.Fatal(err)
	}
	pass(3 * time.Second)
	ca.set(over, false)
	return f, ca, over
}

// What has ended by the ledger and is alive all the same is ended again without being told to, also where its role is gone.
func TestRunEndsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _, over := forgetful(t)
		f.cfg.Roles = func() []resource.Role { return nil }
		done := make(chan error)
		ctx, cancel := contextOf(t)
		go func() { done <- reconcile.New(f.cfg).Run(ctx) }()
		pass(15 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a"}))
		if diff := cmp.Diff([]string{
			"stray.ending stint ended_alive m-" + over.String(), "stray.ended stint ended_alive m-" + over.String(),
			"inventory.differs stint 0 unknown, 1 alive after their end, 0 gone ",
		}, f.records(t, "ca/a")); diff != "" {
			t.Errorf("records: %s", diff)
		}
		if f.logs.FilterMessageSnippet("it was ended").Len() != 1 {
			t.Errorf("logged %v", f.logs.All())
		}
	})
}

// A CA that does not answer at the first looks is not forgotten for an hour: what it has lost works meanwhile.
func TestRunLooksAgainSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ca, over := forgetful(t)
		ca.fail(time.Minute, true)
		done := make(chan error)
		ctx, cancel := contextOf(t)
		go func() { done <- f.rec.Run(ctx) }()
		pass(30 * time.Second) // after the first look, and before the second that there is anyway
		ca.fail(time.Minute, false)
		pass(30 * time.Second)
		if !ca.holds(over) {
			t.Error("what a CA has lost is not revoked again soon after it answers")
		}
		before := len(f.meter.of("ca/a"))
		pass(30 * time.Minute)
		if n := len(f.meter.of("ca/a")) - before; n != 1 { // the second look
			t.Errorf("all is well, and it looked %d times in half an hour", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRunCanBeOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		done := make(chan error)
		ctx, cancel := contextOf(t)
		go func() { done <- f.rec.Run(ctx) }()
		pass(5 * time.Minute)
		cancel()
		if err := <-done; err != nil || len(f.meter.of("memory/a")) != 0 {
			t.Errorf("%v, %v", err, f.meter.of("memory/a"))
		}
	})
}

func TestUnknownBackend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, err := fresh(t, 0, nil).rec.Reconcile(t.Context(), reconcile.Order{Backend: "vault/nowhere"})
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || f.Reason != fault.NotFound {
			t.Errorf("got %v", err)
		}
	})
}

// Users of a database are held against public references, as of when they were listed.
func TestMatchUsers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t, 0, nil)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "orders-db")
		open, over := agent.Issue(t, task, "orders-db").GetLease(), agent.Issue(t, task, "orders-db").GetLease()
		before := time.Now()
		pass(time.Second)
		if _, err := agent.Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: over.GetName()}); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		names := []string{"v-nobody", open.GetPublicRef(), over.GetPublicRef(), strings.TrimPrefix(open.GetName(), "leases/")}
		got, err := f.rec.MatchUsers(t.Context(), names, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var strays []string
		for _, s := range got.Strays {
			strays = append(strays, string(s.Kind)+" "+s.Name)
		}
		// the last name is a lease's ID, and no user's
		if diff := cmp.Diff([]string{"unknown v-nobody", "ended_alive " + names[2], "unknown " + names[3]}, strays); diff != "" || got.Matched != 1 {
			t.Errorf("%+v: %s", got, diff)
		}
		got, err = f.rec.MatchUsers(t.Context(), names[1:3], before)
		if err != nil || got.Matched != 2 || len(got.Strays) != 0 {
			t.Errorf("listed before the end: %+v, %v", got, err)
		}
	})
}
