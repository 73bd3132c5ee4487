package main

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/vault"
)

// mishap is something that fails and is mended again.
type mishap struct {
	name string
	do   func(tb testing.TB, lasting time.Duration)
}

// storm lets faults happen, one after the other. Several storms go on at once, each with parts that no other touches.
type storm struct {
	faults []mishap
	rng    *rand.Rand
}

// span returns a random time between two.
func (w *storm) span(least, most time.Duration) time.Duration {
	return least + time.Duration(w.rng.Int64N(int64(most-least)))
}

// storms are what fails: the broker with its ledger, Vault with PostgreSQL, and step-ca.
func (s *soak) storms(seed uint64) []*storm {
	all := [][]mishap{
		{
			{"stintd killed", s.killStintd},
			{"stintd frozen", s.freezeStintd},
			{"stintd restarted", s.restartStintd},
			{"ledger locked", s.lockLedger},
		},
		{
			{"vault sealed", s.sealVault},
			{"vault killed", s.killVault},
			{"vault frozen", s.freezeVault},
			{"vault: lost answers", s.trouble(lostAnswer)},
			{"vault: late answers", s.trouble(lateAnswer)},
			{"vault: 429", s.trouble(tooMany)},
			{"vault: another server", s.trouble(otherServer)},
			{"vault: a role's policy is gone", s.losePolicy("stint-orders-db-read")},
			{"vault: stint's own policy is gone", s.losePolicy(vault.StintPolicy)},
			{"vault: tokens of credentials revoked", s.revokeTokens},
			{"postgres restarted", func(tb testing.TB, _ time.Duration) { tb.Helper(); s.pg.Restart(tb) }},
			{"postgres down", s.stopPostgres},
		},
		{
			{"step-ca down", s.stopStepCA},
			{"step-ca frozen", s.freezeStepCA},
		},
	}
	var out []*storm
	for i, faults := range all {
		out = append(out, &storm{faults: faults, rng: rand.New(rand.NewPCG(seed, 1000+uint64(i)))})
	}
	return out
}

// rage lets the faults happen in rounds of a random order, until the end.
func (w *storm) rage(tb testing.TB, s *soak, length time.Duration) {
	tb.Helper()
	began := time.Now()
	for {
		for _, i := range w.rng.Perm(len(w.faults)) {
			if time.Since(began) > length {
				return
			}
			s.note(func() { s.faults[w.faults[i].name]++ })
			w.faults[i].do(tb, w.span(300*time.Millisecond, 3*time.Second))
			<-time.After(w.span(500*time.Millisecond, 2*time.Second))
		}
	}
}

func (s *soak) killStintd(tb testing.TB, _ time.Duration) {
	tb.Helper()
	s.daemon.kill(tb)
	s.daemon = s.start(tb)
}

func (s *soak) restartStintd(tb testing.TB, _ time.Duration) {
	tb.Helper()
	s.daemon.stop(tb)
	s.daemon = s.start(tb)
}

func (s *soak) freezeStintd(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.daemon.signal(tb, syscall.SIGSTOP)
	<-time.After(lasting)
	s.daemon.signal(tb, syscall.SIGCONT)
}

func (s *soak) sealVault(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.server.Seal(tb)
	<-time.After(lasting)
	s.server.Unseal(tb)
}

func (s *soak) killVault(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.server.Kill(tb)
	<-time.After(lasting)
	s.server.Restart(tb)
}

func (s *soak) freezeVault(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.server.Pause(tb)
	<-time.After(lasting)
	s.server.Resume(tb)
}

func (s *soak) stopStepCA(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.ca.Stop(tb)
	<-time.After(lasting)
	s.ca.Restart(tb)
}

func (s *soak) freezeStepCA(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.ca.Pause(tb)
	<-time.After(lasting)
	s.ca.Resume(tb)
}

func (s *soak) stopPostgres(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.pg.Stop(tb)
	<-time.After(lasting)
	s.pg.Restart(tb)
}

// trouble makes the proxy before Vault make trouble.
func (s *soak) trouble(what trouble) func(testing.TB, time.Duration) {
	return func(_ testing.TB, lasting time.Duration) {
		end := s.front.make(what)
		defer end()
		<-time.After(lasting)
	}
}

// losePolicy deletes a policy, which Vault then denies to whoever has it.
func (s *soak) losePolicy(name string) func(testing.TB, time.Duration) {
	return func(tb testing.TB, lasting time.Duration) {
		tb.Helper()
		text, err := s.vault.Root.Sys().GetPolicyWithContext(tb.Context(), name)
		if err != nil {
			tb.Fatal(err)
		}
		if err = s.vault.Root.Sys().DeletePolicyWithContext(tb.Context(), name); err != nil {
			tb.Fatal(err)
		}
		<-time.After(lasting)
		s.vault.Policy(tb, name, text)
	}
}

// revokeTokens revokes the tokens of all credentials, those in flight with them.
func (s *soak) revokeTokens(tb testing.TB, _ time.Duration) {
	tb.Helper()
	for accessor := range tokens(tb, s.vault) {
		_ = s.vault.Root.Auth().Token().RevokeAccessorWithContext(tb.Context(), accessor) // it may have ended meanwhile
	}
}

// lockLedger keeps stintd from writing, as a slow disk or somebody else's lock does.
func (s *soak) lockLedger(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	unlock, err := s.lock(tb)
	if err != nil {
		return // stintd was writing all the time
	}
	<-time.After(lasting)
	unlock()
}
