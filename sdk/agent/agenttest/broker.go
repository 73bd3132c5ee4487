// Package agenttest is a small broker in memory for tests of agents: the API of Stint over real mTLS, with a development
// trust domain, one profile, a few roles, a certificate authority, and an audit log. It decides by a fixed profile and
// keeps nothing.
package agenttest

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// What the fixed profile says.
const (
	TrustDomain = "example.org"
	AgentPath   = "/agent/invoice/eu1" // the agent of WorkloadAPI
	ProfileName = "invoice-agent"
	MaxTTL      = time.Hour
	DefaultTTL  = 20 * time.Minute
	Password    = "correct horse battery staple" // of every secret
)

// Config changes what the broker is like.
type Config struct {
	ConnectionAge time.Duration // recycle connections of this age; 0 means never
	SVIDTTL       time.Duration // lifetime of SVIDs; 0 means 10 minutes
}

// Broker is a running broker.
type Broker struct {
	Addr        string            // host:port of the API
	AdminSocket string            // unix:///path: the API without SVID
	HTTPAddr    string            // http://host:port of /bundle.pem, /crl.pem, /crl.der
	WorkloadAPI string            // SPIFFE_ENDPOINT_SOCKET of the agent
	OtherAPI    string            // that of another identity, which no profile names
	Domain      *devdomain.Domain // the trust domain of agents and broker
	LogKey      string            // verifier key of the audit log

	authority *authority
	log       *log

	mu        sync.Mutex // guards what follows
	tasks     map[string]*stintv1.Task
	requests  map[string]any // answers by request ID
	leases    []*stintv1.Lease
	resources []*stintv1.Resource
	agents    map[string]*stintv1.Agent // whose state somebody has set
	strays    []string                  // credentials of no lease
	users     []string                  // database users of no lease

	unconfirmed, confirmed bool          // a restore
	changed                chan struct{} // closed at every change
	hold                   bool
	receipt                []byte
	faults                 []error // handed out first, by calls that have a request ID
	calls                  map[string]int
	recycle                bool // the next stream of records ends after its first
}

// Start runs a broker until the test ends.
func Start(tb testing.TB, config Config) *Broker {
	tb.Helper()
	b := &Broker{
		tasks: map[string]*stintv1.Task{}, requests: map[string]any{}, changed: make(chan struct{}), calls: map[string]int{},
		authority: newAuthority(tb), log: newLog(tb),
	}
	b.LogKey = b.log.key
	b.Domain = attestortest.NewDomain(tb, TrustDomain, config.SVIDTTL)
	b.WorkloadAPI = attestortest.Add(tb, b.Domain, devdomain.Workload{Name: "agent", ID: attestortest.ID(tb, b.Domain, AgentPath)})
	b.OtherAPI = attestortest.Add(tb, b.Domain, devdomain.Workload{Name: "other", ID: attestortest.ID(tb, b.Domain, "/other")})
	attestortest.Serve(tb, b.Domain.Run)
	b.listen(tb, config)
	web := httptest.NewServer(b.authority.handler())
	tb.Cleanup(web.Close)
	b.HTTPAddr = web.URL
	return b
}

func (b *Broker) listen(tb testing.TB, config Config) {
	tb.Helper()
	own, err := source.OpenWorkloadAPI(tb.Context(), source.WorkloadAPI{Addr: attestortest.Add(tb, b.Domain, devdomain.Workload{
		Name: "stint", ID: attestortest.ID(tb, b.Domain, "/stint"), DNSNames: []string{"localhost"},
	})})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = own.Close() }) // nothing depends on it
	attestortest.Serve(tb, own.Run)
	server := tlsconfig.MTLSServerConfig(own, own, tlsconfig.AuthorizeAny())
	server.SessionTicketsDisabled = true
	server.MinVersion = tls.VersionTLS13
	ctx := context.Background()
	tcp, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	b.Addr = tcp.Addr().String()
	path := filepath.Join(b.Domain.Dir(), "admin.sock")
	local, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	b.AdminSocket = "unix://" + path
	b.serve(tb, tcp, append(ageOption(config.ConnectionAge), grpc.Creds(credentials.NewTLS(server)))...)
	b.serve(tb, local)
}

func (b *Broker) serve(tb testing.TB, l net.Listener, opts ...grpc.ServerOption) {
	tb.Helper()
	s := grpc.NewServer(append(opts, grpc.UnaryInterceptor(b.intercept))...)
	stintv1.RegisterTaskServiceServer(s, &taskService{b: b})
	stintv1.RegisterCredentialServiceServer(s, &credentialService{b: b})
	stintv1.RegisterAdminServiceServer(s, &adminService{b: b})
	stintv1.RegisterAuditServiceServer(s, &auditService{b: b})
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Serve(l); err != nil {
			tb.Errorf("serve: %v", err)
		}
	})
	tb.Cleanup(func() {
		s.Stop()
		done.Wait()
	})
}

// Env returns the environment of the agent: STINT_ADDR, SPIFFE_ENDPOINT_SOCKET, STINT_HTTP_ADDR.
func (b *Broker) Env() map[string]string {
	return map[string]string{
		"STINT_ADDR": b.Addr, "SPIFFE_ENDPOINT_SOCKET": b.WorkloadAPI, "STINT_HTTP_ADDR": b.HTTPAddr,
	}
}

// ServerID returns the broker's SPIFFE ID.
func (b *Broker) ServerID() string {
	return spiffeid.RequireFromPath(b.Domain.TrustDomain(), "/stint").String()
}

// Fail makes the next calls of the SDK that carry a request ID fail with these errors, one each, after they have had their
// effect: the answer is lost.
func (b *Broker) Fail(errs ...error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, errs...)
}

// RecycleStream ends the next stream of records after its first, as a connection does that has become too old.
func (b *Broker) RecycleStream() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recycle = true
}

// SetReceipt makes the broker answer with this document to whoever asks for the receipt of a task.
func (b *Broker) SetReceipt(doc []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.receipt = doc
}

// HoldTeardown makes tasks stay CLOSING until ReleaseTeardown.
func (b *Broker) HoldTeardown() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hold = true
}

// ReleaseTeardown lets tasks close again, and closes those that are CLOSING.
func (b *Broker) ReleaseTeardown() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hold = false
	for _, task := range b.tasks {
		if task.GetState() == stintv1.TaskState_TASK_STATE_CLOSING {
			b.finish(task)
		}
	}
	b.notify()
}

// End closes a task from outside; name as the API takes it.
func (b *Broker) End(tb testing.TB, name string, why stintv1.CloseReason) {
	tb.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	task := b.find(name)
	if task == nil {
		tb.Fatalf("no task %s", name)
	}
	b.close(task, why)
}

// Task returns a copy of the newest task; nil before the first.
func (b *Broker) Task() *stintv1.Task {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.newest()
}

// Calls returns how often a method was called: "DeclareTask".
func (b *Broker) Calls(method string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[method]
}

// Leases returns copies of all leases, newest first.
func (b *Broker) Leases() []*stintv1.Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.copyLeases("")
}
