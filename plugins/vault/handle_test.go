package vault //nolint:testpackage // what it remembers shows nowhere outside

import (
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins"
)

func TestAttemptsForgetTheOldest(t *testing.T) {
	a := newAttempts()
	for i := range maxAttempts + 10 {
		a.begun(strconv.Itoa(i))
		a.begun(strconv.Itoa(i)) // once counts
	}
	a.succeeded("0") // forgotten, and not remembered for this
	a.succeeded("11")
	a.begun("11")
	for i, want := range map[int][2]bool{0: {}, 9: {}, 10: {true, false}, 11: {true, true}, maxAttempts + 9: {true, false}} {
		if begun, succeeded := a.of(strconv.Itoa(i)); begun != want[0] || succeeded != want[1] {
			t.Errorf("%d was begun %t, succeeded %t, want %t", i, begun, succeeded, want)
		}
	}
	if len(a.known) != maxAttempts || len(a.order) != maxAttempts {
		t.Errorf("holds %d and %d, want %d", len(a.known), len(a.order), maxAttempts)
	}
}

// FuzzHandle holds that a handle is refused or survives a round trip.
func FuzzHandle(f *testing.F) {
	f.Add(`{"v":1,"cluster":"c","accessor":"a","lease":"l","static":true,"until":1}`)
	f.Add(`{"v":1,"cluster":"c"}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		h, err := decodeHandle(plugins.Handle(text))
		if err != nil {
			return
		}
		encoded, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeHandle(encoded)
		if diff := cmp.Diff(h, again); err != nil || diff != "" {
			t.Errorf("%q: %v, %s", text, err, diff)
		}
		if until := h.until(); until.IsZero() != (h.Until == 0) && until != (time.Time{}) {
			t.Errorf("until %d became %s", h.Until, until)
		}
	})
}
