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
func NewDomain(tb testing.TB, name string, ttl time.Duration) *devdomain.Domain {
	tb.Helper()
	d, err := devdomain.New(devdomain.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(name), SVIDTTL: ttl})
	if err != nil {
		tb.Fatalf("make trust domain: %v", err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("close trust domain: %v", err)
		}
	})
	return d
}

// Serve runs what lives long (a domain, a source, credentials) until the test ends, and fails the test if it fails.
func Serve(tb testing.TB, run func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("run: %v", err)
		}
	})
}

// Add adds a workload to a domain and returns its address for SPIFFE_ENDPOINT_SOCKET.
func Add(tb testing.TB, d *devdomain.Domain, w devdomain.Workload) string {
	tb.Helper()
	if _, err := d.Add(tb.Context(), w); err != nil {
		tb.Fatalf("add workload: %v", err)
	}
	return d.Addr(w.Name)
}

// ID returns the SPIFFE ID of a path ("/agent/a") in a domain.
func ID(tb testing.TB, d *devdomain.Domain, path string) spiffeid.ID {
	tb.Helper()
	id, err := spiffeid.FromPath(d.TrustDomain(), path)
	if err != nil {
		tb.Fatalf("make id: %v", err)
	}
	return id
}

// NewSource returns a source that holds one SVID for a path in the domain, with DNS name localhost, and the domain's
// bundles, and that also trusts the domains of others.
func NewSource(tb testing.TB, d *devdomain.Domain, path string, others ...*devdomain.Domain) *source.Source {
	tb.Helper()
	trust := make([]spiffeid.TrustDomain, 0, len(others))
	for _, other := range others {
		trust = append(trust, other.TrustDomain())
	}
	s, err := source.New(Material(tb, d, devdomain.X509Request{ID: ID(tb, d, path), DNSNames: []string{"localhost"}}, others...), trust...)
	if err != nil {
		tb.Fatalf("make source: %v", err)
	}
	return s
}

// Material issues an SVID and returns it with the present bundles of the domain and of others.
func Material(tb testing.TB, d *devdomain.Domain, r devdomain.X509Request, others ...*devdomain.Domain) source.Material {
	tb.Helper()
	svid, err := d.IssueX509(r)
	if err != nil {
		tb.Fatalf("issue svid: %v", err)
	}
	m := source.Material{SVID: svid, X509: x509bundle.NewSet(), JWT: jwtbundle.NewSet()}
	for _, domain := range append([]*devdomain.Domain{d}, others...) {
		m.X509.Add(domain.Bundle().X509Bundle())
		m.JWT.Add(domain.Bundle().JWTBundle())
	}
	return m
}

// Domains returns what a broker in domain d accepts: d and the federated ones, with tasks.<name> for tasks.
func Domains(tb testing.TB, d *devdomain.Domain, federated ...*devdomain.Domain) attestor.Domains {
	tb.Helper()
	names := make([]spiffeid.TrustDomain, 0, len(federated))
	for _, f := range federated {
		names = append(names, f.TrustDomain())
	}
	domains, err := attestor.NewDomains(d.TrustDomain(), TaskDomain(d), names...)
	if err != nil {
		tb.Fatalf("make domains: %v", err)
	}
	return domains
}

// TaskDomain returns the task trust domain that [Domains] uses: tasks.<name>.
func TaskDomain(d *devdomain.Domain) spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("tasks." + d.TrustDomain().Name())
}
