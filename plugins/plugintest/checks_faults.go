package plugintest

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// soon is how long a call may take to notice that its context is done.
const soon = 2 * time.Second

// endWhatMayBe revokes what a failed Issue may have left, by what a broker would know.
func (s *suite) endWhatMayBe(t *testing.T, req plugins.Request) {
	t.Helper()
	held := plugins.Held{
		Lease: req.Lease, Role: req.Role.Name, Handle: req.Prepared.Handle, IssuedAt: time.Now(), NotAfter: time.Now().Add(s.TTL), Uncertain: true,
	}
	if held.Handle == "" && !s.Backend.Descriptor().HandleIsLeaseID {
		return
	}
	s.revoke(t, held)
}

// contextIsDone calls with contexts that are over.
func (s *suite) contextIsDone(t *testing.T) {
	got := s.issue(t)
	req := s.prepared(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	if _, err := s.Backend.Issue(ctx, req); err == nil {
		t.Error("Issue succeeded although its context was done")
	} else {
		checkError(t, err)
	}
	if end, err := s.Backend.Revoke(ctx, got.held()); err != nil {
		checkError(t, err)
	} else {
		s.checkEnding(t, end) // it may know the answer without asking
	}
	if took := time.Since(begin); took > soon {
		t.Errorf("two calls with a context that was done took %s", took)
	}
	s.endWhatMayBe(t, req)
}

// issueIsCancelled cancels issues at several moments. Whatever came of them, one Revoke ends it.
func (s *suite) issueIsCancelled(t *testing.T) {
	for _, after := range []time.Duration{0, 100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond} {
		req := s.prepared(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		begin := time.Now()
		cred, err := s.Backend.Issue(ctx, req)
		cancel()
		if took := time.Since(begin); took > after+soon {
			t.Errorf("issue with %s of time took %s", after, took)
		}
		if err != nil {
			checkError(t, err)
			s.endWhatMayBe(t, req)
			continue
		}
		got := issued{req: req, cred: cred}
		s.checkEnded(t, got, s.revoke(t, got.held()))
	}
}

// manyAtOnce issues and revokes in parallel: each lease is its own.
func (s *suite) manyAtOnce(t *testing.T) {
	const n = 8
	all := make([]issued, n)
	reqs := make([]plugins.Request, n)
	for i := range reqs {
		reqs[i] = s.prepared(t)
	}
	parallel(n, func(i int) {
		cred, err := s.Backend.Issue(s.context(t), reqs[i])
		if err != nil {
			t.Errorf("Issue beside others: %v", err)
		}
		all[i] = issued{req: reqs[i], cred: cred}
	})
	if t.Failed() {
		return
	}
	handles := map[plugins.Handle]bool{}
	for _, got := range all {
		handles[got.cred.Handle] = true
	}
	if len(handles) != n {
		t.Errorf("%d handles for %d credentials", len(handles), n)
	}
	s.revokeInParallel(t, all[:n/2])
	for _, got := range all[n/2:] {
		if !s.Works(s.context(t), got.cred) {
			t.Errorf("%s stopped to work when others were revoked", got.cred.PublicRef)
		}
	}
	s.revokeInParallel(t, all[n/2:])
}

func (s *suite) revokeInParallel(t *testing.T, all []issued) {
	t.Helper()
	ends := make([]plugins.Ending, len(all))
	parallel(len(all), func(i int) {
		end, err := s.Backend.Revoke(s.context(t), all[i].held())
		if err != nil {
			t.Errorf("Revoke beside others: %v", err)
		}
		ends[i] = end
	})
	for i, got := range all {
		s.checkEnding(t, ends[i])
		s.checkEnded(t, got, ends[i])
	}
}

// parallel runs f for 0 to n-1 at once and waits.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// prepare checks that what is prepared ends, and that Issue cannot use it afterwards.
func (s *suite) prepare(t *testing.T) {
	if _, ok := s.Backend.(plugins.Preparer); !ok {
		t.Skip("it does not prepare")
	}
	req := s.prepared(t)
	if req.Prepared.NotAfter.Before(req.NotAfter.Add(-time.Second)) {
		t.Errorf("what was prepared ends at %v, before the credential at %v", req.Prepared.NotAfter, req.NotAfter)
	}
	s.endWhatMayBe(t, req)
	if cred, err := s.Backend.Issue(s.context(t), req); err == nil {
		t.Errorf("Issue used what had been revoked: %s", cred.PublicRef)
	} else {
		checkError(t, err)
	}
	s.endWhatMayBe(t, req)
}

// publish reads what relying services need.
func (s *suite) publish(t *testing.T) {
	publisher, ok := s.Backend.(plugins.Publisher)
	if !ok {
		t.Skip("it publishes nothing")
	}
	got := s.issue(t)
	s.revoke(t, got.held())
	var issuers []*x509.Certificate
	for _, der := range publisher.Bundle() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatalf("bundle: %v", err)
		}
		issuers = append(issuers, cert)
	}
	if len(issuers) == 0 || !bytes.Equal(issuers[0].RawSubject, issuers[0].RawIssuer) {
		t.Fatalf("a bundle of %d, want a root first", len(issuers))
	}
	der, err := publisher.CRL(s.context(t))
	if err != nil {
		t.Fatalf("CRL: %v", err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatalf("CRL: %v", err)
	}
	for _, issuer := range issuers {
		if list.CheckSignatureFrom(issuer) == nil {
			return
		}
	}
	t.Error("nobody in the bundle signed the CRL")
}

// breakAndHeal takes the backend away: nothing is claimed that is not so, and after it everything ends.
func (s *suite) breakAndHeal(t *testing.T) {
	if s.Break == nil {
		t.Skip("the harness cannot break it")
	}
	got := s.issue(t)
	req := s.prepared(t)
	s.Break(t)
	healed := false
	heal := func() {
		if !healed {
			healed = true
			s.Heal(t)
		}
	}
	t.Cleanup(heal)
	if _, err := s.Backend.Issue(s.context(t), req); !errors.Is(err, plugins.ErrUnavailable) {
		t.Errorf("Issue without the backend said %v, want ErrUnavailable", err)
	}
	if end, err := s.Backend.Revoke(s.context(t), got.held()); err == nil {
		t.Errorf("Revoke without the backend claims %s", end.Proof)
	} else if !errors.Is(err, plugins.ErrUnavailable) {
		t.Errorf("Revoke without the backend said %v, want ErrUnavailable", err)
	}
	if prober, ok := s.Backend.(plugins.Prober); ok {
		if err := prober.Healthy(s.context(t)); !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("Healthy without the backend said %v, want ErrUnavailable", err)
		}
	}
	s.listBroken(t, got)
	heal()
	s.checkEnded(t, got, s.revoke(t, got.held()))
	s.endWhatMayBe(t, req)
}

// goroutines checks that calls leave none behind: after some rounds there are not half as many new ones as there were
// rounds.
func (s *suite) goroutines(t *testing.T) {
	round := func() {
		got := s.issue(t)
		s.revoke(t, got.held())
	}
	round()
	before := runtime.NumGoroutine()
	const rounds = 12
	for range rounds {
		round()
	}
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(soon)
	for runtime.NumGoroutine() >= before+rounds/2 {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("%d goroutines, %d before %d rounds", runtime.NumGoroutine(), before, rounds)
		}
	}
}
