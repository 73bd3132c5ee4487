package broker

import (
	"context"
	"sync"

	"github.com/stint-dev/stint/broker/fault"
)

// gate counts calls in flight and, once drained, admits no more. Its zero value is open.
type gate struct {
	// mu guards all below.
	mu     sync.Mutex
	closed bool
	inside int
	empty  chan struct{} // closed when the last one leaves a closed gate; made by drain
}

// enter admits a call; leave must follow exactly when it returns nil.
func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fault.New(fault.ShuttingDown, "the broker is stopping; nothing was done").Retry(shutdownRetry)
	}
	g.inside++
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// drain closes the gate and waits until nobody is inside.
func (g *gate) drain(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	if g.inside == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
