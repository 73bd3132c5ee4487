package brokertest

import (
	"context"
	"crypto/rand"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/stint-dev/stint/attestor/attestortest" //nolint:depguard // a house is made of concrete things
	"github.com/stint-dev/stint/attestor/devdomain"    //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/source"       //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/x509svid"     //nolint:depguard // as above
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Client calls a house as somebody.
type Client struct {
	Conn        *grpc.ClientConn
	Tasks       stintv1.TaskServiceClient
	Credentials stintv1.CredentialServiceClient
	Admin       stintv1.AdminServiceClient
	Audit       stintv1.AuditServiceClient
}

// As returns a client over mTLS with an X.509-SVID for a path of the house's trust domain: "/agent/a", "/ops/alice".
func (h *House) As(tb testing.TB, path string) *Client {
	tb.Helper()
	return h.With(tb, devdomain.X509Request{ID: attestortest.ID(tb, h.Domain, path)})
}

// With returns a client over mTLS with an X.509-SVID that is issued as asked for.
func (h *House) With(tb testing.TB, r devdomain.X509Request) *Client {
	tb.Helper()
	own, err := source.New(attestortest.Material(tb, h.Domain, r))
	if err != nil {
		tb.Fatalf("make client's source: %v", err)
	}
	return dial(tb, h.endpoints.mtls, credentials.NewTLS(x509svid.ClientConfig(own, h.ServerID())))
}

// WithToken returns a client of the listener for JWT-SVIDs that shows a token with every call; "" shows none.
func (h *House) WithToken(tb testing.TB, token string) *Client {
	tb.Helper()
	creds := credentials.NewTLS(x509svid.TokenClientConfig(h.Source, h.ServerID()))
	var opts []grpc.DialOption
	if token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return dial(tb, h.endpoints.token, creds, opts...)
}

// Token issues a JWT-SVID for a path, for the broker.
func (h *House) Token(tb testing.TB, path string) string {
	tb.Helper()
	token, err := h.Domain.IssueJWT(devdomain.JWTRequest{
		ID: attestortest.ID(tb, h.Domain, path), Audience: []string{h.ServerID().String()},
	})
	if err != nil {
		tb.Fatalf("issue token: %v", err)
	}
	return token
}

// Local returns a client of the admin endpoint: LocalUID in memory, else the user that runs the test.
func (h *House) Local(tb testing.TB) *Client {
	tb.Helper()
	return dial(tb, h.endpoints.admin, localPeer{})
}

// WorkloadAPI returns the address of a Workload API (for SPIFFE_ENDPOINT_SOCKET) that gives the SVID of a path. name is
// its socket's. The trust domain must be running: attestortest.Serve(tb, house.Domain.Run).
func (h *House) WorkloadAPI(tb testing.TB, name, path string) string {
	tb.Helper()
	return attestortest.Add(tb, h.Domain, devdomain.Workload{Name: name, ID: attestortest.ID(tb, h.Domain, path)})
}

func dial(tb testing.TB, w way, creds credentials.TransportCredentials, opts ...grpc.DialOption) *Client {
	tb.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost", append(opts,
		grpc.WithTransportCredentials(creds), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.dial(ctx) }))...)
	if err != nil {
		tb.Fatalf("make client: %v", err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return &Client{
		Conn: conn, Tasks: stintv1.NewTaskServiceClient(conn), Credentials: stintv1.NewCredentialServiceClient(conn),
		Admin: stintv1.NewAdminServiceClient(conn), Audit: stintv1.NewAuditServiceClient(conn),
	}
}

// Declare opens a task with roles, or fails the test.
func (c *Client) Declare(tb testing.TB, roles ...string) *stintv1.Task {
	tb.Helper()
	req := &stintv1.DeclareTaskRequest{Purpose: "reconcile-invoices", RequestId: RequestID()}
	for _, r := range roles {
		req.Roles = append(req.Roles, &stintv1.RoleRequest{Role: r})
	}
	res, err := c.Tasks.DeclareTask(tb.Context(), req)
	if err != nil {
		tb.Fatalf("declare: %v", err)
	}
	return res.GetTask()
}

// Issue gets a credential for a task, or fails the test.
func (c *Client) Issue(tb testing.TB, task *stintv1.Task, role string) *stintv1.IssueCredentialResponse {
	tb.Helper()
	res, err := c.Credentials.IssueCredential(tb.Context(), &stintv1.IssueCredentialRequest{
		Task: task.GetName(), Role: role, RequestId: RequestID(),
	})
	if err != nil {
		tb.Fatalf("issue %s: %v", role, err)
	}
	return res
}

// RequestID returns a fresh request ID: 130 random bits.
func RequestID() string { return rand.Text() }

// bearer shows a token with every call.
type bearer string

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (bearer) RequireTransportSecurity() bool { return true }
