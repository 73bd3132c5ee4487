package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func TestConfirmed(t *testing.T) {
	t.Parallel()
	const name = "spiffe://example.org/agent/a"
	for typed, want := range map[string]bool{
		name + "\n": true, " " + name + "\r\n": true, name: true, "\n": false, "y\n": false, "": false,
		name + "b\n": false, strings.Repeat("x", 5000): false,
	} {
		var out bytes.Buffer
		err := confirmed(t.Context(), strings.NewReader(typed), &out, name)
		if (err == nil) != want || !strings.Contains(out.String(), name) {
			t.Errorf("typed %.40q: %v, asked %q", typed, err, out.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in, _ := io.Pipe() // nobody types
	if err := confirmed(ctx, in, io.Discard, name); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestBar(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]*stintv1.StopProgress{
		"[            ] closing: 2 tasks so far, 0 of 3 leases ended": {Tasks: 2, Leases: 3, Open: 3},
		"[######      ] 2 of 4 leases ended, 1 overdue":               {Leases: 4, Open: 2, Stuck: 1, Chosen: true, ByProof: map[string]int32{"read_back": 2}},
		"[######      ] 1 of 2 leases ended":                          {Leases: 2, Chosen: true, ByProof: map[string]int32{"crl": 1, "disclosed": 1}},
		"[############] 0 of 0 leases ended":                          {Chosen: true},
	} {
		want = strings.ReplaceAll(strings.ReplaceAll(want, "######", strings.Repeat("#", 12)), "      ", strings.Repeat(" ", 12))
		if got := drawBar(p); got != want {
			t.Errorf("bar %q, want %q", got, want)
		}
	}
}

// Where no terminal looks on, progress is plain lines, and not more than one in a while.
func TestPlainProgress(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := (&app{stderr: &out}).newBar()
	p := &stintv1.StopProgress{Leases: 2, Open: 1, Chosen: true, ByProof: map[string]int32{"crl": 1}}
	b.show(p)
	b.last = b.last.Add(-2 * progressAfter)
	b.show(p)
	b.show(p)
	b.close()
	if out.String() != "1 of 2 leases ended\n" {
		t.Errorf("said %q", out.String())
	}
}

// On a terminal there is one line, which is gone in the end.
func TestLiveProgress(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := &bar{app: &app{stderr: &out}, live: true}
	b.show(&stintv1.StopProgress{Leases: 1, Open: 1, Chosen: true})
	b.show(&stintv1.StopProgress{Leases: 1, Chosen: true, Done: true, ByProof: map[string]int32{"crl": 1}})
	b.close()
	lines := strings.Split(out.String(), "\r\x1b[K")
	if len(lines) != 4 || !strings.HasSuffix(lines[1], "0 of 1 lease ended") || !strings.HasSuffix(lines[2], "1 of 1 lease ended") || lines[3] != "" {
		t.Errorf("drew %q", out.String())
	}
}

func TestStopTable(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	at := timestamppb.New(now.Add(time.Minute))
	var out bytes.Buffer
	err := stopTable(&out, stopTarget{kind: "role", name: "r"}, stopFlags{}, &stintv1.StopProgress{
		Leases: 5, Open: 3, Stuck: 1, Unbounded: 1, UsableUntil: at, UncheckedUntil: at, Chosen: true, Done: true,
		ByProof: map[string]int32{"crl": 1, "disclosed": 1},
	}, now)
	want := `Stopped      role r
Tasks        0
Leases       5
Ended        1: 1 revoked by CRL
Open         3, 1 overdue, usable until 10:01:00Z at worst, 1 without an end of its own
Not ended    1 disclosed: the broker cannot end them, they go on working
Without CRL  accepted until 10:01:00Z
`
	if err != nil || out.String() != want {
		t.Errorf("got %v\n%s", err, out.String())
	}
}

// What was waited for and is not proven is an error of its own; what cannot be proven is one in any case.
func TestUnproven(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		p    *stintv1.StopProgress
		f    stopFlags
		code int
	}{
		"all ended":  {&stintv1.StopProgress{Leases: 2, ByProof: map[string]int32{"crl": 2}}, stopFlags{wait: 1}, codeOK},
		"open":       {&stintv1.StopProgress{Leases: 2, Open: 2}, stopFlags{wait: 1}, codeUnproven},
		"not waited": {&stintv1.StopProgress{Leases: 2, Open: 2}, stopFlags{}, codeOK},
		"dry run":    {&stintv1.StopProgress{Leases: 2, Open: 2}, stopFlags{wait: 1, dryRun: true}, codeOK},
		"swept":      {&stintv1.StopProgress{Leases: 2, ByProof: map[string]int32{"swept": 1, "crl": 1}, Unseen: 1}, stopFlags{wait: 1}, codeUnproven},
		"disclosed":  {&stintv1.StopProgress{Leases: 1, ByProof: map[string]int32{"disclosed": 1}}, stopFlags{wait: 1}, codeUnproven},
	} {
		err := unproven(stopTarget{kind: allTargets, name: allTargets}, tc.f, tc.p)
		var out bytes.Buffer
		code := codeOK
		if err != nil {
			code = (&app{stderr: &out}).report(err)
		}
		if code != tc.code || (code == codeUnproven && !strings.HasPrefix(out.String(), "unproven: ")) {
			t.Errorf("%s: code %d, %q", name, code, out.String())
		}
	}
}

// What is said of an end that is not proven: a stated end that has passed bounds nothing any more.
func TestOpenEnds(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	later, before := timestamppb.New(now.Add(time.Hour)), timestamppb.New(now.Add(-time.Hour))
	never := timestamppb.New(time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC))
	for want, sum := range map[string]*stintv1.TeardownSummary{
		"until 11:00:00Z at worst":          {Leases: 3, Final: 1, UsableUntil: later},
		"until proven ended, 2 of 3 leases": {Leases: 3, Final: 1, UsableUntil: before},
		"no longer":                         {Leases: 3, Final: 3, UsableUntil: before},
		"until proven ended, 1 of 3 leases": {Leases: 3, Final: 2, UsableUntil: never},
		"without a known end":               {Leases: 3, Final: 3, UsableUntil: never},
	} {
		if got := usable(sum, now); got != want {
			t.Errorf("%v is usable %q, want %q", sum, got, want)
		}
	}
	for want, p := range map[string]*stintv1.StopProgress{
		"2, usable until 11:00:00Z at worst": {Open: 2, UsableUntil: later}, "2, usable until proven ended": {Open: 2},
		"3, usable until 11:00:00Z at worst, 1 without an end of its own": {Open: 3, UsableUntil: later, Unbounded: 1},
		"1, 1 without an end of its own":                                  {Open: 1, Unbounded: 1},
	} {
		if got := openLine(p, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for want, l := range map[string]*stintv1.Lease{
		"what its issue may still bring is waited for until 11:00:00Z": {State: stintv1.LeaseState_LEASE_STATE_INTENT, NextAttempt: later},
		"cannot be revoked, ends by itself at 11:00:00Z":               {State: stintv1.LeaseState_LEASE_STATE_LAPSING, NotAfter: later},
		"is being ended": {State: stintv1.LeaseState_LEASE_STATE_REVOKING},
		"attempt 3: the backend does not answer; again in 1h": {
			State: stintv1.LeaseState_LEASE_STATE_REVOKING, Attempts: 3, LastError: "the backend does not answer", NextAttempt: later,
		},
	} {
		if got := awaited(l, now); got != want {
			t.Errorf("%v waits for %q, want %q", l, got, want)
		}
	}
}
