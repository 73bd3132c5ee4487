package x509svid_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/attestor/x509svid"
)

const (
	shortTTL = 20 * time.Second
	// SVIDs are renewed at half of their life, so one that a connection begins with has that half before it.
	connectionAge   = shortTTL / 5
	connectionGrace = time.Second
)

// A stock go-spiffe client with 20-second SVIDs calls once a second and sees no failure: for two minutes under
// `make test`, for 20 seconds otherwise.
func TestStockClientSeesNoFailure(t *testing.T) {
	t.Parallel()
	lasting := shortTTL
	if os.Getenv("STINT_REAL_SERVERS") == "1" {
		lasting = 2 * time.Minute
	}
	d := attestortest.NewDomain(t, "example.org", shortTTL)
	attestortest.Serve(t, d.Run)
	stint := attestortest.Add(t, d, devdomain.Workload{Name: "stint", ID: attestortest.ID(t, d, "/stint"), DNSNames: []string{"localhost"}})
	agent := attestortest.Add(t, d, devdomain.Workload{Name: "agent", ID: attestortest.ID(t, d, "/agent/a")})
	client := stockClient(t, d, agent, serveStock(t, d, stint))

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(lasting); time.Now().Before(end); <-tick.C {
		if err := check(t, client); err != nil {
			t.Fatalf("%v before the end: %v", time.Until(end), err)
		}
	}
}

// serveStock runs a server as the broker is one, with an SVID from a Workload API, and returns its address.
func serveStock(t *testing.T, d *devdomain.Domain, addr string) string {
	t.Helper()
	src, err := source.OpenWorkloadAPI(t.Context(), source.WorkloadAPI{Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	attestortest.Serve(t, src.Run)
	a := x509svid.New(src, attestortest.Domains(t, d))
	creds := a.Credentials(nil)
	attestortest.Serve(t, creds.Run)
	srv := grpc.NewServer(append(attesting(a), grpc.Creds(creds), grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: connectionGrace,
	}))...)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	attestortest.Serve(t, func(ctx context.Context) error {
		go func() { <-ctx.Done(); srv.Stop() }()
		return srv.Serve(l)
	})
	return l.Addr().String()
}

// stockClient is a client made of go-spiffe and grpc alone.
func stockClient(t *testing.T, d *devdomain.Domain, socket, addr string) grpc_health_v1.HealthClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(
		grpccredentials.MTLSClientCredentials(src, src, tlsconfig.AuthorizeMemberOf(d.TrustDomain()))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return grpc_health_v1.NewHealthClient(conn)
}
