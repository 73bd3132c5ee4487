package main

import (
	"os"
	"testing"
	"time"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func (s *soak) fileFaults() []mishap {
	return []mishap{
		{name: "resources that do not compile", do: s.breakResources},
		{name: "a policy that cannot be evaluated", do: s.failPolicy},
		{name: "embedded CRL missing", do: s.spoilCRL(os.Remove)},
		{name: "embedded CRL truncated", do: s.spoilCRL(func(path string) error { return os.Truncate(path, 100) })},
		{name: "embedded CRL stale", do: s.oldCRL},
	}
}

// refuses reloads with something that is broken, which changes nothing, and mends it.
func (s *soak) refuses(tb testing.TB, lasting time.Duration, spoil, mend func()) {
	tb.Helper()
	spoil()
	s.daemon.reload(tb, refused)
	<-time.After(lasting)
	mend()
	s.daemon.reload(tb, tookIt)
}

func (s *soak) breakResources(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.refuses(tb, lasting, func() { s.resources(tb, s.roles+"kind: [Profile\n") }, func() { s.resources(tb, s.roles) })
}

// failPolicy puts a policy in force that can be evaluated for no agent: it overflows.
func (s *soak) failPolicy(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.resources(tb, s.roles+policyOf("overflow", `forbid (principal, action, resource) when { principal.depth * 9223372036854775807 > 0 };`))
	s.daemon.reload(tb, tookIt)
	s.tells("POLICY_ERROR")
	<-time.After(lasting)
	s.resources(tb, s.roles)
	s.daemon.reload(tb, tookIt)
}

// tells waits until an agent is told a reason, but not for long: another storm may keep agents away.
func (s *soak) tells(reason string) {
	count := func() (n int) {
		s.note(func() { n = s.failed[reason] })
		return n
	}
	before := count()
	for began := time.Now(); count() == before && time.Since(began) < 20*time.Second; {
		<-time.After(20 * time.Millisecond)
	}
}

// loseIdentity takes the files of Stint's own SVID and of the bundle away: what was known goes on.
func (s *soak) loseIdentity(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	move := func(from, to string) func() {
		return func() {
			if err := os.Rename(s.file(from), s.file(to)); err != nil {
				tb.Fatal(err)
			}
		}
	}
	s.refuses(tb, lasting, move("identity", "identity.gone"), move("identity.gone", "identity"))
}

func (s *soak) spoilBundle(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	file := s.file("identity", "bundle.pem")
	text := string(read(tb, file))
	s.refuses(tb, lasting, func() { write(tb, file, text[:len(text)/2]) }, func() { write(tb, file, text) })
}

func (s *soak) crlFile() string { return s.file("data", "ca", "internal", "crl.der") }

// spoilCRL damages the revocations of the embedded CA while stintd is down.
func (s *soak) spoilCRL(spoil func(path string) error) func(testing.TB, time.Duration) {
	return func(tb testing.TB, _ time.Duration) {
		tb.Helper()
		s.daemon.kill(tb)
		if err := spoil(s.crlFile()); err != nil {
			tb.Fatal(err)
		}
		s.daemon = s.start(tb)
		s.daemon.says(tb, "revocation state lost")
		s.revokesAgain(tb)
	}
}

// oldCRL puts an older file of revocations in place, of which nobody can tell that it is old but by the ledger.
func (s *soak) oldCRL(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	old := read(tb, s.crlFile())
	<-time.After(lasting)
	s.daemon.kill(tb)
	write(tb, s.crlFile(), string(old))
	s.daemon = s.start(tb)
	s.revokesAgain(tb)
}

// revokesAgain does what the log asks for: what is revoked by the record, and not on the CRL, is revoked again.
func (s *soak) revokesAgain(tb testing.TB) {
	tb.Helper()
	ask := &stintv1.ReconcileRequest{Backend: "stepca/internal", RevokeUnknown: true}
	res, err := s.admin(tb).Admin().Reconcile(tb.Context(), ask)
	switch {
	case err != nil:
		tb.Errorf("revoke again what the CRL has lost: %v", err)
	case len(res.GetInventories()) != 1 || res.GetInventories()[0].GetStrays() != 0:
		tb.Errorf("what the CRL has lost is left: %v", res.GetInventories())
	default:
		s.judgeAll(tb, res.GetInventories()[0])
	}
}
