package broker

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
)

const (
	// refusalRate and refusalBurst bound how many refusals of one caller get a record, and so an fsync, of their own.
	refusalRate  = rate.Limit(1)
	refusalBurst = 20
	// refusalFlush is how often the others are recorded as sums.
	refusalFlush = 10 * time.Second
	// maxRefused bounds the callers that are counted one by one; the rest share one bucket.
	maxRefused = 4096
)

// refusalKey is what sums are kept by.
type refusalKey struct {
	actor, method string
	reason        fault.Reason
}

// refusals keeps refusals from costing more than they are worth.
type refusals struct {
	// mu guards all below.
	mu       sync.Mutex
	limiters map[string]*rate.Limiter
	owed     map[refusalKey]int64
}

func newRefusals() *refusals {
	return &refusals{limiters: map[string]*rate.Limiter{}, owed: map[refusalKey]int64{}}
}

// admit reports whether a refusal gets a record of its own; otherwise it is counted.
func (r *refusals) admit(a audit.Actor, reason fault.Reason, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := a.ID
	limiter, ok := r.limiters[name]
	if !ok {
		if len(r.limiters) >= maxRefused {
			name = ""
		}
		if limiter, ok = r.limiters[name]; !ok {
			limiter = rate.NewLimiter(refusalRate, refusalBurst)
			r.limiters[name] = limiter
		}
	}
	if limiter.AllowN(now, 1) {
		return true
	}
	r.add(refusalKey{actor: name, method: a.Method, reason: reason}, 1)
	return false
}

// owe counts a refusal whose record could not be written.
func (r *refusals) owe(a audit.Actor, reason fault.Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(refusalKey{actor: a.ID, method: a.Method, reason: reason}, 1)
}

func (r *refusals) add(key refusalKey, n int64) {
	if _, ok := r.owed[key]; !ok && len(r.owed) >= maxRefused {
		key = refusalKey{reason: key.reason}
	}
	r.owed[key] += n
}

// take returns what is owed and forgets callers that have been quiet.
func (r *refusals) take(now time.Time) map[refusalKey]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	owed := r.owed
	r.owed = map[refusalKey]int64{}
	for name, l := range r.limiters {
		if l.TokensAt(now) >= refusalBurst {
			delete(r.limiters, name)
		}
	}
	return owed
}

// give puts back what could not be recorded.
func (r *refusals) give(owed map[refusalKey]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range owed {
		r.add(key, n)
	}
}

// flushRefusals records the sums of refusals that got no record of their own.
func (b *Broker) flushRefusals(ctx context.Context) {
	owed := b.refusals.take(time.Now())
	if len(owed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refusalFlush)
	defer cancel()
	_, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error {
		for key, n := range owed {
			_, err := tx.Append(audit.Record{
				V: 1, Time: time.Now().UTC(), Event: audit.CallsRefused, Actor: audit.Actor{ID: key.actor, Method: key.method},
				Reason: string(key.reason), Count: n,
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.refusals.give(owed)
		b.log.Warn("refusals not recorded yet", zap.Error(err))
	}
}

// Refused counts a call that was refused before it had an identity, or before the broker saw it. It is recorded as a sum.
func (b *Broker) Refused(a audit.Actor, reason fault.Reason) {
	b.meter.Denied(reason)
	b.refusals.owe(a, reason)
}
