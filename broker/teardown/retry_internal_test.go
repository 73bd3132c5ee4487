package teardown

import (
	"testing"
	"time"
)

// TestBackOff: what is waited for after a failed attempt doubles with each, up to a cap, and is jittered over the upper half of
// that: never less, so that it is never zero, and not the same for all that fail at once.
func TestBackOff(t *testing.T) {
	for attempts, full := range []time.Duration{
		firstRetry, 2 * firstRetry, 4 * firstRetry, 8 * firstRetry, 16 * firstRetry, 32 * firstRetry, 64 * firstRetry, maxRetry, maxRetry,
	} {
		backsOff(t, attempts, full)
	}
	for _, attempts := range []int{20, 63, 64, 1 << 30} { // a day, and more than a shift can take
		backsOff(t, attempts, maxRetry)
	}
}

// backsOff draws so often that what is drawn fills the bounds: of 1000 draws one is in each quarter of them.
func backsOff(t *testing.T, attempts int, full time.Duration) {
	t.Helper()
	shortest, longest := full, time.Duration(0)
	for range 1000 {
		d := backOff(attempts)
		shortest, longest = min(shortest, d), max(longest, d)
	}
	if shortest < full/2 || longest > full {
		t.Errorf("after %d attempts: from %s to %s, want between %s and %s", attempts, shortest, longest, full/2, full)
	}
	if shortest > full*5/8 || longest < full*7/8 {
		t.Errorf("after %d attempts: only from %s to %s, want all between %s and %s", attempts, shortest, longest, full/2, full)
	}
}
