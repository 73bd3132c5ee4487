package task_test

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/task"
)

var start = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

func active() task.Task {
	return task.Task{State: task.Active, NotAfter: start.Add(time.Hour), NextAt: start.Add(time.Minute)}
}

func TestClose(t *testing.T) {
	got, err := active().Close(start, task.Stopped)
	want := active()
	want.State, want.CloseReason, want.ClosingAt, want.NextAt = task.Closing, task.Stopped, start, time.Time{}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, s := range []task.State{task.Closing, task.Closed, ""} {
		from := active()
		from.State = s
		if got, err := from.Close(start, task.Expired); !errors.Is(err, task.ErrState) || got.State != s {
			t.Errorf("closed from %s: %v", s, err)
		}
	}
}

func TestFinish(t *testing.T) {
	closing, err := active().Close(start, task.Completed)
	if err != nil {
		t.Fatal(err)
	}
	if _, early := closing.Finish(start, task.Summary{Leases: 2, Final: 1}); !errors.Is(early, task.ErrState) {
		t.Errorf("closed with a lease that is not final: %v", early)
	}
	sum := task.Summary{Leases: 2, Final: 2}
	got, err := closing.Finish(start.Add(time.Second), sum)
	if err != nil || got.State != task.Closed || !got.ClosedAt.Equal(start.Add(time.Second)) || !cmp.Equal(got.Summary, sum) {
		t.Errorf("%v: %+v", err, got)
	}
	for _, from := range []task.Task{active(), got} {
		if _, err := from.Finish(start, sum); !errors.Is(err, task.ErrState) {
			t.Errorf("finished from %s: %v", from.State, err)
		}
	}
}

// TestModel: whatever is tried, a task goes forward only, its first reason stays, and it is CLOSED only when every lease
// was final.
func TestModel(t *testing.T) {
	order := map[task.State]int{task.Active: 0, task.Closing: 1, task.Closed: 2}
	rapid.Check(t, func(t *rapid.T) {
		one, why := active(), task.CloseReason("")
		t.Repeat(map[string]func(*rapid.T){
			"close": func(t *rapid.T) {
				reason := rapid.SampledFrom([]task.CloseReason{task.Completed, task.Expired, task.Stopped}).Draw(t, "reason")
				if next, err := one.Close(start, reason); err == nil {
					if one.State != task.Active {
						t.Fatalf("closed from %s", one.State)
					}
					one, why = next, reason
				}
			},
			"finish": func(t *rapid.T) {
				sum := task.Summary{Leases: rapid.IntRange(0, 3).Draw(t, "leases"), Final: rapid.IntRange(0, 3).Draw(t, "final")}
				next, err := one.Finish(start, sum)
				if (err == nil) != (one.State == task.Closing && sum.Final == sum.Leases) {
					t.Fatalf("finish from %s with %d of %d: %v", one.State, sum.Final, sum.Leases, err)
				}
				if order[next.State] < order[one.State] {
					t.Fatalf("%s became %s", one.State, next.State)
				}
				one = next
			},
			"": func(t *rapid.T) {
				if one.CloseReason != why || (one.State == task.Active) != one.ClosingAt.IsZero() || (one.State == task.Closed) == one.ClosedAt.IsZero() {
					t.Fatalf("inconsistent: %+v", one)
				}
			},
		})
	})
}

func TestGrant(t *testing.T) {
	one := active()
	one.Grants = []task.Grant{{Role: "a"}, {Role: "b", TTL: time.Minute}}
	if g, ok := one.Grant("b"); !ok || g.TTL != time.Minute {
		t.Errorf("got %+v %v", g, ok)
	}
	if g, ok := one.Grant("c"); ok {
		t.Errorf("got %+v for a role that was not granted", g)
	}
}

func TestID(t *testing.T) {
	id, err := task.NewID()
	if err != nil || id[6]>>4 != 7 {
		t.Fatalf("%v: %s is not a UUIDv7", err, id)
	}
	text, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	var back task.ID
	if err := json.Unmarshal(text, &back); err != nil || back != id {
		t.Errorf("%s came back as %s, %v", id, back, err)
	}
	canonical := id.String()
	for _, bad := range []string{"", canonical[1:], "{" + canonical + "}", "urn:uuid:" + canonical, strings.ReplaceAll(canonical, "-", "")} {
		if _, err := task.ParseID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestShortName(t *testing.T) {
	shape := regexp.MustCompile(`^pay-[2-9a-hj-km-np-z]{4}$`)
	seen := map[string]bool{}
	for range 200 {
		id, err := task.NewID()
		if err != nil {
			t.Fatal(err)
		}
		name := task.ShortName("pay", id, 4)
		if !shape.MatchString(name) || name != task.ShortName("pay", id, 4) {
			t.Errorf("name %q", name)
		}
		seen[name] = true
	}
	if len(seen) < 190 { // 200 of 923,521: a collision or two may happen
		t.Errorf("only %d of 200 names differ", len(seen))
	}
}

func TestHash(t *testing.T) {
	h, err := manifest().Hash()
	if err != nil {
		t.Fatal(err)
	}
	text, err := h.MarshalText()
	if err != nil || string(text) != h.String() || len(text) != 64 {
		t.Fatalf("%s: %v", text, err)
	}
	var back task.Hash
	if err := back.UnmarshalText(text); err != nil || back != h {
		t.Errorf("came back as %s: %v", back, err)
	}
	for _, bad := range []string{"", string(text[2:]), string(text) + "00", "zz" + string(text[2:])} {
		if err := back.UnmarshalText([]byte(bad)); err == nil || back != h {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("019ab3c1-d2e4-7f0a-8b1c-2d3e4f506100")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := task.ParseID(s)
		if err != nil {
			return
		}
		if !strings.EqualFold(id.String(), s) {
			t.Errorf("%q was read as %s", s, id)
		}
	})
}
