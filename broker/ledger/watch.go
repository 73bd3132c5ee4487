package ledger

import (
	"sync"
	"time"

	"github.com/stint-dev/stint/broker/task"
)

// KickWithin is how soon a row must be due when it is written for Kicked to fire.
const KickWithin = time.Second

// watchers are who wants to hear of commits. Nothing is sent but the fact that there is something to read.
type watchers struct {
	kicked chan struct{} // holds one

	mu    sync.Mutex // guards all below; never held over a blocking send
	tasks map[task.ID]map[chan struct{}]struct{}
	grown chan struct{} // closed and replaced when the log grows
}

func newWatchers() *watchers {
	return &watchers{
		kicked: make(chan struct{}, 1), grown: make(chan struct{}),
		tasks: map[task.ID]map[chan struct{}]struct{}{},
	}
}

// Subscribe returns a channel that receives after every commit that wrote the task or one of its leases. Several commits
// may be told as one. The caller reads the state once before the first receive, and calls cancel in the end.
func (l *Ledger) Subscribe(id task.ID) (changed <-chan struct{}, cancel func()) {
	w, ch := l.watch, make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks[id] == nil {
		w.tasks[id] = map[chan struct{}]struct{}{}
	}
	w.tasks[id][ch] = struct{}{}
	return ch, func() { w.remove(id, ch) }
}

// Kicked receives after commits that wrote a row which is due now or within KickWithin. It is for one reader, the
// teardown loop, which also looks by itself: rows that fall due later are found by NextDue.
func (l *Ledger) Kicked() <-chan struct{} { return l.watch.kicked }

// Grown returns a channel that is closed when the log next grows. Take it, read the log, then wait.
func (l *Ledger) Grown() <-chan struct{} {
	l.watch.mu.Lock()
	defer l.watch.mu.Unlock()
	return l.watch.grown
}

func (w *watchers) remove(id task.ID, ch chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tasks[id], ch)
	if len(w.tasks[id]) == 0 {
		delete(w.tasks, id)
	}
}

// committed tells whoever watches what these transactions touched.
func (w *watchers) committed(txs []*Tx) {
	w.mu.Lock()
	defer w.mu.Unlock()
	grown := false
	for _, tx := range txs {
		if tx == nil {
			continue
		}
		grown = grown || len(tx.entries) > 0
		if tx.kick {
			signal(w.kicked)
		}
		for _, id := range tx.touched {
			for ch := range w.tasks[id] {
				signal(ch)
			}
		}
	}
	if grown {
		w.grow()
	}
}

// everybody tells all, after a commit of which it is not known what it wrote.
func (w *watchers) everybody() {
	w.mu.Lock()
	defer w.mu.Unlock()
	signal(w.kicked)
	for _, chans := range w.tasks {
		for ch := range chans {
			signal(ch)
		}
	}
	w.grow()
}

// grow wakes who waits for the log. The caller holds mu.
func (w *watchers) grow() {
	close(w.grown)
	w.grown = make(chan struct{})
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
