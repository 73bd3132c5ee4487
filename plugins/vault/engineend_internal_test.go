package vault

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// TestWorst: an engine that is known has its own end whatever the role says, and one that is not has the worst.
func TestWorst(t *testing.T) {
	t.Parallel()
	asked := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	answered := asked.Add(8*time.Second + time.Millisecond)
	lease := bound{asked.Add(time.Minute), answered.Add(time.Minute)}
	cut, given := asked.Add(69*time.Second), asked.Add(time.Hour+9*time.Second) // rounded up
	for _, tt := range []struct {
		mount  string
		stated recipe.EngineEnd
		want   time.Time
	}{
		{"ssh", "", cut},
		{"pki", "", cut},
		{"ssh", recipe.AtMaximum, cut},
		{"database", "", given.Add(engineSlack)},
		{"database", recipe.AtMaximum, given.Add(engineSlack)},
		{"database", recipe.WithLease, cut.Add(engineSlack)},
		{"database", recipe.NoEnd, plugins.NoEnd()},
		{"consul", "", plugins.NoEnd()},
		{"consul", recipe.WithLease, plugins.NoEnd()},
		{"somebody-s", "", plugins.NoEnd()},
		{"somebody-s", recipe.WithLease, cut.Add(engineSlack)},
		{"", "", plugins.NoEnd()}, // a Vault that names no engine
		{"", recipe.AtMaximum, given.Add(engineSlack)},
	} {
		a := answer{
			reply: &rest.Reply{MountType: tt.mount, LeaseDuration: 3600}, recipe: recipe.Recipe{EngineEnd: tt.stated},
			asked: asked, answered: answered,
		}
		if got := a.worst(lease); !got.Equal(tt.want) {
			t.Errorf("of engine %q, stated %q: %s, want %s", tt.mount, tt.stated, got, tt.want)
		}
	}
}

// TestNoEndIsStored: what has no end is written to the ledger as JSON, wherever the broker runs.
func TestNoEndIsStored(t *testing.T) {
	t.Parallel()
	until := handle{Until: plugins.NoEnd().Unix()}.until()
	if text, err := until.MarshalJSON(); err != nil || string(text) != `"9999-12-31T23:59:59Z"` {
		t.Errorf("%s, %v", text, err)
	}
	if until.Location() != time.UTC {
		t.Errorf("%v is not in UTC, and would be of the year 10000 east of it", until)
	}
}
