package reconcile_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zapcore"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // a house is made of concrete things
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// withUsers is a house whose backend preparing/a makes accounts at a system: those of the role vault-like.
func withUsers(t *testing.T, every time.Duration) fixture {
	t.Helper()
	p := plugintest.NewPreparing(plugintest.MemoryConfig{
		Horizon: 10 * time.Second, Systems: []plugins.System{{Name: "orders", Roles: []string{"vault-like"}}},
	})
	h := brokertest.Start(t, brokertest.Config{Backends: map[string]plugins.Backend{
		"preparing/a": p, "memory/a": plugintest.NewMemory(plugintest.MemoryConfig{}),
	}})
	h.Preparing = p
	return reconciled(t, h, every)
}

// users reconciles, and returns the inventory of the system.
func (f fixture) users(t *testing.T, o reconcile.Order) reconcile.Inventory {
	t.Helper()
	o.Backend, o.Actor, o.Request = "preparing/a", operator(), "request-1"
	got, err := f.rec.Reconcile(t.Context(), o)
	if err != nil || len(got) != 2 || got[0].Backend != "preparing/a" || got[1].Backend != "preparing/a/orders" || got[1].Source != "users" {
		t.Fatalf("Reconcile returned %+v, %v", got, err)
	}
	return got[1]
}

// What is at a system and of no lease is unknown, what can be used no more is dead, and what is of a lease and not there is gone.
// Nothing is dropped, whatever the order says.
func TestAccounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "vault-like")
		kept, dropped, over := agent.Issue(t, task, "vault-like").GetLease(), agent.Issue(t, task, "vault-like").GetLease(), agent.Issue(t, task, "vault-like").GetLease()
		if inv := f.users(t, reconcile.Order{}); inv.Held != 3 || inv.Matched != 3 || len(inv.Findings)+len(inv.Gaps) != 0 {
			t.Fatalf("%+v", inv)
		}
		if n := len(f.records(t, "preparing/a/orders")) + f.logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != 0 {
			t.Errorf("%d records and errors of nothing", n)
		}
		if _, err := agent.Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: over.GetName()}); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		until := time.Now().Add(-time.Hour)
		for _, a := range []plugins.Account{{Name: "v-stray"}, {Name: "v-old", NotAfter: until, Dead: true}, {Name: over.GetPublicRef()}} {
			f.Preparing.Plant("orders", a)
		}
		f.Preparing.DropAccount("orders", dropped.GetPublicRef())

		inv := f.users(t, reconcile.Order{})
		want(t, inv, "ended_alive ", "dead ", "unknown ", "gone ")
		var refs []string
		for _, found := range inv.Findings {
			refs = append(refs, found.PublicRef+" "+found.Role)
		}
		role := " vault-like"
		if diff := cmp.Diff([]string{over.GetPublicRef() + role, "v-old ", "v-stray ", dropped.GetPublicRef() + role}, refs); diff != "" ||
			inv.Held != 4 || inv.Matched != 1 || !inv.Findings[1].NotAfter.Equal(until) {
			t.Errorf("%+v: %s", inv, diff)
		}
		wantTold(t, f)
		want(t, f.users(t, reconcile.Order{RevokeUnknown: true, Settle: true}), "ended_alive failed", "dead failed", "unknown failed", "gone settled")
		pass(5 * time.Second)
		if l := f.row(t, idOf(t, dropped)); l.State != lease.Revoked || l.Cause != lease.Missing {
			t.Errorf("what was gone is %s because of %s", l.State, l.Cause)
		}
		if l := f.row(t, idOf(t, kept)); l.State != lease.Active {
			t.Errorf("what matched is %s", l.State)
		}
		want(t, f.users(t, reconcile.Order{}), "ended_alive ", "dead ", "unknown ")
	})
}

// wantTold expects what TestAccounts finds in the metrics, the log and the records.
func wantTold(t *testing.T, f fixture) {
	t.Helper()
	counts := reconcile.Counts{Unknown: 1, Ended: 1, Gone: 1, Dead: 1}
	if diff := cmp.Diff([]reconcile.Counts{{}, counts}, f.meter.of("preparing/a/orders")); diff != "" || f.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 {
		t.Errorf("logged %v, metrics: %s", f.logs.All(), diff)
	}
	const record = "inventory.differs spiffe://example.org/ops/alice 1 unknown, 1 alive after their end, 1 gone, 1 dead and still there "
	if diff := cmp.Diff([]string{record}, f.records(t, "preparing/a/orders")); diff != "" {
		t.Errorf("records: %s", diff)
	}
}

// hold lets issues make what they make, and keeps their answers back until it is closed.
func hold(p *plugintest.Preparing) (made <-chan struct{}, release chan<- struct{}) {
	reached, free := make(chan struct{}), make(chan struct{})
	p.After(plugintest.OpIssue, func(ctx context.Context, _ plugins.LeaseID) error {
		reached <- struct{}{}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return reached, free
}

// An account whose issue has not answered yet is nobody's for a moment. It is waited for, and not called unknown.
func TestAccountOfAnIssueInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "vault-like")
		made, release := hold(f.Preparing)
		done := make(chan struct{})
		go func() { defer close(done); agent.Issue(t, task, "vault-like") }()
		<-made
		go func() { pass(3 * time.Second); close(release) }()
		inv := f.users(t, reconcile.Order{})
		if <-done; inv.Held != 1 || inv.Matched != 1 || len(inv.Findings) != 0 {
			t.Errorf("%+v", inv)
		}
	})
}

// loseIssue issues, and loses the answer.
func (f fixture) loseIssue(t *testing.T) {
	t.Helper()
	agent := f.As(t, "/agent/a")
	task := agent.Declare(t, "vault-like")
	f.Preparing.LoseNext(plugintest.OpIssue)
	_, err := agent.Credentials.IssueCredential(t.Context(), &stintv1.IssueCredentialRequest{
		Task: task.GetName(), Role: "vault-like", RequestId: "0123456789abcdef0123456789abcdef",
	})
	if err == nil {
		t.Fatal("the answer was not lost")
	}
}

// An account whose issue never answers is in flight until its intent is swept. One that is still there afterwards is unknown.
func TestAccountOfALostIssue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		f.loseIssue(t)
		f.Preparing.Plant("orders", plugins.Account{Name: "v-forgotten"})
		if inv := f.users(t, reconcile.Order{}); inv.Held != 2 || inv.InFlight != 2 || len(inv.Findings) != 0 {
			t.Fatalf("before the sweep: %+v", inv)
		}
		pass(grace)
		inv := f.users(t, reconcile.Order{})
		want(t, inv, "unknown ")
		if inv.Findings[0].PublicRef != "v-forgotten" || inv.Held != 1 {
			t.Errorf("after it: %+v", inv)
		}
	})
}

// What ends while its system lists is neither gone nor alive after its end, whichever comes first.
func TestAccountsEndWhileListing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "vault-like")
		end := func() func() {
			l := agent.Issue(t, task, "vault-like").GetLease()
			return func() {
				if _, err := agent.Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: l.GetName()}); err != nil {
					t.Error(err)
				}
				pass(5 * time.Second)
				if row := f.row(t, idOf(t, l)); row.State != lease.Revoked {
					t.Errorf("%s is %s", row.ID, row.State)
				}
			}
		}
		f.Preparing.AroundAccounts("orders", end(), end())
		if inv := f.users(t, reconcile.Order{}); inv.Held != 1 || inv.Matched != 1 || len(inv.Findings) != 0 {
			t.Errorf("%+v", inv)
		}
	})
}

// A lease that is swept while its answer is waited for takes its account along, and no other.
func TestAccountIsSweptWhileWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		f.loseIssue(t)
		f.Preparing.Plant("orders", plugins.Account{Name: "v-forgotten"})
		pass(10 * time.Second) // 20 s after the issue began it is swept
		inv := f.users(t, reconcile.Order{})
		if want(t, inv, "unknown "); inv.Held != 2 || inv.Findings[0].PublicRef != "v-forgotten" {
			t.Errorf("%+v", inv)
		}
	})
}

// A system that does not answer is a gap, and nothing of it is gone or unknown.
func TestSystemDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		agent := f.As(t, "/agent/a")
		agent.Issue(t, agent.Declare(t, "vault-like"), "vault-like")
		f.Preparing.Plant("orders", plugins.Account{Name: "v-stray"})
		f.Preparing.BreakSystem("orders")
		inv := f.users(t, reconcile.Order{Settle: true})
		want(t, inv)
		if len(inv.Gaps) != 1 || inv.Gaps[0].Permanent || inv.Gaps[0].Problem != plugins.ErrUnavailable.Error() {
			t.Errorf("%+v", inv)
		}
		if len(f.meter.of("preparing/a/orders")) != 0 || len(f.meter.of("preparing/a")) != 1 {
			t.Error("metrics say that it was compared, or that nothing was")
		}
	})
}

// Accounts come and go while they are compared, and none is called anything.
func TestAccountsMoveWhileComparing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, 0)
		agent := f.As(t, "/agent/a")
		task := agent.Declare(t, "vault-like")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 20 {
				l := agent.Issue(t, task, "vault-like").GetLease()
				if _, err := agent.Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: l.GetName()}); err != nil {
					t.Error(err)
				}
			}
		}()
		for running := true; running; {
			want(t, f.users(t, reconcile.Order{}))
			select {
			case <-done:
				running = false
			default:
			}
		}
	})
}

// The periodic run sees accounts too.
func TestRunComparesAccounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := withUsers(t, time.Minute)
		f.Preparing.Plant("orders", plugins.Account{Name: "v-stray"})
		done := make(chan error)
		ctx, cancel := contextOf(t)
		go func() { done <- f.rec.Run(ctx) }()
		pass(30 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		got := f.records(t, "preparing/a/orders")
		if diff := cmp.Diff([]reconcile.Counts{{Unknown: 1}}, f.meter.of("preparing/a/orders")); diff != "" || len(got) != 1 ||
			!strings.HasPrefix(got[0], "inventory.differs stint 1 unknown") {
			t.Errorf("records %v, metrics %s", got, diff)
		}
	})
}
