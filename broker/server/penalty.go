package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/stint-dev/stint/broker/fault"
)

const (
	// penaltyRate and penaltyBurst bound how often one caller is refused before it has to wait: a program that asks in a
	// loop for what it does not get.
	penaltyRate  = rate.Limit(5)
	penaltyBurst = 100
	// maxPenalties bounds the callers that are counted one by one; the rest share one bucket.
	maxPenalties = 4096
)

// penalties counts refusals by caller.
type penalties struct {
	// mu guards all below.
	mu      sync.Mutex
	callers map[string]*rate.Limiter
}

func newPenalties() *penalties { return &penalties{callers: map[string]*rate.Limiter{}} }

// wait returns how long a caller has to wait; zero for most.
func (p *penalties) wait(caller string, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.callers[caller]
	if !ok {
		return 0
	}
	missing := 1 - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / float64(penaltyRate) * float64(time.Second))
}

// add counts a refusal.
func (p *penalties) add(caller string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.callers[caller]; !ok && len(p.callers) >= maxPenalties {
		p.forget(now)
		if len(p.callers) >= maxPenalties {
			caller = nobody
		}
	}
	l, ok := p.callers[caller]
	if !ok {
		l = rate.NewLimiter(penaltyRate, penaltyBurst)
		p.callers[caller] = l
	}
	l.AllowN(now, 1)
}

// forget drops callers that have been good for a while. The caller holds mu.
func (p *penalties) forget(now time.Time) {
	for name, l := range p.callers {
		if l.TokensAt(now) >= penaltyBurst {
			delete(p.callers, name)
		}
	}
}

// slow makes a caller wait that is refused all the time, except for calls that end something.
func (s *Server) slow(ctx context.Context, c *call, next func(context.Context) error) error {
	if c.caller.Identity.IsZero() || c.rule.ends {
		return next(ctx)
	}
	caller := c.caller.Identity.String()
	if wait := s.penalties.wait(caller, time.Now()); wait > 0 {
		s.cfg.Broker.Refused(actorOf(c.caller.Identity), fault.RateLimited)
		return fault.New(fault.RateLimited, "too many of your calls were refused; look at why before you call again").Retry(wait)
	}
	err := next(ctx)
	if refused(err) {
		s.penalties.add(caller, time.Now())
	}
	return err
}

// refused reports whether an answer is the caller's own fault.
func refused(err error) bool {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return false
	}
	switch codeOf(f.Reason) { //nolint:exhaustive // the others are nobody's fault, or the broker's
	case codes.PermissionDenied, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists:
		return true
	default:
		return false
	}
}
