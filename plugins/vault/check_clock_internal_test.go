package vault

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// TestClocksApart: seconds of doubt are the caller's, who waited for the answer; what is beyond is told, and beyond what a login
// stands it breaks.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	asked := time.Unix(1_800_000_000, 500)
	for off, want := range map[time.Duration]plugins.Severity{
		0: "", 4 * time.Second: "", -4 * time.Second: "", 8 * time.Second: plugins.Weakens, -8 * time.Second: plugins.Weakens,
		5 * time.Minute: plugins.Breaks, -5 * time.Minute: plugins.Breaks,
	} {
		c := &checker{}
		c.clock("database orders", asked.Add(off).Unix(), asked, asked.Add(time.Second))
		var got plugins.Severity
		for _, f := range c.findings {
			if got = f.Severity; f.Code != "clock" || !strings.HasPrefix(f.Problem, "database orders's clock") {
				t.Errorf("off by %s: %+v", off, f)
			}
		}
		if got != want {
			t.Errorf("off by %s: found %q, want %q", off, got, want)
		}
	}
}
