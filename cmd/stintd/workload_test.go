package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// workloadAPI is a small Workload API (SPIFFE Workload API, section 5) that has one identity, Stint's own.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	svid *workload.X509SVIDResponse
	jwt  *vaulttest.Signer
}

// serveWorkloadAPI serves it on a socket and returns what stops it.
func serveWorkloadAPI(tb testing.TB, socket string, api workload.SpiffeWorkloadAPIServer) (stop func()) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, api)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			tb.Error(err)
		}
	}
	tb.Cleanup(stop)
	return stop
}

func newWorkloadAPI(tb testing.TB, ca *authority, jwt *vaulttest.Signer) *workloadAPI {
	tb.Helper()
	svid := ca.svid(tb, stintPath)
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	return &workloadAPI{jwt: jwt, svid: &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: svid.ID.String(), X509Svid: svid.Certificates[0].Raw, X509SvidKey: key, Bundle: ca.cert.Raw,
	}}}}
}

// FetchX509SVID sends the one SVID.
func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := stream.Send(w.svid); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// FetchJWTSVID signs a fresh one.
func (w *workloadAPI) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	token, err := w.jwt.Source(ctx, strings.Join(req.GetAudience(), " "))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: vaulttest.SPIFFEID, Svid: string(token.Expose())}}}, nil
}

// TestWorkloadAPI serves with an identity from a Workload API and logs in to Vault with its JWT-SVIDs. When the Workload API
// is gone, what was known goes on.
func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	f, pg := sharedVault(t), servers.Postgres(t)
	socket := shortDir(t) + "/api.sock"
	s := newSite(t, "identity { workload_api = \"unix://"+socket+"\" }\n", vaultBackend(f.Server, `auth "jwt" {
    mount    = "`+vaulttest.JWTMount+`"
    role     = "stint"
    audience = "`+vaulttest.Audience+`"
  }`), catalog(limits{}, dbRole))
	stop := serveWorkloadAPI(t, socket, newWorkloadAPI(t, s.ca, f.JWT))
	d := s.start(t)
	client := s.agent(t, agentPath)
	task := declare(t, client, 5*time.Minute, dbRole)
	db := issue(t, task, dbRole)
	if conn, err := login(t.Context(), pg, db); err != nil {
		t.Errorf("log in: %v", err)
	} else if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	db2 := issue(t, task, dbRole)
	if _, err := s.admin(t).Admin().StopTask(t.Context(), &stintv1.StopTaskRequest{Name: task.Name()}); err != nil {
		t.Errorf("stop a task while the Workload API is gone: %v", err)
	}
	s.allClosed(t, s.admin(t))
	if n := users(t, pg, string(db.Fields["username"].Expose())) + users(t, pg, string(db2.Fields["username"].Expose())); n != 0 {
		t.Errorf("PostgreSQL has %d of the users left", n)
	}
	secrets{}.with(db).with(db2).absent(t, s)
	d.stop(t)
	if strings.Contains(d.log(t), "eyJ") {
		t.Error("the log holds something that looks like a JWT")
	}
}

// TestStartWithoutIdentityProvider kills a broker whose identity provider is gone, and starts it again: operators stop over the
// admin socket, what was issued ends, and agents are let in once the provider is back.
func TestStartWithoutIdentityProvider(t *testing.T) {
	t.Parallel()
	socket := shortDir(t) + "/api.sock"
	s := newSite(t, fmt.Sprintf("identity {\n  workload_api = %q\n  spiffe_id = %q\n}\n", "unix://"+socket, "spiffe://"+trustDomain+stintPath),
		embeddedCA, catalog(limits{}, certRole))
	api := newWorkloadAPI(t, s.ca, nil)
	stop := serveWorkloadAPI(t, socket, api)
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 5*time.Minute, certRole)
	cert := issue(t, task, certRole)
	stop()
	d.kill(t)
	d = s.start(t)
	d.says(t, "serving without an identity")
	if ready := string(s.get(t, "/readyz")); !strings.Contains(ready, "there is no x509-svid of spiffe://"+trustDomain+stintPath+" yet") {
		t.Errorf("/readyz says\n%s", ready)
	}
	if _, err := s.agent(t, agentPath).Tasks().WhoAmI(short(t), &stintv1.WhoAmIRequest{}); err == nil {
		t.Error("an agent is let in by a broker without an identity")
	}
	if _, err := s.admin(t).Admin().StopTask(t.Context(), &stintv1.StopTaskRequest{Name: task.Name()}); err != nil {
		t.Errorf("stop a task without an identity: %v", err)
	}
	s.allClosed(t, s.admin(t))
	if !s.revocations(t, "stepca/internal").holds(cert.Certificate.Chain[0]) {
		t.Error("the certificate is not on the CRL")
	}
	if err := os.RemoveAll(socket); err != nil {
		t.Fatal(err)
	}
	serveWorkloadAPI(t, socket, api)
	eventually(t, time.Minute, func() error {
		_, err := s.agent(t, agentPath).Tasks().WhoAmI(short(t), &stintv1.WhoAmIRequest{})
		return err
	})
	issue(t, declare(t, s.agent(t, agentPath), 5*time.Minute, certRole), certRole)
	d.stop(t)
}

// short is a context of two seconds.
func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	t.Cleanup(cancel)
	return ctx
}
