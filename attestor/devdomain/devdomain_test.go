package devdomain_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
)

// The stock client gets an SVID that verifies, and a new one with a new key before the first ends.
func TestStockX509SourceRotates(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 2*time.Second)
	attestortest.Serve(t, d.Run)
	id := attestortest.ID(t, d, "/stint")
	addr := attestortest.Add(t, d, devdomain.Workload{
		Name: "stint", ID: id, DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	first, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	for first.Certificates[0].NotAfter.After(time.Now()) {
		svid, getErr := source.GetX509SVID()
		if getErr != nil {
			t.Fatal(getErr)
		}
		leaf := svid.Certificates[0]
		if _, _, err = x509svid.Verify(svid.Certificates, source); err != nil {
			t.Fatalf("SVID does not verify: %v", err)
		}
		if svid.ID != id || leaf.VerifyHostname("localhost") != nil || leaf.VerifyHostname("127.0.0.1") != nil {
			t.Fatalf("got %s with names %v %v", svid.ID, leaf.DNSNames, leaf.IPAddresses)
		}
		if err = source.WaitUntilUpdated(ctx); err != nil {
			t.Fatal(err)
		}
	}
	last, err := source.GetX509SVID()
	if err != nil || time.Now().After(last.Certificates[0].NotAfter) {
		t.Errorf("no fresh SVID: %v", err)
	}
	if last.Certificates[0].Equal(first.Certificates[0]) {
		t.Error("the SVID did not rotate")
	}
}

func TestStockJWTSource(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 0)
	attestortest.Serve(t, d.Run)
	id := attestortest.ID(t, d, "/agent/a")
	addr := workloadapi.WithClientOptions(workloadapi.WithAddr(attestortest.Add(t, d, devdomain.Workload{Name: "a", ID: id})))
	source, err := workloadapi.NewJWTSource(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	svid, err := source.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "stint", Subject: id})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{"stint"}); err != nil {
		t.Errorf("the token does not verify against the bundles served: %v", err)
	}
	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr(d.Addr("a")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if got, err := client.ValidateJWTSVID(t.Context(), svid.Marshal(), "stint"); err != nil || got.ID != id {
		t.Errorf("ValidateJWTSVID = %v, %v", got, err)
	}
	if _, err := client.ValidateJWTSVID(t.Context(), svid.Marshal(), "else"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ValidateJWTSVID for another audience: %v", err)
	}
	other := attestortest.ID(t, d, "/agent/b")
	if _, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "stint", Subject: other}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("fetched another's token: %v", err)
	}
}

func TestSecurityHeaderIsRequired(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 0)
	attestortest.Serve(t, d.Run)
	addr := attestortest.Add(t, d, devdomain.Workload{Name: "a", ID: attestortest.ID(t, d, "/a")})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := workload.NewSpiffeWorkloadAPIClient(conn)
	if _, err = client.FetchJWTSVID(t.Context(), &workload.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("unary without the header: %v", err)
	}
	stream, err := client.FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("stream without the header: %v", err)
	}
}

func TestRotateCAReachesClients(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 0)
	attestortest.Serve(t, d.Run)
	addr := attestortest.Add(t, d, devdomain.Workload{Name: "a", ID: attestortest.ID(t, d, "/a")})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	old := d.Bundle()
	if err = d.RotateCA(); err != nil {
		t.Fatal(err)
	}
	waitForRoots(ctx, t, source, d.TrustDomain(), 2)
	if err = d.RemoveOldRoots(); err != nil {
		t.Fatal(err)
	}
	waitForRoots(ctx, t, source, d.TrustDomain(), 1)
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, old.X509Bundle()); err == nil {
		t.Error("the new SVID verifies against the old root")
	}
	if _, _, err := x509svid.Verify(svid.Certificates, source); err != nil {
		t.Errorf("the new SVID does not verify: %v", err)
	}
}

func waitForRoots(ctx context.Context, t *testing.T, source *workloadapi.X509Source, td spiffeid.TrustDomain, want int) {
	t.Helper()
	for {
		bundle, err := source.GetX509BundleForTrustDomain(td)
		if err == nil && len(bundle.X509Authorities()) == want {
			return
		}
		if err := source.WaitUntilUpdated(ctx); err != nil {
			t.Fatalf("no bundle with %d roots: %v", want, err)
		}
	}
}

func TestStateIsKept(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	open := func(name string) *devdomain.Domain {
		d, err := devdomain.New(devdomain.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(name), StateDir: state})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := open("dev.example")
	if !open("dev.example").Bundle().Equal(first.Bundle()) {
		t.Error("a restart made another trust domain")
	}
	if open("else.example").Bundle().X509Bundle().HasX509Authority(first.Bundle().X509Authorities()[0]) {
		t.Error("another trust domain took the key")
	}
	info, err := os.Stat(filepath.Join(state, "devdomain.pem"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(state, "devdomain.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := devdomain.New(devdomain.Config{TrustDomain: first.TrustDomain(), StateDir: state}); err == nil {
		t.Error("junk was taken for keys")
	}
}

func TestItsAuthorityIsMarked(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 0)
	if !devdomain.Is(d.Bundle().X509Authorities()[0]) {
		t.Error("the authority is not known as a development one")
	}
	svid, err := d.IssueX509(devdomain.X509Request{ID: attestortest.ID(t, d, "/a")})
	if err != nil {
		t.Fatal(err)
	}
	if devdomain.Is(svid.Certificates[0]) {
		t.Error("a leaf passes for an authority")
	}
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 0)
	id := attestortest.ID(t, d, "/a")
	attestortest.Add(t, d, devdomain.Workload{Name: "a", ID: id})
	for name, w := range map[string]devdomain.Workload{
		"taken":   {Name: "a", ID: id},
		"name":    {Name: "../a", ID: id},
		"empty":   {ID: id},
		"foreign": {Name: "b", ID: spiffeid.RequireFromString("spiffe://else.example/a")},
	} {
		if _, err := d.Add(t.Context(), w); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	long, err := devdomain.New(devdomain.Config{TrustDomain: d.TrustDomain(), Dir: filepath.Join(t.TempDir(), strings.Repeat("x", 100))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = long.Close() }()
	if _, err := long.Add(t.Context(), devdomain.Workload{Name: "a", ID: id}); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a path that no socket takes: %v", err)
	}
}

func TestSocketsArePrivateAndRemoved(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "dev.example", 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	attestortest.Add(t, d, devdomain.Workload{Name: "a", ID: attestortest.ID(t, d, "/a")})
	if path, err := d.Path("a"); err != nil || "unix://"+path != d.Addr("a") {
		t.Errorf("Path = %q, %v", path, err)
	}
	if _, err := d.Path("b"); err == nil {
		t.Error("Path of an unknown workload")
	}
	info, err := os.Stat(d.Dir())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(d.Dir()); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
	if _, err := d.Add(t.Context(), devdomain.Workload{Name: "b", ID: attestortest.ID(t, d, "/b")}); err == nil {
		t.Error("a closed domain takes workloads")
	}
}
