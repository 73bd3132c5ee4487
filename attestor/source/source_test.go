package source_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
)

// soon bounds what should take milliseconds.
const soon = 10 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

// open opens a source on a running domain's socket and keeps it up to date.
func open(t *testing.T, config source.WorkloadAPI) *source.Source {
	t.Helper()
	s, err := source.OpenWorkloadAPI(within(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	attestortest.Serve(t, s.Run)
	return s
}

func TestWorkloadAPIFollowsTheDomain(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 2*time.Second)
	friend := attestortest.NewDomain(t, "friend.org", 0)
	foreign := attestortest.NewDomain(t, "foreign.org", 0)
	d.Federate(friend.Bundle(), foreign.Bundle())
	attestortest.Serve(t, d.Run)
	addr := attestortest.Add(t, d, devdomain.Workload{Name: "stint", ID: attestortest.ID(t, d, "/stint")})
	s := open(t, source.WorkloadAPI{Addr: addr, Trust: []spiffeid.TrustDomain{friend.TrustDomain()}, JWTBundles: true})

	for _, td := range []spiffeid.TrustDomain{d.TrustDomain(), friend.TrustDomain()} {
		if _, err := s.GetX509BundleForTrustDomain(td); err != nil {
			t.Error(err)
		}
		if _, err := s.GetJWTBundleForTrustDomain(td); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.GetX509BundleForTrustDomain(foreign.TrustDomain()); !errors.Is(err, source.ErrNoBundle) {
		t.Errorf("a bundle that is not configured is handed out: %v", err)
	}
	if _, err := s.GetJWTBundleForTrustDomain(foreign.TrustDomain()); !errors.Is(err, source.ErrNoBundle) {
		t.Errorf("a jwt bundle that is not configured is handed out: %v", err)
	}
	if got := len(s.Authorities()); got != 2 {
		t.Errorf("%d authorities", got)
	}
	token, err := s.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "vault"})
	if err != nil || token.ID != s.ID() {
		t.Errorf("FetchJWTSVID = %v, %v", token, err)
	}
	generation, changed := s.Generation(), s.Changed()
	waitForRotation(t, s)
	if s.Generation() != generation {
		t.Error("a new SVID counts as a change of the bundles")
	}
	if err := d.RotateCA(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(soon):
		t.Fatal("a new root was not told")
	}
	if s.Generation() <= generation {
		t.Error("a new root is no new generation")
	}
}

// waitForRotation returns when the source has another SVID than now.
func waitForRotation(t *testing.T, s *source.Source) {
	t.Helper()
	first, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); <-tick.C {
		if next, err := s.GetX509SVID(); err == nil && next != first {
			return
		}
	}
	t.Fatal("the SVID did not rotate")
}

func TestSourceOutlivesItsFeed(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	logged, logs := observer.New(zap.WarnLevel)
	addr := attestortest.Add(t, d, devdomain.Workload{Name: "stint", ID: attestortest.ID(t, d, "/stint")})
	s := open(t, source.WorkloadAPI{Addr: addr, Logger: zap.New(logged)})
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(soon); logs.Len() == 0 && time.Now().Before(deadline); {
		<-tick.C
	}
	if logs.Len() == 0 {
		t.Error("the loss of the feed was not logged")
	}
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(time.Now()); err != nil {
		t.Errorf("an SVID that is valid is not ready: %v", err)
	}
	if bundle, err := s.GetX509BundleForTrustDomain(svid.ID.TrustDomain()); err != nil || bundle.Empty() {
		t.Errorf("without its feed the source has no bundle: %v", err)
	}
	if err := s.Check(svid.Certificates[0].NotAfter.Add(time.Second)); err == nil || !strings.Contains(err.Error(), "workload api") {
		t.Errorf("Check after the end does not say why: %v", err)
	}
}
