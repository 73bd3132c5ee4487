package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/vault"
)

const (
	// maxJump is by how much the clock is set at most.
	maxJump = 45 * time.Second
	// longFault is longer than a fault takes, unless it is one that does.
	longFault = 30 * time.Second
	clockSet  = "the machine's clock was set"
)

// mishap is something that fails and is mended again.
type mishap struct {
	name string
	do   func(tb testing.TB, lasting time.Duration)
	rest time.Duration // how long it does not happen again after it was mended
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

// storms are what fails: the broker with its ledger, its files and its clock; Vault with what is behind it; step-ca; and where
// identities come from.
func (s *soak) storms(seed uint64) []*storm {
	all := [][]mishap{
		slices.Concat(s.brokerFaults(), s.stepFaults(), s.startFaults(), s.ledgerFaults(), s.fileFaults()),
		s.vaultFaults(),
		s.stepCAFaults(),
		s.identityFaults(),
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
	began, mended := time.Now(), map[string]time.Time{}
	for {
		for _, i := range w.rng.Perm(len(w.faults)) {
			f, lasting, rest := w.faults[i], w.span(300*time.Millisecond, 3*time.Second), w.span(500*time.Millisecond, 2*time.Second)
			if time.Since(began) > length {
				return
			}
			if at, ok := mended[f.name]; ok && time.Since(at) < f.rest {
				continue
			}
			s.note(func() { s.faults[f.name]++ })
			start := time.Now()
			f.do(tb, lasting)
			mended[f.name] = time.Now()
			if took := time.Since(start); took > longFault {
				tb.Logf("%s: it took %s until it was mended", f.name, took.Round(time.Second))
			}
			<-time.After(rest)
		}
	}
}

func (s *soak) brokerFaults() []mishap {
	return []mishap{
		{name: "stintd killed", do: s.killStintd},
		{name: "stintd frozen", do: s.freezeStintd},
		{name: "stintd restarted", do: s.restartStintd},
		{name: "no fault: an operator reconciles", do: func(tb testing.TB, _ time.Duration) { tb.Helper(); _ = s.reconcile(tb) }},
		{name: "clock set", do: s.setClock, rest: 8 * time.Minute}, // what ends by the clock is held for five
	}
}

func (s *soak) vaultFaults() []mishap {
	return []mishap{
		{name: "vault sealed", do: s.sealVault},
		{name: "vault killed", do: s.killVault},
		{name: "vault frozen", do: s.freezeVault},
		{name: "vault killed before it stores a lease", do: s.killVaultEarly},
		{name: "vault: lost answers", do: s.trouble(lostAnswer)},
		{name: "vault: late answers", do: s.trouble(lateAnswer)},
		{name: "vault: 429", do: s.trouble(tooMany)},
		{name: "vault: another server", do: s.trouble(otherServer)},
		{name: "vault: a role's policy is gone", do: s.losePolicy("stint-orders-db-read")},
		{name: "vault: stint's own policy is gone", do: s.losePolicy(vault.StintPolicy)},
		{name: "vault: tokens of credentials revoked", do: s.revokeTokens("auth/token/create/")},
		{name: "vault: stint's login token revoked", do: s.revokeTokens("auth/approle/login")},
		{name: "consul: deleting fails", do: s.spoilConsul(true, false)},
		{name: "consul: lost answers", do: s.spoilConsul(false, true)},
		{name: "postgres restarted", do: func(tb testing.TB, _ time.Duration) { tb.Helper(); s.pg.Restart(tb) }},
		{name: "postgres down", do: s.stopPostgres},
	}
}

func (s *soak) stepCAFaults() []mishap {
	return []mishap{
		{name: "step-ca down", do: s.stopStepCA},
		{name: "step-ca frozen", do: s.freezeStepCA},
		{name: "step-ca: lost answers", do: s.loseStepCA},
		{name: "step-ca: late answers", do: s.slowStepCA},
		{name: "step-ca: database lost", do: s.emptyStepCA},
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

// killVaultEarly kills Vault when PostgreSQL has made or dropped a user, and Vault has not heard of it.
func (s *soak) killVaultEarly(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	before := s.behind.kept.Load()
	s.behind.closed.Store(true)
	for began := time.Now(); s.behind.kept.Load() == before && time.Since(began) < 10*time.Second; { // someone asks before, unless nobody can
		<-time.After(20 * time.Millisecond)
	}
	s.server.Kill(tb)
	s.behind.closed.Store(false)
	<-time.After(lasting)
	s.server.Restart(tb)
}

func (s *soak) freezeVault(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.server.Pause(tb)
	<-time.After(lasting)
	s.server.Resume(tb)
}

// spoilConsul lets Consul refuse to delete, or lose the answer when it has made a token.
func (s *soak) spoilConsul(broken, losing bool) func(testing.TB, time.Duration) { //revive:disable-line:flag-parameter // two switches
	return func(_ testing.TB, lasting time.Duration) {
		s.consul.set(broken, losing)
		<-time.After(lasting)
		s.consul.set(false, false)
	}
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

// loseStepCA lets step-ca carry out what it is asked, and the connection break instead of its answer.
func (s *soak) loseStepCA(_ testing.TB, lasting time.Duration) {
	s.caFront.closed.Store(true)
	<-time.After(lasting)
	s.caFront.closed.Store(false)
}

// slowStepCA lets its answers come after an issue's deadline.
func (s *soak) slowStepCA(_ testing.TB, lasting time.Duration) {
	s.caFront.delay.Store(int64(late))
	<-time.After(lasting)
	s.caFront.delay.Store(0)
}

// emptyStepCA lets step-ca lose its database, and its revocations with it. What it had signed is kept for the end.
func (s *soak) emptyStepCA(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.ca.Stop(tb)
	s.keepSigned(tb)
	<-time.After(lasting)
	s.ca.RestartEmpty(tb)
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

// revokeTokens revokes all tokens that were made at a path: those of credentials, in flight too, or Stint's own.
func (s *soak) revokeTokens(path string) func(testing.TB, time.Duration) {
	return func(tb testing.TB, _ time.Duration) {
		tb.Helper()
		own := s.vault.Root.Auth().Token()
		for _, accessor := range s.vault.Accessors(tb) {
			answer, err := own.LookupAccessorWithContext(tb.Context(), accessor)
			if err != nil {
				continue // it ended meanwhile, as it may below
			}
			if made, _ := answer.Data["path"].(string); strings.HasPrefix(made, path) {
				_ = own.RevokeAccessorWithContext(tb.Context(), accessor)
			}
		}
	}
}

// setClock sets the clock of the machine that stintd runs on, forward and back in turn, and mends it. Nothing else's clock
// notices, as little as where they are other machines.
func (s *soak) setClock(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	by := 15 * lasting // maxJump at most: nothing lasts longer than 3 s
	if s.turns++; s.turns%2 == 0 {
		by = -by
	}
	for _, ahead := range []time.Duration{by, 0} {
		before := strings.Count(s.daemon.log(tb), clockSet)
		write(tb, s.hook("clock"), ahead.String())
		eventually(tb, time.Minute, func() error {
			if log := s.daemon.log(tb); strings.Count(log, clockSet) == before {
				return fmt.Errorf("stintd does not notice that its clock was set to %s; it said:\n%s", ahead, tail(log))
			}
			return nil
		})
		<-time.After(lasting)
	}
	s.clockMended = time.Now()
}
