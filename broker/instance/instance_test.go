package instance_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/plugins"
)

// backend is told from others by its name.
type backend struct {
	plugins.Backend

	name string
}

func names(s *instance.Snapshot) []string {
	var out []string
	for _, i := range s.All() {
		name := i.Name
		if b, ok := i.Backend.(backend); ok && b.name != name {
			name += "=" + b.name
		}
		if i.Leaving {
			name += " leaves"
		}
		out = append(out, name)
	}
	return out
}

func of(name string, of ...string) instance.Instance {
	if len(of) == 0 {
		of = []string{name}
	}
	return instance.Instance{Name: name, Backend: backend{name: of[0]}}
}

// TestSnapshots: what is not configured any more stays as one that is leaving, until it is taken out; what comes back is
// configured again; and no snapshot changes.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	first := instance.New(of("vault/b"), of("stepca/a"))
	second := first.Replace(of("stepca/a", "new"), of("vault/c"))
	third := second.Replace(of("vault/b", "again"), of("vault/c"))
	for name, tt := range map[string]struct {
		snapshot *instance.Snapshot
		want     []string
	}{
		"first":                  {first, []string{"vault/b", "stepca/a"}},
		"one changed, one gone":  {second, []string{"stepca/a=new", "vault/c", "vault/b leaves"}},
		"one back":               {third, []string{"vault/b=again", "vault/c", "stepca/a=new leaves"}},
		"taken out":              {third.Without("stepca/a"), []string{"vault/b=again", "vault/c"}},
		"a configured one stays": {third.Without("vault/b"), []string{"vault/b=again", "vault/c", "stepca/a=new leaves"}},
		"by name": {
			instance.Configured(map[string]plugins.Backend{"b": backend{name: "b"}, "a": backend{name: "a"}}), []string{"a", "b"},
		},
	} {
		if diff := cmp.Diff(tt.want, names(tt.snapshot)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if in, ok := second.Find("vault/b"); !ok || !in.Leaving || second.Has("vault/b") || len(second.Configured()) != 2 {
		t.Errorf("one that leaves: %+v, %t; %v", in, ok, second.Configured())
	}
	if _, ok := second.Find("vault/x"); ok || second.Has("vault/x") {
		t.Error("there is a backend that nobody configured")
	}
}
