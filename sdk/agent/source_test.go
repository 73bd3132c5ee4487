package agent_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/stint-dev/stint/attestor/source"
)

// mixedSource has its SVID from one Workload API and its bundles from another.
type mixedSource struct{ own, trust *source.Source }

func (m mixedSource) GetX509SVID() (*x509svid.SVID, error) { return m.own.GetX509SVID() }

func (m mixedSource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return m.trust.GetX509BundleForTrustDomain(td)
}

func open(t *testing.T, addr string) *source.Source {
	t.Helper()
	s, err := source.OpenWorkloadAPI(t.Context(), source.WorkloadAPI{Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
