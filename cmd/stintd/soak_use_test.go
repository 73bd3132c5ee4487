package main

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// thief uses secrets of which the record says that they were seen to end, while they would be valid by their own end. It goes on
// while everything fails: what is tried after it has ended by itself says nothing of revoking.
type thief struct {
	*soak

	tried map[string]bool // by lease: refused before
	used  map[string]int  // by role
}

// tries lists what has been revoked lately, again and again, until over, and uses it.
func (s *thief) tries(tb testing.TB, over *atomic.Bool) {
	tb.Helper()
	admin := s.admin(tb).Admin()
	for !over.Load() {
		<-time.After(200 * time.Millisecond)
		ctx, cancel := context.WithTimeout(tb.Context(), 2*time.Second)
		res, err := admin.ListAllLeases(ctx, &stintv1.ListAllLeasesRequest{
			States: []stintv1.LeaseState{stintv1.LeaseState_LEASE_STATE_REVOKED}, PageSize: 50,
		})
		cancel()
		if err != nil {
			continue // the broker is down, or its ledger
		}
		for _, l := range res.GetLeases() {
			s.try(tb, l)
		}
	}
}

// try uses one secret until it is refused. What is not refused is a fault only if it is let in: a server that is down does neither.
func (s *thief) try(tb testing.TB, l *stintv1.Lease) {
	tb.Helper()
	var credential *agent.Credential
	s.note(func() { credential = s.issued[l.GetName()] })
	seen := l.GetProof() == "read_back" && !l.GetUsableUntil().AsTime().After(l.GetRevokedAt().AsTime())
	if s.tried[l.GetName()] || credential == nil || credential.Certificate != nil || !seen || !time.Now().Before(credential.Expires()) {
		return
	}
	err := s.accepts(tb, credential)
	if err == nil {
		tb.Errorf("%s of %s works, and was %s at %s", l.GetName(), l.GetRole(), l.GetProof(), l.GetRevokedAt().AsTime())
	}
	if err != nil && refusal(err) {
		s.tried[l.GetName()] = true
		s.used[l.GetRole()]++
	}
}

// happened says how much was refused because it was revoked, and sees that it was enough to mean something.
func (s *thief) happened(tb testing.TB) {
	tb.Helper()
	tb.Logf("secrets that were revoked, used before their own end while everything failed, and refused: %v", s.used)
	for _, role := range []string{dbRole, otpRole, consulRole} {
		if s.long && s.used[role] == 0 {
			tb.Errorf("none of %s was refused because it was revoked", role)
		}
	}
}
