package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// mutantPrograms is how many random programs a deliberate bug may survive before the model is called blind.
const mutantPrograms = 30

// mutant is a deliberate bug. The zero value is none.
type mutant struct {
	// plant builds it into a house before that starts.
	plant func(h *house)
	// release says what an issue hands out in place of its answer.
	release func(h *house, out broker.Issued, err error) (broker.Issued, error)
	// mortal cuts a dead process off from its backends. It is no bug, but how the model's houses die.
	mortal bool
}

// lies makes a transaction lie.
type lies func(tx ledger.StoreTx) ledger.StoreTx

// mutants are bugs of the kinds that would break the promise, each planted from outside: the code itself stays whole.
func mutants() map[string]mutant {
	return map[string]mutant{
		"releases before the commit":          {plant: plantEarly, release: releaseEarly},
		"commits ACTIVE without condition":    lying(func(tx ledger.StoreTx) ledger.StoreTx { return &unconditional{StoreTx: tx} }),
		"writes REVOKED without proof":        {plant: plantCredulous},
		"sweeps an intent before its horizon": lying(func(tx ledger.StoreTx) ledger.StoreTx { return hasty{tx} }),
		"drops a claim on error":              lying(func(tx ledger.StoreTx) ledger.StoreTx { return forgetful{tx} }),
		"issues without a durable intent":     lying(func(tx ledger.StoreTx) ledger.StoreTx { return &intentless{StoreTx: tx} }),
		"goes by a clock that was set":        {plant: func(h *house) { h.blind = true }},
	}
}

func lying(l lies) mutant { return mutant{plant: func(h *house) { h.lies = l }} }

// TestModelFindsBugs: the model notices each deliberate bug.
func TestModelFindsBugs(t *testing.T) {
	t.Parallel()
	for name, bug := range mutants() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gen := ops()
			for n := range mutantPrograms {
				if failures := runProgram(t, gen.Example(n), bug); len(failures) > 0 {
					t.Logf("found by program %d: %s", n, failures[0])
					return
				}
			}
			t.Errorf("the model does not notice a broker that %s", name)
		})
	}
}

// deaf is a testing.TB that does not hear errors.
type deaf struct{ testing.TB }

func (deaf) Errorf(string, ...any) {}

// early is a backend that keeps what it issued, as a broker would that hands it out at once.
type early struct {
	plugins.Backend

	mu   sync.Mutex // guards last
	last *broker.Issued
}

// earlyPreparer is early for one that prepares.
type earlyPreparer struct {
	*early
	plugins.Preparer
}

func (e *early) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	cred, err := e.Backend.Issue(ctx, req)
	if err != nil {
		return cred, err
	}
	kept := cred
	kept.Fields = maps.Clone(cred.Fields)
	for name, value := range kept.Fields {
		kept.Fields[name] = secret.New(bytes.Clone(value.Expose()))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = &broker.Issued{Lease: lease.Lease{ID: req.Lease}, Credential: kept}
	return cred, nil
}

func (e *early) take() *broker.Issued {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := e.last
	e.last = nil
	return last
}

func plantEarly(h *house) {
	for name, b := range h.backends {
		e := &early{Backend: b}
		h.backends[name] = e
		if p, ok := b.(plugins.Preparer); ok {
			h.backends[name] = earlyPreparer{early: e, Preparer: p}
		}
	}
}

func releaseEarly(h *house, out broker.Issued, err error) (broker.Issued, error) {
	for _, b := range h.backends {
		taker, ok := b.(interface{ take() *broker.Issued })
		if !ok {
			continue
		}
		if last := taker.take(); last != nil && err != nil {
			return *last, nil //nolint:nilerr // which is the bug
		}
	}
	return out, err
}

// unconditional says of every intent that nobody asked for its end, and of its task that it is ACTIVE.
type unconditional struct {
	ledger.StoreTx

	intent bool // the row read last was one
}

func (u *unconditional) Lease(id lease.ID) (lease.Lease, error) {
	l, err := u.StoreTx.Lease(id)
	if u.intent = err == nil && l.State == lease.Intent; u.intent {
		l.AskedAt = time.Time{}
	}
	return l, err
}

func (u *unconditional) Task(id task.ID) (task.Task, error) {
	t, err := u.StoreTx.Task(id)
	if u.intent {
		t.State = task.Active
	}
	u.intent = false
	return t, err
}

// hasty has no patience with intents.
type hasty struct{ ledger.StoreTx }

func (h hasty) InsertLease(l lease.Lease) error {
	if l.State == lease.Intent {
		l.SweepAt = time.Now()
		l.NextAt = l.SweepAt
	}
	return h.StoreTx.InsertLease(l)
}

// forgetful plans nothing after a failed attempt.
type forgetful struct{ ledger.StoreTx }

func (f forgetful) UpdateLease(l, from lease.Lease) error {
	if l.Attempts > from.Attempts {
		l.NextAt = time.Time{}
	}
	return f.StoreTx.UpdateLease(l, from)
}

// intentless enters an intent only with what comes after it.
type intentless struct{ ledger.StoreTx }

func (i *intentless) InsertLease(l lease.Lease) error {
	if l.State == lease.Intent {
		return nil
	}
	return i.StoreTx.InsertLease(l)
}

// credulous takes an error for an end.
type credulous struct{ plugins.Backend }

// credulousPreparer is credulous for one that prepares.
type credulousPreparer struct {
	credulous
	plugins.Preparer
}

func (c credulous) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	end, err := c.Backend.Revoke(ctx, held)
	if errors.Is(err, plugins.ErrUnavailable) {
		return plugins.Ending{Proof: plugins.ReadBack, At: time.Now(), Detail: fmt.Sprint(err)}, nil
	}
	return end, err
}

func plantCredulous(h *house) {
	for name, b := range h.backends {
		h.backends[name] = credulous{b}
		if p, ok := b.(plugins.Preparer); ok {
			h.backends[name] = credulousPreparer{credulous: credulous{b}, Preparer: p}
		}
	}
}
