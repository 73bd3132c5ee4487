package resource_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/resource"
)

func TestPatternIsAnchored(t *testing.T) {
	p, err := resource.ParsePattern("a|bc")
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]bool{"a": true, "bc": true, "abc": false, "ab": false, "a\n": false, "": false, "xa": false} {
		if got := p.Match(value); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
	if p, err = resource.ParsePattern("(?m)^a$"); err != nil || p.Match("a\nb") {
		t.Errorf("a pattern with (?m) matches a part: %v", err)
	}
	if (resource.Pattern{}).Match("") {
		t.Error("the zero pattern matches")
	}
	for _, text := range []string{"", "a)(b", "(", `\8`} {
		if _, err := resource.ParsePattern(text); err == nil {
			t.Errorf("%q is a pattern", text)
		}
	}
}

func FuzzCheckValue(f *testing.F) {
	for _, seed := range []string{"orders", "", "../x", "a/b", "a%2f", "x*", "x+", "ä", "\x00", "\u202e", strings.Repeat("a", 257)} {
		f.Add(seed)
	}
	any, err := resource.ParsePattern(`(?s).*`)
	if err != nil {
		f.Fatal(err)
	}
	p := resource.Parameter{Name: "p", Pattern: any}
	f.Fuzz(func(t *testing.T, value string) {
		if p.CheckValue(value) != nil {
			return
		}
		if value == "" || len(value) > 256 || strings.ContainsAny(value, "/\\*+%\x00\n\r\t\x7f") || strings.Contains(value, "..") {
			t.Errorf("%q passes", value)
		}
	})
}
