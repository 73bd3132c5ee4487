package broker

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/ledgertest"
)

// TestSweepAfterTheClockWasSet: an intent that becomes durable after the clock was set is swept after its true horizon.
func TestSweepAfterTheClockWasSet(t *testing.T) {
	began := time.Now()
	for _, by := range []time.Duration{0, time.Hour, -time.Hour} {
		now := ledgertest.SetReading(began.Add(4*time.Second), by)
		if got := sweepAt(now, began.Add(IssueTimeout), time.Minute).Round(0).Sub(now.Round(0)); got != time.Minute+6*time.Second {
			t.Errorf("set by %s after 4 s: swept in %s", by, got)
		}
	}
}
