package plugintest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

const horizon = 30 * time.Second

func request() plugins.Request {
	return plugins.Request{
		Lease: plugins.LeaseID{0: 1, 15: 1}, Role: plugins.Role{Name: "r"}, NotAfter: time.Now().Add(time.Hour),
	}
}

// TestLostAnswerLeavesACredential shows that a lost answer is uncertain, and that the lease ID ends it.
func TestLostAnswerLeavesACredential(t *testing.T) {
	m := plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon})
	m.LoseNext(plugintest.OpIssue)
	req := request()
	_, err := m.Issue(t.Context(), req)
	if !errors.Is(err, plugins.ErrUnavailable) || errors.Is(err, plugins.ErrNotIssued) {
		t.Fatalf("lost answer: %v, want ErrUnavailable and not ErrNotIssued", err)
	}
	if got := m.Alive(); len(got) != 1 || got[0] != req.Lease {
		t.Fatalf("alive: %v, want the lease", got)
	}
	end, err := m.Revoke(t.Context(), plugins.Held{Lease: req.Lease, Uncertain: true})
	if err != nil || end.Proof != plugins.ReadBack || len(m.Alive()) != 0 {
		t.Fatalf("revoke: %v, %v, alive %v", end.Proof, err, m.Alive())
	}
}

// TestLateEffectOutlivesAnEarlySweep shows why a broker must wait for the horizon: what is swept before it comes alive.
func TestLateEffectOutlivesAnEarlySweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: horizon})
		req := request()
		var err error
		if req.Prepared, err = p.Prepare(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		p.LateNext(plugintest.OpIssue, 20*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err = p.Issue(ctx, req); !errors.Is(err, plugins.ErrUnavailable) {
			t.Fatalf("late issue: %v, want ErrUnavailable", err)
		}
		held := plugins.Held{Lease: req.Lease, Handle: req.Prepared.Handle, NotAfter: req.NotAfter, Uncertain: true}
		if end, rerr := p.Revoke(t.Context(), held); rerr != nil || end.Proof != plugins.Swept || p.Tokens() != 0 {
			t.Fatalf("early sweep: %v, %v, %d tokens", end.Proof, rerr, p.Tokens())
		}
		<-time.After(15 * time.Second)
		if len(p.Alive()) != 1 {
			t.Fatal("the late effect did not come alive")
		}
		if end, rerr := p.Revoke(t.Context(), held); rerr != nil || end.Proof != plugins.ReadBack || len(p.Alive()) != 0 {
			t.Fatalf("sweep after the effect: %v, %v, alive %v", end.Proof, rerr, p.Alive())
		}
	})
}

// TestFaultsHaveNoEffectBeforeAndOneAfter walks the faults of an issue and counts what each leaves alive.
func TestFaultsHaveNoEffectBeforeAndOneAfter(t *testing.T) {
	fault := errors.New("injected")
	hook := func(context.Context, plugins.LeaseID) error { return fault }
	cases := map[string]struct {
		inject    func(*plugintest.Memory)
		want      error
		alive     int
		notIssued bool
	}{
		"fail":   {func(m *plugintest.Memory) { m.FailNext(plugintest.OpIssue, fault) }, fault, 0, false},
		"before": {func(m *plugintest.Memory) { m.Before(plugintest.OpIssue, hook) }, fault, 0, true},
		"after":  {func(m *plugintest.Memory) { m.After(plugintest.OpIssue, hook) }, fault, 1, false},
		"break":  {func(m *plugintest.Memory) { m.Break() }, plugins.ErrUnavailable, 0, true},
		"hang":   {func(m *plugintest.Memory) { m.HangNext(plugintest.OpIssue) }, plugins.ErrUnavailable, 0, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := plugintest.NewMemory(plugintest.MemoryConfig{Latency: map[plugintest.Op]time.Duration{plugintest.OpIssue: time.Second}})
				c.inject(m)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err := m.Issue(ctx, request())
				if !errors.Is(err, c.want) || errors.Is(err, plugins.ErrNotIssued) != c.notIssued {
					t.Errorf("error %v, want %v and ErrNotIssued %t", err, c.want, c.notIssued)
				}
				if len(m.Alive()) != c.alive || m.Calls(plugintest.OpIssue) != 1 {
					t.Errorf("alive %v, want %d; %d calls, want 1", m.Alive(), c.alive, m.Calls(plugintest.OpIssue))
				}
			})
		})
	}
}

// TestKindsOfEnd revokes credentials of each kind.
func TestKindsOfEnd(t *testing.T) {
	cases := map[string]struct {
		config string
		after  time.Duration
		drop   bool
		want   plugins.Proof
	}{
		"revocable":       {`{}`, 0, false, plugins.ReadBack},
		"expired":         {`{}`, 2 * time.Hour, false, plugins.Lapsed},
		"dropped":         {`{}`, 0, true, plugins.LostAtBackend},
		"lapsing":         {`{"ends":"lapsing"}`, 0, false, plugins.Pending},
		"lapsing expired": {`{"ends":"lapsing"}`, 2 * time.Hour, false, plugins.Lapsed},
		"never":           {`{"ends":"never"}`, 0, false, plugins.Disclosed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := plugintest.NewMemory(plugintest.MemoryConfig{})
				req := request()
				req.Role.Config, req.Role.AcceptPermanent = []byte(c.config), true
				cred, err := m.Issue(t.Context(), req)
				if err != nil || !m.Works(t.Context(), cred) {
					t.Fatalf("issue: %v", err)
				}
				if cred.NotAfter.IsZero() != (c.want == plugins.Disclosed) {
					t.Errorf("not after %v for %s", cred.NotAfter, c.want)
				}
				if c.drop {
					m.Drop(req.Lease)
				}
				<-time.After(c.after)
				end, err := m.Revoke(t.Context(), plugins.Held{Lease: req.Lease, Handle: cred.Handle, NotAfter: cred.NotAfter})
				if err != nil || end.Proof != c.want {
					t.Fatalf("revoke: %v, %v, want %v", end.Proof, err, c.want)
				}
			})
		})
	}
}
