// Package agent is the client of Stint for agents: it proves who the agent is with a SPIFFE SVID, declares a task, gets
// credentials for it, and ends everything with the task.
//
//	client, err := agent.New(ctx)
//	…
//	defer client.Close()
//	task, err := client.Declare(ctx, agent.Declaration{Purpose: "reconcile-invoices", Roles: []agent.Role{{Name: "orders-db-read"}}})
//	…
//	defer task.Close(context.WithoutCancel(ctx))
//	credential, err := task.Issue(ctx, "orders-db-read", agent.IssueOptions{})
//
// Every error of a call is an [*Error]; match on its reason. Messages of the API are those of package stintv1
// (proto/stint/v1), where every field is described.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/stint-dev/stint/attestor/source"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// errEOF is the good end of a stream.
var errEOF = io.EOF

// Client is one connection to a broker. It is safe for concurrent use. It reconnects by itself: a broker that goes away
// for a moment, recycles the connection, or an SVID that rotates is not seen by the caller.
type Client struct {
	conn  *grpc.ClientConn
	id    spiffeid.ID // zero on the admin socket
	log   *checkpoints
	roles roleCache

	stop    context.CancelFunc
	stopped chan struct{} // closed when the source no longer runs
	source  io.Closer     // nil where the source is the caller's
}

// New returns a client that has its identity; it connects with the first call. The Workload API is the one that
// SPIFFE_ENDPOINT_SOCKET names, the broker the one of STINT_ADDR. With an address of unix:///path it is the broker's admin
// socket, which needs no SVID. In the background it keeps the SVID fresh until Close. The context bounds New only.
func New(ctx context.Context, opts ...Option) (*Client, error) {
	o, err := gather(opts)
	if err != nil {
		return nil, err
	}
	c := &Client{log: &checkpoints{verifier: o.verifier}, stop: func() {}, stopped: make(chan struct{})}
	if o.checkpoint != "" {
		c.log.see(o.checkpoint)
	}
	id, err := c.identify(ctx, &o)
	if err != nil {
		return nil, err
	}
	if c.conn, err = dial(o, id, c.log); err != nil {
		return nil, errors.Join(err, c.closeSource())
	}
	return c, nil
}

// identify finds the SVID to use and, with it, the broker's default ID.
func (c *Client) identify(ctx context.Context, o *options) (identity, error) {
	if strings.HasPrefix(o.addr, unixPrefix) {
		close(c.stopped)
		return nil, nil //nolint:nilnil // no identity is what a local socket needs
	}
	id := o.source
	if id == nil {
		own, err := source.OpenWorkloadAPI(ctx, source.WorkloadAPI{
			Addr: o.workloadAPI, ID: o.spiffeID, Trust: federated(o.serverID), Logger: o.log,
		})
		if err != nil {
			return nil, fmt.Errorf("get an identity: %w", err)
		}
		c.run(ctx, own)
		id = own
	} else {
		close(c.stopped)
	}
	svid, err := id.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("get an identity: %w", errors.Join(err, c.closeSource()))
	}
	c.id = svid.ID
	if o.serverID.IsZero() {
		if o.serverID, err = spiffeid.FromPath(svid.ID.TrustDomain(), "/stint"); err != nil {
			return nil, fmt.Errorf("default server ID: %w", errors.Join(err, c.closeSource()))
		}
	}
	return id, nil
}

// federated is the broker's trust domain where one is named: it may be another than the agent's.
func federated(server spiffeid.ID) []spiffeid.TrustDomain {
	if server.IsZero() {
		return nil
	}
	return []spiffeid.TrustDomain{server.TrustDomain()}
}

// run keeps the source fresh until closeSource.
func (c *Client) run(ctx context.Context, own *source.Source) {
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.source = own
	go func() {
		defer close(c.stopped)
		_ = own.Run(ctx) // it returns nil when its context is done, and reports everything else to the log
	}()
}

func (c *Client) closeSource() error {
	c.stop()
	<-c.stopped
	if c.source == nil {
		return nil
	}
	if err := c.source.Close(); err != nil {
		return fmt.Errorf("close identity source: %w", err)
	}
	return nil
}

// ID returns the agent's SPIFFE ID; zero on the admin socket.
func (c *Client) ID() spiffeid.ID { return c.id }

// Close closes the connection. Tasks stay open at the broker until they are closed or time out: close them first.
func (c *Client) Close() error {
	err := c.conn.Close()
	if err != nil {
		err = fmt.Errorf("close connection: %w", err)
	}
	return errors.Join(err, c.closeSource())
}

// WhoAmI returns how the broker sees the caller, and what it may ask for.
func (c *Client) WhoAmI(ctx context.Context) (*stintv1.WhoAmIResponse, error) {
	return c.Tasks().WhoAmI(ctx, &stintv1.WhoAmIRequest{})
}

// Tasks returns the plain TaskService on the client's connection. Its errors are [*Error] too.
func (c *Client) Tasks() stintv1.TaskServiceClient { return stintv1.NewTaskServiceClient(c.conn) }

// Credentials returns the plain CredentialService on the client's connection.
func (c *Client) Credentials() stintv1.CredentialServiceClient {
	return stintv1.NewCredentialServiceClient(c.conn)
}

// Admin returns the AdminService on the client's connection, for callers with an administration role.
func (c *Client) Admin() stintv1.AdminServiceClient { return stintv1.NewAdminServiceClient(c.conn) }

// Audit returns the AuditService on the client's connection.
func (c *Client) Audit() stintv1.AuditServiceClient { return stintv1.NewAuditServiceClient(c.conn) }

// roleCache remembers which roles need a CSR.
type roleCache struct {
	mu    sync.Mutex                        // guards roles
	roles map[string]*stintv1.AvailableRole // by name; shared, never changed
}

// Role returns what the broker says of a role that the caller may ask for. The answer is kept for the life of the client;
// a role that it does not hold is asked for again. A role that the caller may not ask for is NOT_FOUND.
func (c *Client) Role(ctx context.Context, name string) (*stintv1.AvailableRole, error) {
	if role := c.roles.get(name); role != nil {
		return role, nil
	}
	answer, err := c.Tasks().ListAvailableRoles(ctx, &stintv1.ListAvailableRolesRequest{})
	if err != nil {
		return nil, err
	}
	c.roles.set(answer.GetRoles())
	if role := c.roles.get(name); role != nil {
		return role, nil
	}
	return nil, notFound("role %s is not one that this agent may ask for", name)
}

func (r *roleCache) get(name string) *stintv1.AvailableRole {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.roles[name]
}

func (r *roleCache) set(roles []*stintv1.AvailableRole) {
	byName := make(map[string]*stintv1.AvailableRole, len(roles))
	for _, role := range roles {
		byName[role.GetName()] = role
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roles = byName
}
