// Package server is the broker's gRPC face: it says who calls, whether they may, and turns messages into the words of the
// domain and back. It decides nothing else. Every way in (mTLS, JWT-SVID, the admin socket) serves the same services behind
// the same list of steps; docs/errors.md lists what comes back when a call is refused.
package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/reconcile"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Admins says which identities administer the broker. attestor/admin has one.
type Admins interface {
	// Of returns the administration role of an identity; false if it has none. It MUST return none for a JWT-SVID.
	Of(id attestor.Identity) (attestor.AdminRole, bool)
	// Changed returns a channel that is closed when roles next change: open streams are then held against them again.
	Changed() <-chan struct{}
}

// Observer measures calls. Its method must not block.
type Observer interface {
	// Called is told of every call that reached the services: its method ("/stint.v1.TaskService/DeclareTask"), the code
	// that was answered, its reason ("" for success and for what has none), and how long it took.
	Called(method string, code codes.Code, reason fault.Reason, took time.Duration)
}

// Config is what a Server is made of. Every field is required unless it says otherwise.
type Config struct {
	Broker *broker.Broker
	Ledger *ledger.Ledger // for the AuditService, which only reads
	// Reconciler compares what backends hold with the ledger.
	Reconciler *reconcile.Reconciler
	Admins     Admins
	// Endpoints are the ways in, at least one.
	Endpoints []Endpoint
	// Limits bounds what a client can make the server hold; zero fields mean their defaults.
	Limits   Limits
	Observer Observer
	Logger   *zap.Logger
	// VerifierKey is the public key of the audit log's checkpoints (C2SP signed-note vkey).
	VerifierKey string
	Version     string // of the broker, for WhoAmI
	ServerID    string // the broker's SPIFFE ID, for WhoAmI
	// Reflect serves the descriptors of the API to every attested caller.
	Reflect bool
}

// Server serves the API. New makes one, Run runs it once.
type Server struct {
	cfg       Config
	access    map[string]rule
	validator protovalidate.Validator
	penalties *penalties
	health    *health.Server
	servers   []*grpc.Server // one for each endpoint, in their order

	stopOnce sync.Once
	stopping chan struct{} // closed when streams have to end
}

// New makes a Server; it serves nothing until Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Limits = cfg.Limits.withDefaults()
	validator, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("make the request validator: %w", err)
	}
	s := &Server{
		cfg: cfg, access: accessTable(), validator: validator, penalties: newPenalties(),
		health: health.NewServer(), stopping: make(chan struct{}),
	}
	for i := range cfg.Endpoints {
		s.servers = append(s.servers, s.newServer(&cfg.Endpoints[i]))
	}
	return s, nil
}

func (c *Config) check() error {
	if c.Broker == nil || c.Ledger == nil || c.Reconciler == nil || c.Admins == nil || c.Observer == nil || c.Logger == nil {
		return errors.New("server: broker, ledger, reconciler, admins, observer and logger are required")
	}
	if len(c.Endpoints) == 0 {
		return errors.New("server: there is no endpoint to serve on")
	}
	for _, e := range c.Endpoints {
		if e.Name == "" || e.Listener == nil || e.Credentials == nil || e.Attestor == nil {
			return fmt.Errorf("server: endpoint %q needs a name, a listener, credentials and an attestor", e.Name)
		}
	}
	return nil
}

// newServer makes the gRPC server of one endpoint with all services.
func (s *Server) newServer(e *Endpoint) *grpc.Server {
	g := grpc.NewServer(s.options(e)...)
	stintv1.RegisterTaskServiceServer(g, &taskService{server: s})
	stintv1.RegisterCredentialServiceServer(g, &credentialService{server: s})
	stintv1.RegisterAdminServiceServer(g, &adminService{server: s})
	stintv1.RegisterAuditServiceServer(g, &auditService{server: s})
	grpc_health_v1.RegisterHealthServer(g, s.health)
	if s.cfg.Reflect {
		reflection.Register(g)
	}
	return g
}

// SetServing makes the health service answer SERVING or NOT_SERVING. A new Server is SERVING; once Run is stopping it is
// NOT_SERVING for good.
func (s *Server) SetServing(status grpc_health_v1.HealthCheckResponse_ServingStatus) {
	s.health.SetServingStatus("", status)
}

// Run serves until ctx is done, then stops: health says NOT_SERVING, open streams end with SHUTTING_DOWN, calls in flight
// get the drain timeout to finish, and what is left is cut. It returns an error when a listener fails. It runs once.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, g := range s.servers {
		e := s.cfg.Endpoints[i]
		group.Go(func() error {
			if err := g.Serve(e.Listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serve %s: %w", e.Name, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		s.stop()
		return nil
	})
	return group.Wait()
}

// stop ends everything, within the drain timeout.
func (s *Server) stop() {
	s.health.Shutdown()
	s.stopOnce.Do(func() { close(s.stopping) })
	cut := time.AfterFunc(s.cfg.Limits.DrainTimeout, func() {
		for _, g := range s.servers {
			g.Stop()
		}
	})
	defer cut.Stop()
	var all sync.WaitGroup
	for _, g := range s.servers {
		all.Go(g.GracefulStop)
	}
	all.Wait()
}
