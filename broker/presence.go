package broker

import (
	"sync"
	"time"

	"github.com/stint-dev/stint/broker/task"
)

// Presence is when the agent of each task was last heard of. It lives in memory: after a restart everybody counts as
// heard of at the start, so that an upgrade abandons nobody.
type Presence struct {
	started time.Time

	// mu guards seen. Only tasks that were heard of since the start are in it.
	mu   sync.Mutex
	seen map[task.ID]sighting
}

// sighting is the last call of a task, and how many watches are open on it.
type sighting struct {
	last    time.Time
	watches int
}

func newPresence(now time.Time) *Presence {
	return &Presence{started: now, seen: map[task.ID]sighting{}}
}

// Touch records that the agent was heard of.
func (p *Presence) Touch(id task.ID, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[id]
	s.last = now
	p.seen[id] = s
}

// Watch records an open watch, which counts as being heard of until the returned function is called.
func (p *Presence) Watch(id task.ID) (done func(now time.Time)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[id]
	s.watches++
	p.seen[id] = s
	return func(now time.Time) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if s, ok := p.seen[id]; ok {
			s.watches--
			s.last = now
			p.seen[id] = s
		}
	}
}

// Heard returns when the task's agent was last heard of since the start: now while a watch is open, and false where it was
// not heard of.
func (p *Presence) Heard(id task.ID, now time.Time) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.seen[id]
	if s.watches > 0 {
		return now, true
	}
	return s.last, ok
}

// LastSeen is Heard for who has to decide: where the agent was not heard of, it returns the start.
func (p *Presence) LastSeen(id task.ID, now time.Time) time.Time {
	if heard, ok := p.Heard(id, now); ok {
		return heard
	}
	return p.started
}

// Forget drops what is known of a closed task.
func (p *Presence) Forget(id task.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.seen, id)
}
