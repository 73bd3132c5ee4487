// Package attestortest gives tests identities: development trust domains that end with the test, and sources that
// hold what they are given. Nothing here needs a socket unless [Serve] is called, so it works in a synctest bubble.
package attestortest

import (
	"context"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
)

// NewDomain returns a development trust domain whose SVIDs live for ttl (0: 10 minutes). It is closed with the test.
func NewDomain(t testing.TB, name string, ttl time.Duration) *devdomain.Domain {
	t.Helper()
	d, err := devdomain.New(devdomain.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(name), SVIDTTL: ttl})
	if err != nil {
		t.Fatalf("make trust domain: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close trust domain: %v", err)
		}
	})
	return d
}

// Serve runs what lives long (a domain, a source, credentials) until the test ends, and fails the test if it fails.
func Serve(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// Add adds a workload to a domain and returns its address for SPIFFE_ENDPOINT_SOCKET.
func Add(t testing.TB, d *devdomain.Domain, w devdomain.Workload) string {
	t.Helper()
	if _, err := d.Add(t.Context(), w); err != nil {
		t.Fatalf("add workload: %v", err)
	}
	return d.Addr(w.Name)
}

// ID returns the SPIFFE ID of a path ("/agent/a") in a domain.
func ID(t testing.TB, d *devdomain.Domain, path string) spiffeid.ID {
	t.Helper()
	id, err := spiffeid.FromPath(d.TrustDomain(), path)
	if err != nil {
		t.Fatalf("make id: %v", err)
	}
	return id
}

// NewSource returns a source that holds one SVID for a path in the domain, with DNS name localhost, and the domain's
// bundles, and that also trusts the domains of others.
func NewSource(t testing.TB, d *devdomain.Domain, path string, others ...*devdomain.Domain) *source.Source {
	t.Helper()
	trust := make([]spiffeid.TrustDomain, 0, len(others))
	for _, other := range others {
		trust = append(trust, other.TrustDomain())
	}
	s, err := source.New(Material(t, d, devdomain.X509Request{ID: ID(t, d, path), DNSNames: []string{"localhost"}}, others...), trust...)
	if err != nil {
		t.Fatalf("make source: %v", err)
	}
	return s
}

// Material issues an SVID and returns it with the present bundles of the domain and of others.
func Material(t testing.TB, d *devdomain.Domain, r devdomain.X509Request, others ...*devdomain.Domain) source.Material {
	t.Helper()
	svid, err := d.IssueX509(r)
	if err != nil {
		t.Fatalf("issue svid: %v", err)
	}
	m := source.Material{SVID: svid, X509: x509bundle.NewSet(), JWT: jwtbundle.NewSet()}
	for _, domain := range append([]*devdomain.Domain{d}, others...) {
		m.X509.Add(domain.Bundle().X509Bundle())
		m.JWT.Add(domain.Bundle().JWTBundle())
	}
	return m
}

// Domains returns what a broker in domain d accepts: d and the federated ones, with tasks.<name> for tasks.
func Domains(t testing.TB, d *devdomain.Domain, federated ...*devdomain.Domain) attestor.Domains {
	t.Helper()
	names := make([]spiffeid.TrustDomain, 0, len(federated))
	for _, f := range federated {
		names = append(names, f.TrustDomain())
	}
	domains, err := attestor.NewDomains(d.TrustDomain(), TaskDomain(d), names...)
	if err != nil {
		t.Fatalf("make domains: %v", err)
	}
	return domains
}

// TaskDomain returns the task trust domain that [Domains] uses: tasks.<name>.
func TaskDomain(d *devdomain.Domain) spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("tasks." + d.TrustDomain().Name())
}
