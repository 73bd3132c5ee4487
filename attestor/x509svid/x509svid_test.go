package x509svid_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/attestor/x509svid"
)

// evidence is what a call has on a connection whose peer showed a chain.
func evidence(chain ...*x509.Certificate) attestor.Evidence {
	return attestor.Evidence{TLS: &tls.ConnectionState{PeerCertificates: chain}}
}

func TestAttest(t *testing.T) {
	t.Parallel()
	own := attestortest.NewDomain(t, "example.org", 0)
	friend := attestortest.NewDomain(t, "friend.org", 0)
	foreign := attestortest.NewDomain(t, "foreign.org", 0)
	impostor := attestortest.NewDomain(t, "example.org", 0)
	tasks := attestortest.NewDomain(t, "tasks.example.org", 0)
	// The source holds every bundle, so that the configured trust domains alone decide.
	a := x509svid.New(attestortest.NewSource(t, own, "/stint", friend, foreign, tasks), attestortest.Domains(t, own, friend))
	for _, c := range []struct {
		name   string
		domain *devdomain.Domain
		r      devdomain.X509Request
		want   error
	}{
		{"own", own, devdomain.X509Request{}, nil},
		{"federated", friend, devdomain.X509Request{}, nil},
		{"foreign", foreign, devdomain.X509Request{}, attestor.ErrForeignTrustDomain},
		{"task domain", tasks, devdomain.X509Request{}, attestor.ErrTaskDomain},
		{"expired", own, devdomain.X509Request{TTL: -time.Minute}, attestor.ErrExpired},
		{"another root", impostor, devdomain.X509Request{}, attestor.ErrUntrusted},
		{"server only", own, devdomain.X509Request{ExtUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, attestor.ErrInvalid},
		{"no usage", own, devdomain.X509Request{ExtUsages: []x509.ExtKeyUsage{}}, attestor.ErrInvalid},
		{"trust domain itself", own, devdomain.X509Request{ID: own.TrustDomain().ID()}, attestor.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.r.ID.IsZero() {
				c.r.ID = attestortest.ID(t, c.domain, "/agent/a")
			}
			svid, err := c.domain.IssueX509(c.r)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second is remembered
				id, err := a.Attest(t.Context(), evidence(svid.Certificates...))
				if !errors.Is(err, c.want) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				if c.want == nil && (id.ID != c.r.ID || id.Method != attestor.MethodX509 || !id.NotAfter.Equal(svid.Certificates[0].NotAfter)) {
					t.Errorf("got %+v", id)
				}
				if c.want != nil && !id.IsZero() {
					t.Errorf("a refusal has an identity: %+v", id)
				}
			}
		})
	}
	for name, e := range map[string]attestor.Evidence{
		"no tls": {}, "a token": {Token: "x"}, "no certificate": evidence(),
	} {
		if _, err := a.Attest(t.Context(), e); !errors.Is(err, attestor.ErrNoEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
	root := own.Bundle().X509Authorities()[0]
	if _, err := a.Attest(t.Context(), evidence(root)); !errors.Is(err, attestor.ErrInvalid) {
		t.Errorf("an authority: %v", err)
	}
}

// counting counts how often a bundle was asked for, which is once for each verification.
type counting struct {
	*source.Source

	asked atomic.Int64
}

func (c *counting) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	c.asked.Add(1)
	return c.Source.GetX509BundleForTrustDomain(td)
}

func TestVerifiesAgainOnlyWhenBundlesChange(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	src := &counting{Source: attestortest.NewSource(t, d, "/stint")}
	a := x509svid.New(src, attestortest.Domains(t, d))
	agent := devdomain.X509Request{ID: attestortest.ID(t, d, "/agent/a")}
	e := evidence(attestortest.Material(t, d, agent).SVID.Certificates...)
	attest := func(want error, verifications int64) {
		t.Helper()
		for range 3 {
			if _, err := a.Attest(t.Context(), e); !errors.Is(err, want) {
				t.Fatalf("got %v, want %v", err, want)
			}
		}
		if got := src.asked.Swap(0); got != verifications {
			t.Errorf("%d verifications, want %d", got, verifications)
		}
	}
	attest(nil, 1)
	replace(t, src.Source, d) // a new SVID of our own, the same bundles
	attest(nil, 0)
	if err := d.RotateCA(); err != nil {
		t.Fatal(err)
	}
	replace(t, src.Source, d)
	attest(nil, 1)
	if err := d.RemoveOldRoots(); err != nil {
		t.Fatal(err)
	}
	replace(t, src.Source, d)
	attest(attestor.ErrUntrusted, 3) // a refusal is not remembered
}

// replace gives a source what its domain would hand out now.
func replace(t *testing.T, s *source.Source, d *devdomain.Domain) {
	t.Helper()
	if err := s.Replace(attestortest.Material(t, d, devdomain.X509Request{ID: s.ID(), DNSNames: []string{"localhost"}})); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredIsRefusedOnLiveConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newOpenServer(t)
		client := s.dial(t, s.domain, devdomain.X509Request{TTL: 20 * time.Second})
		if err := check(t, client); err != nil {
			t.Fatal(err)
		}
		<-time.After(19 * time.Second)
		if err := check(t, client); err != nil {
			t.Fatalf("before its end: %v", err)
		}
		<-time.After(3 * time.Second)
		err := check(t, client)
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after its end, on the same connection: %v", err)
		}
	})
}

func TestConnectionIsCutAtNotAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		client := s.dial(t, s.domain, devdomain.X509Request{TTL: 20 * time.Second})
		began := time.Now()
		stream, err := client.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if got := s.creds.Conns(); got != 1 {
			t.Errorf("%d connections are guarded", got)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v", err)
		}
		if lived := time.Since(began); lived < 20*time.Second || lived > 21*time.Second {
			t.Errorf("the connection lived for %v", lived)
		}
		if got := s.creds.Conns(); got != 0 {
			t.Errorf("%d connections are guarded after the end", got)
		}
	})
}

func TestRemovedRootCuts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		client := s.dial(t, s.domain, devdomain.X509Request{})
		stream, err := client.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if err = s.domain.RotateCA(); err != nil {
			t.Fatal(err)
		}
		replace(t, s.source, s.domain)
		synctest.Wait()
		if err = check(t, client); err != nil {
			t.Fatalf("an added root cut the connection: %v", err)
		}
		if err = s.domain.RemoveOldRoots(); err != nil {
			t.Fatal(err)
		}
		removed := time.Now()
		replace(t, s.source, s.domain)
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v", err)
		}
		if waited := time.Since(removed); waited != 0 {
			t.Errorf("the cut took %v", waited)
		}
		if err := check(t, client); err == nil {
			t.Error("the SVID of the removed root is still served")
		}
	})
}

// TestRemovedTrustDomain: peers of a trust domain are accepted from when it is taken into the configuration, and cut at the
// moment when it is taken out; those of the own one notice nothing.
func TestRemovedTrustDomain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		friend := attestortest.NewDomain(t, "friend.org", 0)
		offered := attestortest.Material(t, s.domain, devdomain.X509Request{ID: s.source.ID(), DNSNames: []string{"localhost"}}, friend)
		if err := s.source.Replace(offered); err != nil {
			t.Fatal(err)
		}
		own, foreign := s.dial(t, s.domain, devdomain.X509Request{}), s.dial(t, friend, devdomain.X509Request{})
		if err := check(t, own); err != nil {
			t.Fatal(err)
		}
		if err := check(t, foreign); err == nil {
			t.Fatal("a trust domain that is not configured is accepted")
		}
		s.attestor.SetDomains(attestortest.Domains(t, s.domain, friend))
		s.source.SetTrust(friend.TrustDomain())
		foreign = s.dial(t, friend, devdomain.X509Request{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // a stream that nobody cuts ends too
		defer cancel()
		stream, err := foreign.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatalf("after it was configured: %v", err)
		}
		removed := time.Now()
		s.attestor.SetDomains(attestortest.Domains(t, s.domain))
		s.source.SetTrust()
		if _, err = stream.Recv(); status.Code(err) != codes.Unavailable || time.Since(removed) != 0 {
			t.Errorf("the stream ended %s after its trust domain was removed, with %v", time.Since(removed), err)
		}
		if err = check(t, foreign); err == nil {
			t.Error("an SVID of the removed trust domain is still served")
		}
		if err = check(t, own); err != nil {
			t.Errorf("the own trust domain: %v", err)
		}
	})
}

func TestHandshakeRefuses(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	foreign := attestortest.NewDomain(t, "foreign.org", 0)
	tasks := attestortest.NewDomain(t, "tasks.example.org", 0)
	for _, c := range []struct {
		name   string
		issuer *devdomain.Domain
		r      devdomain.X509Request
		want   error
	}{
		{"foreign", foreign, devdomain.X509Request{}, attestor.ErrForeignTrustDomain},
		{"task domain", tasks, devdomain.X509Request{}, attestor.ErrTaskDomain},
		{"expired", s.domain, devdomain.X509Request{TTL: -time.Hour}, attestor.ErrExpired},
	} {
		if err := check(t, s.dial(t, c.issuer, c.r)); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := <-s.refused; !errors.Is(err, c.want) {
			t.Errorf("%s: refused with %v, want %v", c.name, err, c.want)
		}
	}
}

func TestClientChecksTheServer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	agent, err := source.New(attestortest.Material(t, s.domain, devdomain.X509Request{ID: attestortest.ID(t, s.domain, "/agent/a")}))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.listener.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	config := x509svid.ClientConfig(agent, attestortest.ID(t, s.domain, "/other"))
	err = tls.Client(conn, config).HandshakeContext(t.Context())
	if !errors.Is(err, x509svid.ErrServerID) || !strings.Contains(err.Error(), "spiffe://example.org/stint") ||
		!strings.Contains(err.Error(), "spiffe://example.org/other") {
		t.Errorf("got %v", err)
	}
}

func TestTokenListenerAsksForNoCertificate(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	src := attestortest.NewSource(t, d, "/stint")
	l := bufconn.Listen(1 << 16)
	attestortest.Serve(t, func(context.Context) error {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, err = tls.Server(conn, x509svid.TokenServerConfig(src)).Write([]byte{1})
		return err
	})
	conn, err := l.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := tls.Client(conn, x509svid.TokenClientConfig(src, src.ID()))
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if name := client.ConnectionState().PeerCertificates[0].VerifyHostname("localhost"); name != nil {
		t.Errorf("stock clients cannot check the server's name: %v", name)
	}
}

// A session ticket would let a client back in without its certificate being looked at.
func TestNoSessionIsResumed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	agent, err := source.New(attestortest.Material(t, s.domain, devdomain.X509Request{ID: attestortest.ID(t, s.domain, "/agent/a")}))
	if err != nil {
		t.Fatal(err)
	}
	config := x509svid.ClientConfig(agent, attestortest.ID(t, s.domain, "/stint"))
	config.ServerName = "localhost"
	config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 {
		conn, err := s.listener.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		client := tls.Client(conn, config)
		// The server's first bytes come after where a ticket would be.
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if state := client.ConnectionState(); state.DidResume || state.Version != tls.VersionTLS13 {
			t.Errorf("resumed %v, version %x", state.DidResume, state.Version)
		}
		if _, ok := config.ClientSessionCache.Get("localhost"); ok {
			t.Error("the server sent a session ticket")
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkAttest(b *testing.B) {
	d := attestortest.NewDomain(b, "example.org", 0)
	a := x509svid.New(attestortest.NewSource(b, d, "/stint"), attestortest.Domains(b, d))
	e := evidence(attestortest.Material(b, d, devdomain.X509Request{ID: attestortest.ID(b, d, "/agent/a")}).SVID.Certificates...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Attest(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
}
