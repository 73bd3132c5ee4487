package plugintest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/stint-dev/stint/plugins"
)

// Harness is what Run needs to know of a backend. Backend, Role and Works are required.
type Harness struct {
	// Backend is the instance under test. If it is a Runner, the caller runs it.
	Backend plugins.Backend
	// Role is a valid role of the backend, best with MaxTTL of at least TTL.
	Role plugins.Role
	// BadRoles must each be refused, by what is wrong with them. Run itself adds an unknown key to Role.
	BadRoles map[string]plugins.Role
	// Request returns a request with what Role needs: Params, CSR, and Agent and TaskID where the defaults do not do. Run sets Lease,
	// Role, NotAfter and Prepared. May be nil.
	Request func(tb testing.TB) plugins.Request
	// Works tries to use the credential for real, at once, the way a relying service that checks revocation would.
	Works func(ctx context.Context, cred plugins.Credential) bool
	// TTL is what is asked for; 5 min if zero.
	TTL time.Duration
	// Timeout is the deadline of each call; 10 s if zero.
	Timeout time.Duration
	// Break makes the system behind the backend unreachable, Heal brings it back. Both or none.
	Break, Heal func(tb testing.TB)
}

// suite is a Harness with its defaults.
type suite struct {
	Harness

	info plugins.RoleInfo
}

// Run checks that the backend keeps the contract of package plugins. Each check is a subtest; they run one after the
// other, because Break affects all. What is issued is revoked.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.TTL == 0 {
		h.TTL = 5 * time.Minute
	}
	if h.Timeout == 0 {
		h.Timeout = 10 * time.Second
	}
	info, err := h.Backend.CheckRole(h.Role)
	if err != nil {
		t.Fatalf("CheckRole refuses the harness's role: %v", err)
	}
	s := &suite{Harness: h, info: info}
	t.Run("descriptor", s.descriptor)
	t.Run("roles", s.roles)
	t.Run("life", s.life)
	t.Run("not after", s.notAfter)
	t.Run("never issued", s.neverIssued)
	t.Run("unknown handle", s.unknownHandle)
	t.Run("expired", s.expired)
	t.Run("context is done", s.contextIsDone)
	t.Run("issue is cancelled", s.issueIsCancelled)
	t.Run("many at once", s.manyAtOnce)
	t.Run("missing csr", s.missingCSR)
	t.Run("prepare", s.prepare)
	t.Run("list", s.list)
	t.Run("accounts", s.accounts)
	t.Run("register", s.register)
	t.Run("publish", s.publish)
	t.Run("break and heal", s.breakAndHeal)
	t.Run("goroutines", s.goroutines)
}

// issued is a credential with the request that brought it.
type issued struct {
	req  plugins.Request
	cred plugins.Credential
}

func (i issued) held() plugins.Held {
	return plugins.Held{
		Lease: i.req.Lease, Role: i.req.Role.Name, Handle: i.cred.Handle, IssuedAt: time.Now(), NotAfter: i.cred.NotAfter,
	}
}

// context returns one that ends with the call's deadline.
func (s *suite) context(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), s.Timeout)
	tb.Cleanup(cancel)
	return ctx
}

// request makes a request with a fresh lease, not prepared.
func (s *suite) request(tb testing.TB) plugins.Request {
	tb.Helper()
	req := plugins.Request{}
	if s.Request != nil {
		req = s.Request(tb)
	}
	lease, err := uuid.NewV7()
	if err != nil {
		tb.Fatalf("make lease ID: %v", err)
	}
	req.Lease, req.Role, req.NotAfter = plugins.LeaseID(lease), s.Role, time.Now().Add(s.TTL)
	if req.TaskID == "" {
		task, err := uuid.NewV7()
		if err != nil {
			tb.Fatalf("make task ID: %v", err)
		}
		req.TaskID, req.TaskName = task.String(), "plugintest-"+task.String()[:4]
	}
	if req.Agent == "" {
		req.Agent = "spiffe://example.org/agent/plugintest"
	}
	return req
}

// prepared runs Prepare where there is one.
func (s *suite) prepared(tb testing.TB) plugins.Request {
	tb.Helper()
	req := s.request(tb)
	p, ok := s.Backend.(plugins.Preparer)
	if !ok {
		return req
	}
	prepared, err := p.Prepare(s.context(tb), req)
	if err != nil {
		tb.Fatalf("Prepare: %v", err)
	}
	if prepared.Handle == "" || prepared.NotAfter.IsZero() {
		tb.Errorf("Prepare returned no handle or no end by the backend's clock: %q, %v", prepared.Handle, prepared.NotAfter)
	}
	req.Prepared = prepared
	return req
}

// issue issues one credential that works, and sees to it that it ends with the test.
func (s *suite) issue(tb testing.TB) issued {
	tb.Helper()
	req := s.prepared(tb)
	cred, err := s.Backend.Issue(s.context(tb), req)
	if err != nil {
		tb.Fatalf("Issue: %v", err)
	}
	got := issued{req: req, cred: cred}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), s.Timeout)
		defer cancel()
		if _, err := s.Backend.Revoke(ctx, got.held()); err != nil {
			tb.Errorf("Revoke at the end of the test: %v", err)
		}
	})
	if !s.Works(s.context(tb), cred) {
		tb.Errorf("what was issued does not work: %s", cred.PublicRef)
	}
	return got
}

// revoke ends what is held and checks that the answer is one that the contract allows.
func (s *suite) revoke(tb testing.TB, held plugins.Held) plugins.Ending {
	tb.Helper()
	end, err := s.Backend.Revoke(s.context(tb), held)
	if err != nil {
		tb.Fatalf("Revoke: %v", err)
	}
	s.checkEnding(tb, end)
	return end
}

// checkEnding checks the shape of an Ending and whether its proof can be that of the role's kind.
func (s *suite) checkEnding(tb testing.TB, end plugins.Ending) {
	tb.Helper()
	final := []plugins.Proof{
		plugins.ReadBack, plugins.OnCRL, plugins.Lapsed, plugins.Swept, plugins.LostAtBackend, plugins.NotIssued,
	}
	switch s.info.Ends {
	case plugins.EndsLapsing:
		final = append(final, plugins.Pending)
	case plugins.EndsNever:
		final = append(final, plugins.Disclosed)
	case plugins.EndsRevocable, plugins.EndsUnknown:
	}
	if !slices.Contains(final, end.Proof) {
		tb.Errorf("proof %q is none that a role of this kind can end with: %v", end.Proof, final)
	}
	if end.At.IsZero() {
		tb.Error("an ending without a time")
	}
	if end.Proof == plugins.Pending && end.UsableUntil.IsZero() {
		tb.Error("Pending without the instant at which it ends")
	}
}

// checkError checks that an error lets its reader tell whose it is to mend.
func checkError(tb testing.TB, err error) {
	tb.Helper()
	if err == nil {
		tb.Error("no error")
		return
	}
	sentinels := []error{
		plugins.ErrUnavailable, plugins.ErrMisconfigured, plugins.ErrNotIssued, plugins.ErrNotProven, plugins.ErrUnknownHandle, plugins.ErrGone, plugins.ErrInvalidRole,
	}
	if !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) }) {
		tb.Errorf("error wraps no sentinel of package plugins: %v", err)
	}
}
