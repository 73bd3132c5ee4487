package broker

import "context"

// turns lets one change through at a time. It is no mutex: what is done in a turn waits for the ledger, and who waits for a
// turn may give up.
type turns chan struct{}

func newTurns() turns { return make(turns, 1) }

// take waits for a turn, or returns the context's error. give must follow exactly when it returns nil.
func (t turns) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turns) give() { <-t }
