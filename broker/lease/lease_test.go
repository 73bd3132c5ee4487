package lease_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

var (
	start   = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	sweepAt = start.Add(100 * time.Second)
	end     = start.Add(10 * time.Minute)
)

// states are all of them.
var states = []lease.State{
	lease.Intent, lease.Active, lease.Revoking, lease.Revoked, lease.Lapsing, lease.Lapsed, lease.Disclosed,
}

func credential() plugins.Credential {
	return plugins.Credential{Handle: "h2", PublicRef: "ref", NotAfter: end, Chain: [][]byte{{1}}, Bundle: [][]byte{{2}}}
}

// in returns a lease as it would be in a state.
func in(s lease.State) lease.Lease {
	l := lease.Lease{State: s, Role: "r", Handle: "h1", CreatedAt: start, SweepAt: sweepAt, NextAt: sweepAt, NotAfter: end}
	switch s {
	case lease.Active:
		l.SweepAt, l.NextAt = time.Time{}, end
	case lease.Revoking:
		l.AskedAt, l.Cause, l.NextAt = start, lease.Requested, start
	case lease.Lapsing:
		l.AskedAt, l.Cause, l.NextAt, l.UsableUntil = start, lease.Requested, end, end
	case lease.Revoked, lease.Lapsed, lease.Disclosed:
		l.AskedAt, l.Cause, l.NextAt, l.Proof = start, lease.Requested, time.Time{}, plugins.ReadBack
	case lease.Intent:
		l.UsableUntil = end.Add(time.Hour) // should its answer be lost
	}
	return l
}

// TestTransitions walks every operation from every state. What is not listed is refused, and leaves the lease alone.
func TestTransitions(t *testing.T) {
	now := sweepAt
	ending := func(p plugins.Proof) func(lease.Lease) (lease.Lease, error) {
		return func(l lease.Lease) (lease.Lease, error) {
			return l.End(plugins.Ending{Proof: p, At: now, UsableUntil: end})
		}
	}
	tests := map[string]struct {
		do   func(lease.Lease) (lease.Lease, error)
		want map[lease.State]lease.State
	}{
		"activate": {
			func(l lease.Lease) (lease.Lease, error) { return l.Activate(credential()) },
			map[lease.State]lease.State{lease.Intent: lease.Active},
		},
		"unreleased": {
			func(l lease.Lease) (lease.Lease, error) { return l.Unreleased(credential(), now) },
			map[lease.State]lease.State{lease.Intent: lease.Revoking, lease.Revoking: lease.Revoking},
		},
		"nothing": {
			func(l lease.Lease) (lease.Lease, error) { return l.Nothing(now) },
			map[lease.State]lease.State{lease.Intent: lease.Revoking},
		},
		"begin": {
			func(l lease.Lease) (lease.Lease, error) { return l.Begin(now) },
			map[lease.State]lease.State{
				lease.Intent: lease.Revoking, lease.Active: lease.Revoking, lease.Revoking: lease.Revoking, lease.Lapsing: lease.Lapsing,
			},
		},
		"retry": {
			func(l lease.Lease) (lease.Lease, error) { return l.Retry(now, "sealed", start) },
			map[lease.State]lease.State{lease.Revoking: lease.Revoking, lease.Lapsing: lease.Lapsing},
		},
		"read back":    {ending(plugins.ReadBack), map[lease.State]lease.State{lease.Revoking: lease.Revoked, lease.Lapsing: lease.Revoked}},
		"on crl":       {ending(plugins.OnCRL), map[lease.State]lease.State{lease.Revoking: lease.Revoked, lease.Lapsing: lease.Revoked}},
		"swept":        {ending(plugins.Swept), map[lease.State]lease.State{lease.Revoking: lease.Revoked, lease.Lapsing: lease.Revoked}},
		"lost":         {ending(plugins.LostAtBackend), map[lease.State]lease.State{lease.Revoking: lease.Revoked, lease.Lapsing: lease.Revoked}},
		"not issued":   {ending(plugins.NotIssued), map[lease.State]lease.State{lease.Revoking: lease.Revoked, lease.Lapsing: lease.Revoked}},
		"lapsed":       {ending(plugins.Lapsed), map[lease.State]lease.State{lease.Revoking: lease.Lapsed, lease.Lapsing: lease.Lapsed}},
		"disclosed":    {ending(plugins.Disclosed), map[lease.State]lease.State{lease.Revoking: lease.Disclosed, lease.Lapsing: lease.Disclosed}},
		"pending":      {ending(plugins.Pending), map[lease.State]lease.State{lease.Revoking: lease.Lapsing, lease.Lapsing: lease.Lapsing}},
		"made-up":      {ending("probably"), nil},
		"without word": {ending(""), nil},
	}
	for name, test := range tests {
		for _, from := range states {
			t.Run(name+" "+string(from), func(t *testing.T) {
				got, err := test.do(in(from))
				want, ok := test.want[from]
				if ok != (err == nil) || (err != nil && !errors.Is(err, lease.ErrState)) {
					t.Fatalf("error %v, allowed %v", err, ok)
				}
				if ok && got.State != want {
					t.Errorf("got %s, want %s", got.State, want)
				}
				if diff := cmp.Diff(in(from), got); !ok && diff != "" {
					t.Errorf("a refused operation changed the lease:\n%s", diff)
				}
			})
		}
	}
}

func TestActivate(t *testing.T) {
	got, err := in(lease.Intent).Activate(credential())
	want := in(lease.Intent)
	want.State, want.Handle, want.PublicRef, want.NextAt, want.SweepAt = lease.Active, "h2", "ref", end, time.Time{}
	want.Chain, want.Bundle, want.UsableUntil = [][]byte{{1}}, [][]byte{{2}}, time.Time{}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// What has no end of its own where it is used says so from the start, and until an end of it was seen.
func TestUsableBeyondItsEnd(t *testing.T) {
	c := credential()
	c.UsableUntil = plugins.NoEnd()
	got, err := in(lease.Intent).Activate(c)
	if err != nil || !got.UsableUntil.Equal(c.UsableUntil) || !lease.Summarise([]lease.Lease{got}).UsableUntil.Equal(c.UsableUntil) {
		t.Errorf("%v: %+v", err, got)
	}
	dropped, err := in(lease.Intent).Unreleased(c, start)
	if err != nil || !dropped.UsableUntil.Equal(c.UsableUntil) {
		t.Errorf("%v: %+v", err, dropped)
	}
	gone, err := got.AskEnd(start, lease.Requested).End(plugins.Ending{Proof: plugins.ReadBack, At: sweepAt})
	if err != nil || !gone.UsableUntil.Equal(sweepAt) {
		t.Errorf("%v: seen to end, it is usable until %s", err, gone.UsableUntil)
	}
}

// An answer that comes after the end was asked for is never handed out: an ACTIVE lease with its end asked for would be
// looked at by nobody.
func TestActivateTooLate(t *testing.T) {
	asked := in(lease.Intent).AskEnd(start, lease.RoleRemoved)
	if asked.State != lease.Intent || !asked.NextAt.Equal(sweepAt) {
		t.Fatalf("an intent does not keep its horizon: %s until %s", asked.State, asked.NextAt)
	}
	if _, err := asked.Activate(credential()); !errors.Is(err, lease.ErrState) {
		t.Errorf("activated: %v", err)
	}
	dropped, err := asked.Unreleased(credential(), start)
	if err != nil || dropped.State != lease.Revoking || dropped.Handle != "h2" || dropped.Cause != lease.RoleRemoved {
		t.Errorf("%v: %+v", err, dropped)
	}
}

func TestAskEnd(t *testing.T) {
	first := in(lease.Active).AskEnd(start, lease.Requested)
	if first.State != lease.Revoking || !first.NextAt.Equal(start) || !first.AskedAt.Equal(start) {
		t.Errorf("asked: %+v", first)
	}
	again := first.AskEnd(start.Add(time.Second), lease.TaskClosed)
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("asking again changed the lease:\n%s", diff)
	}
	for _, s := range []lease.State{lease.Revoked, lease.Lapsed, lease.Disclosed} {
		l := in(s)
		l.AskedAt = time.Time{}
		if diff := cmp.Diff(l, l.AskEnd(start, lease.TaskClosed)); diff != "" {
			t.Errorf("asking changed a final lease:\n%s", diff)
		}
	}
}

func TestBegin(t *testing.T) {
	if _, err := in(lease.Intent).Begin(sweepAt.Add(-1)); !errors.Is(err, lease.ErrState) {
		t.Errorf("an intent was swept before its horizon: %v", err)
	}
	swept, err := in(lease.Intent).Begin(sweepAt)
	if err != nil || !swept.Uncertain || swept.Cause != lease.IntentExpired || !swept.Held().Uncertain {
		t.Errorf("%v: %+v", err, swept)
	}
	expired, err := in(lease.Active).Begin(end)
	if err != nil || expired.Uncertain || expired.Cause != lease.Expired || !expired.AskedAt.Equal(end) {
		t.Errorf("%v: %+v", err, expired)
	}
}

func TestNothing(t *testing.T) {
	got, err := in(lease.Intent).Nothing(start)
	if err != nil || !got.NotIssued || got.Uncertain || !got.UsableUntil.IsZero() || !got.NextAt.Equal(start) || !got.Held().NotIssued {
		t.Errorf("%v: %+v", err, got)
	}
}

// A frozen process may bring an answer for an intent that was swept meanwhile: what works again is ended again.
func TestUnreleasedAfterSweep(t *testing.T) {
	swept, err := in(lease.Revoking).End(plugins.Ending{Proof: plugins.Swept, At: sweepAt, UsableUntil: end})
	if err != nil {
		t.Fatal(err)
	}
	back, err := swept.Unreleased(credential(), end)
	if err != nil || back.State != lease.Revoking || back.Proof != "" || !back.NextAt.Equal(end) || back.Claim != swept.Claim+1 {
		t.Errorf("%v: %+v", err, back)
	}
}

func TestEnd(t *testing.T) {
	failed, err := in(lease.Revoking).Retry(start, "sealed", end)
	if err != nil || !failed.Stuck || failed.Attempts != 1 || failed.LastError != "sealed" {
		t.Fatalf("%v: %+v", err, failed)
	}
	got, err := failed.End(plugins.Ending{Proof: plugins.OnCRL, At: sweepAt, UncheckedUntil: end, Detail: "CRL 4"})
	want := in(lease.Revoking)
	want.State, want.Proof, want.ProofDetail, want.NextAt = lease.Revoked, plugins.OnCRL, "CRL 4", time.Time{}
	want.RevokedAt, want.UsableUntil, want.UncheckedUntil = sweepAt, sweepAt, end
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	disclosed, err := in(lease.Revoking).End(plugins.Ending{Proof: plugins.Disclosed, At: sweepAt})
	if err != nil || !disclosed.UsableUntil.Equal(plugins.NoEnd()) {
		t.Errorf("%v: a disclosed secret has an end: %s", err, disclosed.UsableUntil)
	}
	if _, err := in(lease.Revoking).End(plugins.Ending{Proof: plugins.Pending, At: sweepAt}); !errors.Is(err, lease.ErrState) {
		t.Errorf("a pending end without an instant was taken: %v", err)
	}
}

// What lapses by itself is not overdue before it should have lapsed, however long ago its end was asked for.
func TestRetryStuck(t *testing.T) {
	for name, test := range map[string]struct {
		state lease.State
		since time.Time
		want  bool
	}{
		"just asked":       {lease.Revoking, start, false},
		"asked long ago":   {lease.Revoking, start.Add(1), true},
		"not yet lapsed":   {lease.Lapsing, end, false},
		"should have been": {lease.Lapsing, end.Add(1), true},
	} {
		got, err := in(test.state).Retry(end, "x", test.since)
		if err != nil || got.Stuck != test.want || !got.NextAt.Equal(end) {
			t.Errorf("%s: stuck %v, %v", name, got.Stuck, err)
		}
	}
}

func TestSummarise(t *testing.T) {
	final := func(p plugins.Proof, usable, unchecked time.Time) lease.Lease {
		l, err := in(lease.Revoking).End(plugins.Ending{Proof: p, At: start, UsableUntil: usable, UncheckedUntil: unchecked})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	stuck := in(lease.Revoking)
	stuck.Stuck = true
	got := lease.Summarise([]lease.Lease{
		final(plugins.ReadBack, time.Time{}, time.Time{}),
		final(plugins.OnCRL, time.Time{}, end.Add(time.Minute)),
		final(plugins.OnCRL, start.Add(time.Second), end),
		stuck,
	})
	want := task.Summary{
		Leases: 4, Final: 3, Stuck: 1, ByProof: map[plugins.Proof]int{plugins.ReadBack: 1, plugins.OnCRL: 2},
		UsableUntil: end, UncheckedUntil: end.Add(time.Minute),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

func TestID(t *testing.T) {
	id, err := lease.NewID()
	if err != nil || id[6]>>4 != 7 {
		t.Fatalf("%v: %s is not a UUIDv7", err, id)
	}
	text := id.String()
	dashed := strings.ToLower(text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:])
	for _, form := range []string{text, strings.ToLower(text), dashed} {
		if got, err := lease.ParseID(form); err != nil || got != id {
			t.Errorf("%s: %s %v", form, got, err)
		}
	}
	for _, bad := range []string{"", text[1:], text + "0", "g" + text[1:], strings.Repeat("-", 40) + text} {
		if _, err := lease.ParseID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("019AB3C1D2E47F0A8B1C2D3E4F506172")
	f.Add("019ab3c1-d2e4-7f0a-8b1c-2d3e4f506100")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := lease.ParseID(s)
		if err != nil {
			return
		}
		if again, err := lease.ParseID(id.String()); err != nil || again != id {
			t.Errorf("%q does not come back: %v", s, err)
		}
	})
}
