package attestor_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
)

func mustPattern(t *testing.T, text string) attestor.Pattern {
	t.Helper()
	p, err := attestor.ParsePattern(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPatternMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, id string
		want        bool
	}{
		{"spiffe://example.org/agent/a", "spiffe://example.org/agent/a", true},
		{"spiffe://example.org/agent/a", "spiffe://example.org/agent/b", false},
		{"spiffe://example.org/agent/a", "spiffe://example.org/agent/a/b", false},
		{"spiffe://example.org/agent/a", "spiffe://example.org/agent", false},
		{"spiffe://example.org/agent/*", "spiffe://example.org/agent/a", true},
		{"spiffe://example.org/agent/*", "spiffe://example.org/agent/a/b", false},
		{"spiffe://example.org/agent/*", "spiffe://example.org/agent", false},
		{"spiffe://example.org/*/a", "spiffe://example.org/x/a", true},
		{"spiffe://example.org/*/a", "spiffe://example.org/x/y/a", false},
		{"spiffe://example.org/agent/**", "spiffe://example.org/agent/a", true},
		{"spiffe://example.org/agent/**", "spiffe://example.org/agent/a/b/c", true},
		{"spiffe://example.org/agent/**", "spiffe://example.org/agent", false},
		{"spiffe://example.org/agent/**", "spiffe://example.org/agents/a", false},
		{"spiffe://example.org/**", "spiffe://example.org/a", true},
		{"spiffe://example.org/**", "spiffe://example.org", false},
		{"spiffe://example.org/**", "spiffe://other.org/a", false},
		{"spiffe://example.org/*", "spiffe://other.org/a", false},
	} {
		if got := mustPattern(t, c.pattern).Match(spiffeid.RequireFromString(c.id)); got != c.want {
			t.Errorf("%s matches %s: %v, want %v", c.pattern, c.id, got, c.want)
		}
	}
	if (attestor.Pattern{}).Match(spiffeid.ID{}) {
		t.Error("the zero pattern matches the zero ID")
	}
}

func TestParsePatternRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "example.org/a", "https://example.org/a", "spiffe://example.org", "spiffe://example.org/", "spiffe://*/a",
		"spiffe://*.org/a", "spiffe:///a", "spiffe://example.org/a/", "spiffe://example.org//a", "spiffe://example.org/a*",
		"spiffe://example.org/**/a", "spiffe://example.org/***", "spiffe://example.org/a/../b", "spiffe://example.org/./b",
		"spiffe://example.org/a b", "spiffe://EXAMPLE.org/a", "spiffe://example.org:80/a", "spiffe://u@example.org/a",
		"spiffe://example.org/a?b", "spiffe://example.org/a#b", "spiffe://example.org/%61",
	} {
		if p, err := attestor.ParsePattern(text); err == nil {
			t.Errorf("ParsePattern(%q) = %v, want an error", text, p)
		}
	}
}

func TestPatternOverlaps(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"spiffe://e.org/a", "spiffe://e.org/a", true},
		{"spiffe://e.org/a", "spiffe://e.org/b", false},
		{"spiffe://e.org/a", "spiffe://f.org/a", false},
		{"spiffe://e.org/a/*", "spiffe://e.org/*/b", true},
		{"spiffe://e.org/a/*", "spiffe://e.org/a", false},
		{"spiffe://e.org/a/*", "spiffe://e.org/a/b/c", false},
		{"spiffe://e.org/**", "spiffe://e.org/a/b/c", true},
		{"spiffe://e.org/a/**", "spiffe://e.org/a", false},
		{"spiffe://e.org/a/**", "spiffe://e.org/b/**", false},
		{"spiffe://e.org/*/b/**", "spiffe://e.org/a/**", true},
	} {
		a, b := mustPattern(t, c.a), mustPattern(t, c.b)
		if got := a.Overlaps(b); got != c.want {
			t.Errorf("%s overlaps %s: %v", a, b, got)
		}
		if a.Overlaps(b) != b.Overlaps(a) {
			t.Errorf("%s and %s: overlap is not symmetric", a, b)
		}
	}
}

func TestPatternCompareAndExact(t *testing.T) {
	t.Parallel()
	order := []string{"spiffe://e.org/ops/oncall", "spiffe://e.org/ops/*", "spiffe://e.org/ops/**", "spiffe://e.org/*/oncall", "spiffe://e.org/**"}
	for i := range order[1:] {
		a, b := mustPattern(t, order[i]), mustPattern(t, order[i+1])
		if a.Compare(b) >= 0 || b.Compare(a) <= 0 {
			t.Errorf("%s must be more specific than %s", a, b)
		}
	}
	if id, ok := mustPattern(t, order[0]).Exact(); !ok || id.String() != order[0] {
		t.Errorf("Exact() = %v, %v", id, ok)
	}
	if id, ok := mustPattern(t, order[1]).Exact(); ok {
		t.Errorf("Exact() of a wildcard = %v", id)
	}
}

// FuzzPattern holds, for any pattern that parses and any ID: a pattern without a star matches its own text and nothing
// else; matching agrees with a slow reading of the rule; two patterns that match one ID overlap, and unless they are
// the same one is more specific.
func FuzzPattern(f *testing.F) {
	f.Add("spiffe://example.org/agent/*", "spiffe://example.org/**", "spiffe://example.org/agent/a")
	f.Add("spiffe://example.org/a/b", "spiffe://example.org/*/b", "spiffe://example.org/a/b")
	f.Add("spiffe://e/**", "spiffe://e/a/**", "spiffe://e/a/b/c")
	f.Fuzz(func(t *testing.T, one, two, idText string) {
		p, err := attestor.ParsePattern(one)
		if err != nil {
			return
		}
		if exact, ok := p.Exact(); ok && (exact.String() != one || !p.Match(exact)) {
			t.Fatalf("%s does not match itself", one)
		}
		id, err := spiffeid.FromString(idText)
		if err != nil {
			return
		}
		if got, want := p.Match(id), slowMatch(one, idText); got != want {
			t.Fatalf("%s matches %s: %v, want %v", one, idText, got, want)
		}
		q, err := attestor.ParsePattern(two)
		if err != nil || !p.Match(id) || !q.Match(id) {
			return
		}
		if !p.Overlaps(q) {
			t.Fatalf("%s and %s both match %s but do not overlap", one, two, idText)
		}
		if one != two && p.Compare(q) == 0 {
			t.Fatalf("%s and %s both match %s and neither is more specific", one, two, idText)
		}
	})
}

// slowMatch reads the rule off the page.
func slowMatch(pattern, id string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(id, "/")
	if want[len(want)-1] == "**" {
		n := len(want) - 1
		if len(got) <= n {
			return false
		}
		want, got = want[:n], got[:n]
	}
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if want[i] != got[i] && want[i] != "*" {
			return false
		}
	}
	return true
}
