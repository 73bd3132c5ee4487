package plugintest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// Op names one call of the contract.
type Op string

// The calls that faults can be injected into.
const (
	OpPrepare Op = "prepare"
	OpIssue   Op = "issue"
	OpRevoke  Op = "revoke"
)

// Hook runs inside a call, outside of every lock. Its error becomes the call's.
type Hook func(ctx context.Context, lease plugins.LeaseID) error

// FailNext makes the next call of op return err before it has any effect. Calls of it queue up, one fault a call.
// To promise that nothing was issued, err must wrap plugins.ErrNotIssued itself.
func (m *Memory) FailNext(op Op, err error) { m.faults.push(op, fault{kind: failing, err: err}) }

// LoseNext makes the next call of op have its effect and lose the answer: the caller gets ErrUnavailable.
func (m *Memory) LoseNext(op Op) { m.faults.push(op, fault{kind: losing}) }

// HangNext makes the next call of op hang without effect until its context is done.
func (m *Memory) HangNext(op Op) { m.faults.push(op, fault{kind: hanging}) }

// LateNext makes the next call of op hang until its context is done, and have its effect when delay has passed since
// the call began, whether anybody still waits or not. A delay beyond the call's deadline plus the horizon breaks the
// contract; up to that it is what a horizon means.
func (m *Memory) LateNext(op Op, delay time.Duration) {
	m.faults.push(op, fault{kind: late, delay: delay})
}

// Before sets a hook that every call of op runs before its effect; an error leaves no effect. nil removes it.
func (m *Memory) Before(op Op, hook Hook) { m.faults.hook(hookKey{op: op}, hook) }

// After sets a hook that every call of op runs after its effect; an error leaves the effect. nil removes it.
func (m *Memory) After(op Op, hook Hook) { m.faults.hook(hookKey{op: op, after: true}, hook) }

// Break makes every call fail with ErrUnavailable and without effect until Heal.
func (m *Memory) Break() { m.faults.set(func(f *faults) { f.broken = true }) }

// Heal ends Break.
func (m *Memory) Heal() { m.faults.set(func(f *faults) { f.broken = false }) }

// Calls returns how many calls of op have begun.
func (m *Memory) Calls(op Op) int {
	m.faults.mu.Lock()
	defer m.faults.mu.Unlock()
	return m.faults.calls[op]
}

// errLost is what a caller sees of an answer that did not come.
var errLost = errors.New("the answer was lost")

type kind int

const (
	working kind = iota
	failing
	losing
	hanging
	late
)

type fault struct {
	kind  kind
	err   error
	delay time.Duration
}

type hookKey struct {
	op    Op
	after bool
}

type call struct {
	op      Op
	lease   plugins.LeaseID
	latency time.Duration
}

// faults decides what becomes of each call. The zero value lets everything work.
type faults struct {
	// mu guards what is below; it is not held while a hook or an effect runs.
	mu     sync.Mutex
	broken bool
	queue  map[Op][]fault
	hooks  map[hookKey]Hook
	calls  map[Op]int
}

func (f *faults) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faults) isBroken() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

func (f *faults) push(op Op, next fault) {
	f.set(func(f *faults) {
		if f.queue == nil {
			f.queue = map[Op][]fault{}
		}
		f.queue[op] = append(f.queue[op], next)
	})
}

func (f *faults) hook(key hookKey, hook Hook) {
	f.set(func(f *faults) {
		if f.hooks == nil {
			f.hooks = map[hookKey]Hook{}
		}
		f.hooks[key] = hook
	})
}

// take counts the call and returns what happens to it.
func (f *faults) take(op Op) (next fault, before, after Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = map[Op]int{}
	}
	f.calls[op]++
	if q := f.queue[op]; len(q) > 0 {
		next, f.queue[op] = q[0], q[1:]
	}
	return next, f.hooks[hookKey{op: op}], f.hooks[hookKey{op: op, after: true}]
}

// run carries effect out unless a fault stands before it, and fails where one stands before or after it.
func (f *faults) run(ctx context.Context, c call, effect func()) error {
	next, before, after := f.take(c.op)
	if err := f.arrive(ctx, c, before); err != nil {
		return err
	}
	switch next.kind {
	case failing:
		return next.err
	case hanging:
		<-ctx.Done()
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, context.Cause(ctx))
	case late:
		time.AfterFunc(next.delay, effect)
		<-ctx.Done()
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, context.Cause(ctx))
	case losing:
		effect()
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, errLost)
	case working:
	}
	effect()
	if after != nil {
		return after(ctx, c.lease)
	}
	return nil
}

// arrive is everything before a call has an effect: the way there, a backend that is down, the hook.
func (f *faults) arrive(ctx context.Context, c call, before Hook) error {
	if err := wait(ctx, c.latency); err != nil {
		return nothing(c.op, err)
	}
	if f.isBroken() {
		return nothing(c.op, plugins.ErrUnavailable)
	}
	if before != nil {
		if err := before(ctx, c.lease); err != nil {
			return nothing(c.op, err)
		}
	}
	return nil
}

// nothing adds to an issue's error that nothing was made.
func nothing(op Op, err error) error {
	if op == OpIssue {
		return fmt.Errorf("%w: %w", err, plugins.ErrNotIssued)
	}
	return err
}

// wait returns when d has passed or the context is done, and then wraps ErrUnavailable.
func wait(ctx context.Context, d time.Duration) error {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, context.Cause(ctx))
	}
	return nil
}
