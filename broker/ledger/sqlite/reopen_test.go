package sqlite_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

// TestReopenWhileOthersWait: who waits for a reader when the connections are replaced gets one of the new ones, and does not
// wait for ever for one of the old.
func TestReopenWhileOthersWait(t *testing.T) {
	t.Parallel()
	s, err := sqlite.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	sqlite.WriteBack(t.Context(), s) // so that no reader needs the WAL, which is emptied
	const readers = 4
	started, over, read := make(chan struct{}), make(chan struct{}), make(chan error, 3*readers)
	view := func(fn func()) {
		read <- s.View(t.Context(), func(r ledger.Reader) error {
			_, failed := r.Head()
			fn()
			return failed
		})
	}
	for range readers {
		go view(func() { started <- struct{}{}; <-over })
		<-started
	}
	for range 2 * readers {
		go view(func() {})
	}
	<-time.After(100 * time.Millisecond) // until they wait; where they do not yet, they find the new ones
	if err = s.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := time.After(30 * time.Second)
	for range 2 * readers {
		select {
		case failed := <-read:
			err = errors.Join(err, failed)
		case <-late:
			t.Fatal("who waited for a reader waits for ever")
		}
	}
	close(over)
	for range readers { // of what was replaced
		if failed := <-read; failed != nil && !errors.Is(failed, ledger.ErrUnavailable) {
			t.Error(failed)
		}
	}
	if err = errors.Join(err, s.Close()); err != nil {
		t.Error(err)
	}
}
