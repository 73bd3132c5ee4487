package vaulttest

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What docs/dead-mans-switch.md states: for how long after its end a credential may be alive when nobody ends it. A token
// has the horizon on top.
const (
	LeaseSlack       = 5 * time.Second  // Vault's expiry runs on timers, and its workers take a moment
	DatabaseSlack    = 6 * time.Second  // Vault adds 5 s to VALID UNTIL
	EventSlack       = 10 * time.Second // and to events, which take a moment
	CertificateSlack = 2 * time.Second  // the engine counts from when it signs, Stint from when it asked
)

// Watch is something that must be gone some time after a credential's end.
type Watch struct {
	What  string
	End   time.Time // the credential's
	Slack time.Duration
	Alive func() bool
}

// GoneInTime waits until everything is gone, and expects none to be seen alive after its slack.
func GoneInTime(tb testing.TB, watches ...Watch) {
	tb.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(watches) > 0 {
		watches = slices.DeleteFunc(watches, func(w Watch) bool {
			late := time.Since(w.End) // before it is looked at: a look may take long
			alive := w.Alive()
			switch {
			case !alive:
				tb.Logf("%s is gone %s after the credential's end; stated is at most %s", w.What, late.Round(time.Millisecond), w.Slack)
			case late >= w.Slack:
				tb.Errorf("%s is alive %s after the credential's end", w.What, w.Slack)
			}
			return !alive || late >= w.Slack
		})
		<-tick.C
	}
}

// LeaseAlive says whether Vault's own books have a lease under a path.
func (f *Fixture) LeaseAlive(tb testing.TB, path string) func() bool {
	tb.Helper()
	return func() bool {
		answer, err := f.Root.Logical().ListWithContext(tb.Context(), "sys/leases/lookup/"+path)
		return err != nil || answer != nil
	}
}

// TokenAlive says whether Vault's own books have the token of an accessor.
func (f *Fixture) TokenAlive(tb testing.TB, accessor string) func() bool {
	tb.Helper()
	return func() bool {
		_, err := f.Root.Auth().Token().LookupAccessorWithContext(tb.Context(), accessor)
		return err == nil || !strings.Contains(err.Error(), "invalid accessor")
	}
}
