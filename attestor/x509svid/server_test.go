package x509svid_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/attestor/x509svid"
)

// server is a gRPC server over bufconn that attests every call, and what a client needs to call it.
type server struct {
	domain   *devdomain.Domain
	source   *source.Source
	creds    *x509svid.Credentials
	refused  chan error
	listener *bufconn.Listener
	attestor *x509svid.Attestor
}

// attesting returns options that attest every call as the broker does.
func attesting(a attestor.Attestor) []grpc.ServerOption {
	attest := func(ctx context.Context) error {
		p, _ := peer.FromContext(ctx)
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok {
			return status.Error(codes.Internal, "no tls")
		}
		if _, err := a.Attest(ctx, attestor.Evidence{TLS: &info.State}); err != nil {
			return status.Error(codes.Unauthenticated, err.Error())
		}
		return nil
	}
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := attest(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := attest(stream.Context()); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	}
}

// newServer starts a server whose calls are attested and whose connections are cut.
func newServer(t *testing.T) *server {
	t.Helper()
	return startServer(t, func(s *server, _ *x509svid.Attestor) credentials.TransportCredentials {
		attestortest.Serve(t, s.creds.Run)
		return s.creds
	})
}

// newOpenServer starts a server whose calls are attested and whose connections nobody cuts.
func newOpenServer(t *testing.T) *server {
	t.Helper()
	return startServer(t, func(_ *server, a *x509svid.Attestor) credentials.TransportCredentials {
		return credentials.NewTLS(a.ServerConfig())
	})
}

func startServer(t *testing.T, choose func(*server, *x509svid.Attestor) credentials.TransportCredentials) *server {
	t.Helper()
	d := attestortest.NewDomain(t, "example.org", 0)
	s := &server{
		domain: d, source: attestortest.NewSource(t, d, "/stint"),
		refused: make(chan error, 16), listener: bufconn.Listen(1 << 20),
	}
	a := x509svid.New(s.source, attestortest.Domains(t, d))
	s.attestor = a
	s.creds = a.Credentials(func(_ net.Addr, err error) { s.refused <- err })
	srv := grpc.NewServer(append(attesting(a), grpc.Creds(choose(s, a)))...)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	attestortest.Serve(t, func(ctx context.Context) error {
		go func() { <-ctx.Done(); srv.Stop() }()
		return srv.Serve(s.listener)
	})
	return s
}

// dial returns a client with an SVID of its own. The domain that issues it may be another than the server's.
func (s *server) dial(t *testing.T, issuer *devdomain.Domain, r devdomain.X509Request) grpc_health_v1.HealthClient {
	t.Helper()
	if r.ID.IsZero() {
		r.ID = attestortest.ID(t, issuer, "/agent/a")
	}
	own, err := source.New(attestortest.Material(t, issuer, r, s.domain), s.domain.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	config := x509svid.ClientConfig(own, attestortest.ID(t, s.domain, "/stint"))
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return grpc_health_v1.NewHealthClient(conn)
}

func check(t *testing.T, client grpc_health_v1.HealthClient) error {
	t.Helper()
	_, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	return err
}
