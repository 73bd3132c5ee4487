// Package login keeps Stint logged in at one Vault: it renews its token at half its life, logs in anew when that does
// not help, and remembers which cluster it talks to.
package login

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// The pace of a session.
const (
	firstRetry   = time.Second
	slowestRetry = 30 * time.Second
	// minLogin is the least time between two logins that a refused call may cause.
	minLogin = time.Minute
	// noExpiry is how often a token without expiry is looked after.
	noExpiry = time.Minute
)

// Session is Stint's own token at one Vault. A session that nobody runs logs in when it is asked for a token.
type Session struct {
	vault  Doer
	method Method
	logger *zap.Logger
	flight singleflight.Group
	// anew wakes Run after a login that it did not make itself.
	anew chan struct{}

	// mu guards what follows. It is not held over a call.
	mu      sync.Mutex
	current state
}

// state is what is known of the token in use.
type state struct {
	token    secret.Value
	cluster  string
	loggedIn time.Time // when the login was answered
	expires  time.Time // zero: never
	life     time.Duration
	renew    bool
}

// New makes a Session and connects to nothing.
func New(vault Doer, method Method, logger *zap.Logger) *Session {
	return &Session{vault: vault, method: method, logger: logger, anew: make(chan struct{}, 1)}
}

// Token returns Stint's token, and logs in first if there is none that is alive.
func (s *Session) Token(ctx context.Context) (secret.Value, error) {
	st, err := s.state(ctx)
	return st.token, err
}

// Cluster returns the ID of the cluster that the token belongs to.
func (s *Session) Cluster(ctx context.Context) (string, error) {
	st, err := s.state(ctx)
	return st.cluster, err
}

// Refused reports that a call with this token was denied. It returns another token to try once more with, or false
// where that cannot help. Vault says the same of a dead token and of a missing policy. A dead one is replaced; for a
// live one, a new login takes up policies that were changed, but not within a minute of the last.
func (s *Session) Refused(ctx context.Context, token secret.Value) (secret.Value, bool) {
	st := s.snapshot()
	if !st.token.Equal(token) {
		return st.token, !st.token.IsZero() // somebody else has replaced it
	}
	if time.Since(st.loggedIn) < minLogin && s.alive(ctx, token) {
		return secret.Value{}, false
	}
	if err := s.login(ctx, token); err != nil {
		s.logger.Warn("vault refused stint's token, and a new login failed", zap.Error(err))
		return secret.Value{}, false
	}
	return s.snapshot().token, true
}

// alive is false where Vault refuses the token itself. Looking oneself up needs a policy too, which Stint's token has.
func (s *Session) alive(ctx context.Context, token secret.Value) bool {
	_, err := s.vault.Do(ctx, rest.Call{Method: http.MethodGet, Path: "auth/token/lookup-self", Token: token})
	return !rest.Denied(err)
}

// Run keeps the session alive until ctx is done. It returns nil.
func (s *Session) Run(ctx context.Context) error {
	retry := firstRetry
	for ctx.Err() == nil {
		wait, err := s.tend(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.logger.Warn("not logged in at vault; trying again", zap.Duration("in", retry), zap.Error(err))
			wait, retry = retry, min(2*retry, slowestRetry)
		default:
			retry = firstRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-s.anew:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// tend does what is due now, and returns how long there is nothing more to do.
func (s *Session) tend(ctx context.Context) (time.Duration, error) {
	st := s.snapshot()
	if st.token.IsZero() {
		return s.loginAndWait(ctx, st.token)
	}
	if wait := st.due(); wait > 0 {
		return wait, nil
	}
	if st.renew {
		renewed, err := s.renew(ctx, st)
		// Once most of its life is used up, renewing gains less each time: a new login begins another.
		if err == nil && renewed > st.life/2 {
			return s.snapshot().due(), nil
		}
		if err != nil {
			s.logger.Info("vault token not renewed; logging in anew", zap.Error(err))
		}
	}
	return s.loginAndWait(ctx, st.token)
}

func (s *Session) loginAndWait(ctx context.Context, old secret.Value) (time.Duration, error) {
	if err := s.login(ctx, old); err != nil {
		return 0, err
	}
	return max(s.snapshot().due(), firstRetry), nil
}

// due is the time until half of the token's remaining life at its last change is over.
func (st state) due() time.Duration {
	if st.expires.IsZero() {
		return noExpiry
	}
	return time.Until(st.expires.Add(-st.life / 2))
}

func (s *Session) renew(ctx context.Context, st state) (time.Duration, error) {
	asked := time.Now()
	reply, err := s.vault.Do(ctx, rest.Call{
		Method: http.MethodPut, Path: "auth/token/renew-self", Token: st.token, Body: map[string]any{},
	})
	if err != nil {
		return 0, fmt.Errorf("renew stint's vault token: %w", err)
	}
	if reply.Auth == nil {
		return 0, fmt.Errorf("renew stint's vault token: %w: the answer holds no token", plugins.ErrUnavailable)
	}
	left := seconds(reply.Auth.LeaseDuration)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.token.Equal(st.token) {
		s.current.expires = asked.Add(left)
	}
	return left, nil
}

// login replaces a token, the zero one too. Callers that come at once share one login, and one that comes late with a
// token that was replaced meanwhile makes none.
func (s *Session) login(ctx context.Context, old secret.Value) error {
	_, err, _ := s.flight.Do("", func() (any, error) {
		if st := s.snapshot(); !st.token.Equal(old) {
			return nil, nil //nolint:nilnil // the flight's value is not used
		}
		asked := time.Now()
		token, err := s.method.login(ctx, s.vault)
		if err != nil {
			return nil, err
		}
		health, err := Health(ctx, s.vault)
		if err != nil {
			return nil, err
		}
		s.replace(token, health.ClusterID, asked)
		return nil, nil //nolint:nilnil // the flight's value is not used
	})
	if err != nil {
		return err
	}
	select {
	case s.anew <- struct{}{}:
	default:
	}
	return nil
}

func (s *Session) replace(token Token, cluster string, asked time.Time) {
	st := state{token: token.Value, cluster: cluster, loggedIn: time.Now(), life: token.TTL, renew: token.Renewable}
	if token.TTL > 0 {
		st.expires = asked.Add(token.TTL)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = st
}

func (s *Session) state(ctx context.Context) (state, error) {
	st := s.snapshot()
	if !st.token.IsZero() && (st.expires.IsZero() || time.Now().Before(st.expires)) {
		return st, nil
	}
	if err := s.login(ctx, st.token); err != nil {
		return state{}, err
	}
	return s.snapshot(), nil
}

func (s *Session) snapshot() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// errNoCluster is returned for a health answer without a cluster ID.
var errNoCluster = errors.New("vault names no cluster")

// Health asks the node that answers whether it is the active one, unsealed. It returns an error otherwise.
func Health(ctx context.Context, vault Doer) (rest.Health, error) {
	reply, err := vault.Do(ctx, rest.Call{Method: http.MethodGet, Path: "sys/health", Global: true})
	if err != nil {
		return rest.Health{}, healthError(err)
	}
	h := reply.Health
	switch {
	case reply.Status != http.StatusOK || h.Standby:
		return rest.Health{}, fmt.Errorf("%w: a standby answers at this address, not the active node", plugins.ErrUnavailable)
	case h.Sealed || !h.Initialized:
		return rest.Health{}, plugins.ErrSealed
	case h.ClusterID == "":
		return rest.Health{}, fmt.Errorf("%w: %w", plugins.ErrUnavailable, errNoCluster)
	}
	return h, nil
}

// healthError words the statuses of sys/health.
func healthError(err error) error {
	const (
		drSecondary, perfStandby = 472, 473
	)
	failed, ok := errors.AsType[*rest.Error](err)
	if !ok {
		return err
	}
	switch failed.Status {
	case http.StatusServiceUnavailable:
		return plugins.ErrSealed
	case http.StatusNotImplemented:
		return fmt.Errorf("%w: not initialised", plugins.ErrUnavailable)
	case http.StatusTooManyRequests, drSecondary, perfStandby:
		return fmt.Errorf("%w: a standby answers at this address, not the active node", plugins.ErrUnavailable)
	}
	return err
}
