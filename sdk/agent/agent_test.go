package agent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/source"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
	"github.com/stint-dev/stint/sdk/agent/agenttest"
)

const soon = 30 * time.Second

func connect(t *testing.T, b *agenttest.Broker, opts ...agent.Option) *agent.Client {
	t.Helper()
	client, err := agent.New(t.Context(), append([]agent.Option{agent.WithAddr(b.Addr), agent.WithWorkloadAPI(b.WorkloadAPI)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func declare(t *testing.T, client *agent.Client, d agent.Declaration) *agent.Task {
	t.Helper()
	if d.Purpose == "" {
		d.Purpose = "reconcile-invoices"
	}
	if d.Roles == nil {
		d.Roles = []agent.Role{{Name: "orders-db-read"}, {Name: "ledger-api"}}
	}
	task, err := client.Declare(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := task.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return task
}

func wait(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(soon):
		t.Fatalf("waited %s for %s", soon, what)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(soon); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", soon, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func reason(t *testing.T, err error, want stintv1.Reason) agent.Error {
	t.Helper()
	e, ok := errors.AsType[*agent.Error](err)
	if !ok || e.Reason != want {
		t.Fatalf("error %v, want reason %s", err, want)
	}
	return *e
}

func TestTaskFromDeclareToClose(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b)
	if got, want := client.ID().String(), "spiffe://"+agenttest.TrustDomain+agenttest.AgentPath; got != want {
		t.Errorf("ID %s, want %s", got, want)
	}
	task := declare(t, client, agent.Declaration{TTL: 10 * time.Minute})
	if got := task.Latest().GetIdleTimeout().AsDuration(); got != agent.DefaultIdleTimeout {
		t.Errorf("idle timeout %s, want %s", got, agent.DefaultIdleTimeout)
	}
	credential, err := task.Issue(t.Context(), "orders-db-read", agent.IssueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(credential.Fields["password"].Expose()); got != agenttest.Password {
		t.Errorf("password %q", got)
	}
	if credential.Certificate != nil {
		t.Error("a secret came with a certificate")
	}
	task.SetOutcome(stintv1.CloseReason_CLOSE_REASON_FAILED)
	if err := task.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(t, "the end", task.Done())
	if err := task.Err(); err != nil {
		t.Errorf("Err after Close: %v", err)
	}
	if got := b.Task(); got.GetCloseReason() != stintv1.CloseReason_CLOSE_REASON_FAILED || got.GetState() != stintv1.TaskState_TASK_STATE_CLOSED {
		t.Errorf("task is %s, %s", got.GetState(), got.GetCloseReason())
	}
	if client.Checkpoint() == "" {
		t.Error("no checkpoint was kept")
	}
}

func TestTaskEndsFromOutside(t *testing.T) {
	t.Parallel()
	for why, want := range map[stintv1.CloseReason]stintv1.Reason{
		stintv1.CloseReason_CLOSE_REASON_STOPPED:         stintv1.Reason_REASON_TASK_CLOSED,
		stintv1.CloseReason_CLOSE_REASON_EXPIRED:         stintv1.Reason_REASON_TASK_EXPIRED,
		stintv1.CloseReason_CLOSE_REASON_ABANDONED:       stintv1.Reason_REASON_TASK_CLOSED,
		stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED: stintv1.Reason_REASON_TASK_CLOSED,
		stintv1.CloseReason_CLOSE_REASON_CANCELLED:       stintv1.Reason_REASON_TASK_CLOSED,
	} {
		t.Run(why.String(), func(t *testing.T) {
			t.Parallel()
			b := agenttest.Start(t, agenttest.Config{})
			task := declare(t, connect(t, b), agent.Declaration{})
			if err := task.Err(); err != nil {
				t.Fatalf("Err of an open task: %v", err)
			}
			b.End(t, task.Name(), why)
			wait(t, "the end", task.Done())
			e := reason(t, task.Err(), want)
			if got := "CLOSE_REASON_" + e.Metadata["close_reason"]; got != why.String() {
				t.Errorf("close_reason %s, want %s", got, why)
			}
			if _, err := task.Issue(t.Context(), "orders-db-read", agent.IssueOptions{}); agent.ReasonOf(err) != stintv1.Reason_REASON_TASK_CLOSED {
				t.Errorf("issue after the end: %v", err)
			}
		})
	}
}

func TestDeadlineEndsTaskHere(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	task := declare(t, connect(t, b), agent.Declaration{TTL: 2 * time.Second}) // this broker never expires a task
	wait(t, "the deadline", task.Done())
	reason(t, task.Err(), stintv1.Reason_REASON_TASK_EXPIRED)
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	task := declare(t, connect(t, b), agent.Declaration{IdleTimeout: 1500 * time.Millisecond})
	eventually(t, "two keepalives", func() bool { return b.Calls("KeepAlive") >= 2 })
	if err := task.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRecycledConnectionsAndRotatingSVIDsAreNotSeen(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{ConnectionAge: 200 * time.Millisecond, SVIDTTL: 2 * time.Second})
	client := connect(t, b)
	task := declare(t, client, agent.Declaration{})
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		if _, err := client.WhoAmI(t.Context()); err != nil {
			t.Fatalf("call failed: %v", err)
		}
	}
	if err := task.Err(); err != nil {
		t.Fatalf("task ended: %v", err)
	}
	b.End(t, task.Name(), stintv1.CloseReason_CLOSE_REASON_STOPPED)
	wait(t, "the watch to see the end across connections", task.Done())
}

func TestLostAnswers(t *testing.T) {
	t.Parallel()
	lost := status.Error(codes.Unavailable, "connection reset")
	unknown := agenttest.Refusal(codes.Unavailable, "OUTCOME_UNKNOWN", "ask again", nil)
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b)
	b.Fail(lost)
	task := declare(t, client, agent.Declaration{TTL: time.Minute})
	if n := b.Calls("DeclareTask"); n != 2 {
		t.Errorf("%d declarations were sent, want 2 with one request ID", n)
	}
	b.Fail(unknown)
	if _, err := task.Issue(t.Context(), "ledger-api", agent.IssueOptions{}); err != nil {
		t.Fatalf("certificate: %v", err)
	}
	if n := len(b.Leases()); n != 1 {
		t.Errorf("%d leases after a certificate whose answer was lost, want 1", n)
	}
	b.Fail(lost)
	if _, err := task.Issue(t.Context(), "orders-db-read", agent.IssueOptions{}); err != nil {
		t.Fatalf("secret: %v", err)
	}
	leases := b.Leases()
	if len(leases) != 3 || leases[0].GetState() != stintv1.LeaseState_LEASE_STATE_ACTIVE ||
		leases[1].GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED {
		t.Errorf("leases after a secret whose answer was lost: %v", leases)
	}
}

func TestAnswersAreNotRetried(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b)
	task := declare(t, client, agent.Declaration{})
	b.Fail(agenttest.Refusal(codes.Unavailable, "BACKEND_UNAVAILABLE", "vault/prod is sealed", nil))
	_, err := task.Issue(t.Context(), "orders-db-read", agent.IssueOptions{})
	reason(t, err, stintv1.Reason_REASON_BACKEND_UNAVAILABLE)
	if n := b.Calls("IssueCredential"); n != 1 {
		t.Errorf("%d issue calls, want 1", n)
	}
}

func TestDenial(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b)
	_, err := client.Declare(t.Context(), agent.Declaration{Purpose: "reconcile-invoices", Roles: []agent.Role{{Name: "orders-db-write"}}})
	e := reason(t, err, stintv1.Reason_REASON_ROLE_OUTSIDE_PROFILE)
	if e.Code != codes.PermissionDenied || e.RequestID == "" || e.Metadata["profile"] != agenttest.ProfileName || e.Message == "" {
		t.Errorf("error %v", err)
	}
	if !errors.Is(err, &agent.Error{Reason: stintv1.Reason_REASON_ROLE_OUTSIDE_PROFILE}) ||
		errors.Is(err, &agent.Error{Reason: stintv1.Reason_REASON_NO_PROFILE}) || !errors.Is(err, &agent.Error{Code: codes.PermissionDenied}) {
		t.Error("errors.Is does not match by reason or code")
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("status code %s", status.Code(err))
	}
	_, err = client.Open(t.Context(), agent.Declaration{Purpose: "reconcile-invoices", RequestID: "short"})
	if e := reason(t, err, stintv1.Reason_REASON_INVALID_ARGUMENT); len(e.Fields) != 1 || e.Fields[0].Field != "request_id" {
		t.Errorf("fields %v", e.Fields)
	}
}

func TestServerIDMismatchNamesBoth(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b, agent.WithServerID("spiffe://example.org/other-stint"))
	_, err := client.WhoAmI(t.Context())
	if !errors.Is(err, agent.ErrServerID) || status.Code(err) == codes.Unavailable {
		t.Fatalf("error %v", err)
	}
	for _, id := range []string{"spiffe://example.org/other-stint", b.ServerID(), "FAILED_PRECONDITION: "} {
		if !strings.Contains(err.Error(), id) {
			t.Errorf("%q does not name %s", err, id)
		}
	}
}

func TestRefusedHandshake(t *testing.T) {
	t.Parallel()
	b, foreign := agenttest.Start(t, agenttest.Config{}), agenttest.Start(t, agenttest.Config{})
	// Our identity is of another authority, while we trust the broker's.
	mixed := mixedSource{own: open(t, foreign.WorkloadAPI), trust: open(t, b.WorkloadAPI)}
	client, err := agent.New(t.Context(), agent.WithAddr(b.Addr), agent.WithSource(mixed))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.WhoAmI(t.Context())
	reason(t, err, stintv1.Reason_REASON_UNAUTHENTICATED)
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err = l.Close(); err != nil {
		t.Fatal(err)
	}
	client := connect(t, b, agent.WithAddr(addr))
	_, err = client.WhoAmI(t.Context())
	if status.Code(err) != codes.Unavailable || agent.ReasonOf(err) != stintv1.Reason_REASON_UNSPECIFIED {
		t.Errorf("error %v", err)
	}
	if want := "UNAVAILABLE: the connection to the broker at " + addr + " failed: connection refused"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

// TestSilentBroker: something listens that never answers.
func TestSilentBroker(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := connect(t, b, agent.WithAddr(l.Addr().String()))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = client.WhoAmI(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if want := "DEADLINE_EXCEEDED: the broker at " + l.Addr().String() + " did not answer in time"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	t.Setenv("STINT_ADDR", "")
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	if _, err := agent.New(t.Context()); !errors.Is(err, agent.ErrNoAddress) || !strings.Contains(err.Error(), "STINT_ADDR") {
		t.Errorf("without STINT_ADDR: %v", err)
	}
	t.Setenv("STINT_ADDR", "127.0.0.1:1")
	if _, err := agent.New(t.Context()); !errors.Is(err, source.ErrNoAddress) {
		t.Errorf("without SPIFFE_ENDPOINT_SOCKET: %v", err)
	}
	t.Setenv("STINT_SERVER_ID", "not an id")
	if _, err := agent.New(t.Context()); !errors.Is(err, agent.ErrUsage) {
		t.Errorf("with a bad STINT_SERVER_ID: %v", err)
	}
}

func TestAdminSocketNeedsNoIdentity(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	b := agenttest.Start(t, agenttest.Config{})
	client, err := agent.New(t.Context(), agent.WithAddr(b.AdminSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	me, err := client.WhoAmI(t.Context())
	if err != nil || me.GetMethod() != "local" || !client.ID().IsZero() {
		t.Errorf("who am i: %v, %v", me, err)
	}
}

func TestRotatingCertificate(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	task := declare(t, connect(t, b), agent.Declaration{Roles: []agent.Role{{Name: "web-client", TTL: 3 * time.Second}}})
	rotating, err := task.Certificate(t.Context(), "web-client", agent.IssueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *tls.Certificate {
		cert, err := rotating.GetClientCertificate(new(tls.CertificateRequestInfo))
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	first := get()
	if get() != first {
		t.Error("renewed before it was due")
	}
	eventually(t, "a renewed certificate", func() bool { return get() != first })
	if rotating.Current().Chain[0].SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 {
		t.Error("the renewed certificate has the old serial number")
	}
	b.End(t, task.Name(), stintv1.CloseReason_CLOSE_REASON_STOPPED)
	eventually(t, "an error once the last certificate has ended", func() bool {
		_, err := rotating.GetClientCertificate(new(tls.CertificateRequestInfo))
		return agent.ReasonOf(err) == stintv1.Reason_REASON_TASK_CLOSED
	})
}
