package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
)

const (
	// nobody is how log and records call who has no identity.
	nobody = "unauthenticated"
	// attestEvery is how often the caller of an open stream is attested even when nothing changed: timers do not count the
	// time that a machine sleeps.
	attestEvery = time.Minute
	// attestRetry is when to try again where nothing could be verified.
	attestRetry = 2 * time.Second
)

// attest says who is calling, and keeps saying it while a stream is open. Open methods may be called without evidence, but
// not with bad evidence.
func (s *Server) attest(ctx context.Context, c *call, next func(context.Context) error) error {
	evidence, brought := evidenceOf(ctx)
	if c.rule.open && !brought {
		return s.ending(ctx, c, evidence, next)
	}
	identity, err := c.endpoint.Attestor.Attest(ctx, evidence)
	if err != nil {
		refusal := refusalOf(err)
		s.cfg.Broker.Refused(audit.Actor{ID: nobody, Method: c.endpoint.Name}, refusal.Reason)
		return refusal
	}
	c.caller = broker.Caller{Identity: identity, Request: c.request, Admin: s.administers(identity)}
	return s.ending(context.WithValue(ctx, callerKey{}, c.caller), c, evidence, next)
}

// administers returns the administration role of an identity, or "".
func (s *Server) administers(id attestor.Identity) attestor.AdminRole {
	if role, ok := s.cfg.Admins.Of(id); ok && id.Method != attestor.MethodJWT {
		return role
	}
	return ""
}

// ending ends a stream when its caller's identity does, when its caller may no longer make the call, and when the server stops.
// Unary calls are short.
func (s *Server) ending(ctx context.Context, c *call, e attestor.Evidence, next func(context.Context) error) error {
	if !c.stream {
		return next(ctx)
	}
	ctx, end := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.guard(ctx, c, e, end)
	}()
	err := next(ctx)
	if f, ok := errors.AsType[*fault.Error](context.Cause(ctx)); ok && err != nil {
		err = f
	}
	end(nil)
	<-done
	return err
}

// guard attests the caller of a stream again at its end, at every change of what it was verified against, and now and then.
// It also ends the streams of an agent that is suspended, and of who is no longer the administrator that the call is for.
func (s *Server) guard(ctx context.Context, c *call, e attestor.Evidence, end context.CancelCauseFunc) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed, agents, admins := c.endpoint.changed(), s.cfg.Broker.AgentsChanged(), s.cfg.Admins.Changed()
		if !c.caller.Identity.IsZero() {
			if _, err := c.endpoint.Attestor.Attest(ctx, e); err != nil {
				end(refusalOf(err))
				return
			}
		}
		again := call{rule: c.rule, caller: c.caller}
		again.caller.Admin = s.administers(c.caller.Identity)
		if refusal := s.refused(&again); refusal != nil {
			end(refusal)
			return
		}
		timer.Reset(untilNext(c.caller.Identity, time.Now()))
		select {
		case <-changed:
		case <-agents:
		case <-admins:
		case <-timer.C:
		case <-s.stopping:
			end(fault.New(fault.ShuttingDown, "the broker is stopping; connect again").Retry(attestRetry))
			return
		case <-ctx.Done():
			return
		}
	}
}

// untilNext is when an identity is looked at again: just after its end, at the latest after attestEvery.
func untilNext(id attestor.Identity, now time.Time) time.Duration {
	if id.NotAfter.IsZero() {
		return attestEvery
	}
	return min(attestEvery, max(0, id.NotAfter.Sub(now))+time.Millisecond)
}

// changed returns the endpoint's channel, or nil, which never receives.
func (e *Endpoint) changed() <-chan struct{} {
	if e.Changed == nil {
		return nil
	}
	return e.Changed()
}

// evidenceOf collects everything by which the caller may be known, and reports whether there is anything.
func evidenceOf(ctx context.Context) (attestor.Evidence, bool) {
	var e attestor.Evidence
	p, ok := peer.FromContext(ctx)
	if !ok {
		return e, false
	}
	switch info := p.AuthInfo.(type) {
	case credentials.TLSInfo:
		e.TLS = &info.State
	case attestor.PeerCredential:
		local := info.Local()
		e.Local = &local
	}
	e.Token = bearer(ctx)
	return e, e.Token != "" || e.Local != nil || (e.TLS != nil && len(e.TLS.PeerCertificates) > 0)
}

// bearer returns the token of the header "authorization: Bearer …" (RFC 6750 section 2.1), or "". Two such headers are none.
func bearer(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// refusalOf turns an attestor's refusal into what the caller sees. An error of another kind tells the caller nothing.
func refusalOf(err error) *fault.Error {
	refusal, ok := errors.AsType[*attestor.Error](err)
	if !ok {
		return fault.Wrap(fault.Unauthenticated, "who is calling cannot be said", err)
	}
	reason := fault.Unauthenticated
	if errors.Is(err, attestor.ErrExpired) {
		reason = fault.SVIDExpired
	}
	f := fault.Wrap(reason, refusal.Message, refusal.Cause).With("problem", problemOf(err))
	if errors.Is(err, attestor.ErrUnavailable) {
		f = f.Retry(attestRetry)
	}
	return f
}

// problemOf names the kind of a refusal for machines.
func problemOf(err error) string {
	for _, kind := range []struct {
		err  error
		name string
	}{
		{attestor.ErrNoEvidence, "no_evidence"},
		{attestor.ErrExpired, "expired"},
		{attestor.ErrNotYetValid, "not_yet_valid"},
		{attestor.ErrUntrusted, "untrusted"},
		{attestor.ErrForeignTrustDomain, "foreign_trust_domain"},
		{attestor.ErrTaskDomain, "task_trust_domain"},
		{attestor.ErrAudience, "audience"},
		{attestor.ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, kind.err) {
			return kind.name
		}
	}
	return "invalid"
}

// broke is true of a connection that ended, was not TLS, or said nothing in time, as port probes do.
func broke(err error) bool {
	_, record := errors.AsType[tls.RecordHeaderError](err)
	network, ok := errors.AsType[net.Error](err)
	return record || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) || (ok && network.Timeout())
}

// Refuser counts calls that were refused before the broker saw them. *broker.Broker is one.
type Refuser interface {
	// Refused counts one; it must not block.
	Refused(actor audit.Actor, reason fault.Reason)
}

// HandshakeRefused returns what transport credentials call when a handshake fails: where the identity was the reason, or
// there was none, it is counted under the endpoint's name, like a refused call. Connections that merely broke are not.
func HandshakeRefused(r Refuser, endpoint string) func(remote net.Addr, err error) {
	return func(_ net.Addr, err error) {
		if _, ok := errors.AsType[*attestor.Error](err); ok {
			r.Refused(audit.Actor{ID: nobody, Method: endpoint}, refusalOf(err).Reason)
		} else if !broke(err) {
			r.Refused(audit.Actor{ID: nobody, Method: endpoint}, fault.Unauthenticated)
		}
	}
}
