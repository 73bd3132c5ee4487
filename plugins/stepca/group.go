package stepca

import (
	"context"
	"fmt"
	"sync"

	"github.com/stint-dev/stint/plugins"
)

// group lets many callers share one run of something slow. Each caller's items are in a run that began after it
// joined; runs never overlap. It starts no goroutine: one of the callers does the work for all.
type group[T any] struct {
	turn chan struct{} // holds one token; who takes it runs

	// mu guards open, the batch that the next run takes.
	mu   sync.Mutex
	open *batch[T]
}

type batch[T any] struct {
	items []T
	done  chan struct{}
	err   error // set before done is closed
}

func newGroup[T any]() *group[T] {
	g := &group[T]{turn: make(chan struct{}, 1)}
	g.turn <- struct{}{}
	return g
}

// do returns the result of a run that held the items. When the context ends first, the items stay for the next run.
func (g *group[T]) do(ctx context.Context, run func(items []T) error, items ...T) error {
	b := g.join(items)
	select {
	case <-g.turn:
		if g.take(b) {
			b.err = run(b.items)
			close(b.done)
		}
		g.turn <- struct{}{}
	case <-b.done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, context.Cause(ctx))
	}
	<-b.done
	return b.err
}

func (g *group[T]) join(items []T) *batch[T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = &batch[T]{done: make(chan struct{})}
	}
	g.open.items = append(g.open.items, items...)
	return g.open
}

// take closes the batch to newcomers; false says that an earlier turn has run it.
func (g *group[T]) take(b *batch[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != b {
		return false
	}
	g.open = nil
	return true
}
