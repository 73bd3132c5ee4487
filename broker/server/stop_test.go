package server_test

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/attestortest" //nolint:depguard,nolintlint // tests take the trust domain away
	"github.com/stint-dev/stint/attestor/devdomain"    //nolint:depguard,nolintlint // as above
	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const agentA = "spiffe://example.org/agent/a"

// pull calls Stop and returns what it was told, the last at the end, or its error.
func pull(t *testing.T, c *brokertest.Client, req *stintv1.StopRequest) ([]*stintv1.StopProgress, error) {
	t.Helper()
	stream, err := c.Admin.Stop(t.Context(), req)
	if err != nil {
		return nil, err
	}
	var all []*stintv1.StopProgress
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, p)
	}
}

// mustPull returns the last of what Stop told.
func mustPull(t *testing.T, c *brokertest.Client, req *stintv1.StopRequest) *stintv1.StopProgress {
	t.Helper()
	all, err := pull(t, c, req)
	if err != nil || len(all) == 0 {
		t.Fatalf("stop: %v, %v", all, err)
	}
	for i, p := range all {
		if p.GetDone() != (i == len(all)-1) {
			t.Errorf("message %d of %d: %v", i+1, len(all), p)
		}
	}
	return all[len(all)-1]
}

func suspendA() *stintv1.StopRequest {
	return &stintv1.StopRequest{
		Target: &stintv1.StopRequest_Agent{Agent: agentA}, Suspend: true, Comment: "misbehaves", Wait: wait(30 * time.Second),
	}
}

// The whole story of a suspended agent: its streams end, what it had is gone, every call of it is refused, over mTLS and with
// a token, and resumed it works again.
func TestSuspendedAgent(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, token, ops := h.As(t, "/agent/a"), h.WithToken(t, h.Token(t, "/agent/a")), h.As(t, "/ops/oncall")
	task := agent.Declare(t, "orders-db", "vault-like")
	agent.Issue(t, task, "orders-db")
	agent.Issue(t, task, "vault-like")
	watch, err := token.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = watch.Recv(); err != nil {
		t.Fatal(err)
	}
	wantSuspended(t, mustPull(t, ops, suspendA()))
	if n := len(h.Memory.Alive()) + len(h.Preparing.Alive()); n != 0 {
		t.Errorf("%d credentials are alive", n)
	}
	for err == nil { // changes of the task may come before the end
		_, err = watch.Recv()
	}
	if !errors.Is(err, io.EOF) { // the task was CLOSED first
		wantReason(t, err, codes.PermissionDenied, fault.AgentSuspended)
	}
	wantRefused(t, agent, task)
	wantRefused(t, token, task)
	if _, err = grpc_health_v1.NewHealthClient(agent.Conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("health is for everybody: %v", err)
	}
	closed, err := ops.Tasks.GetTask(t.Context(), &stintv1.GetTaskRequest{Name: task.GetName()})
	if err != nil || closed.GetCloseReason() != stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED {
		t.Errorf("task %v, %v", closed, err)
	}
	resumed, err := ops.Admin.ResumeAgent(t.Context(), &stintv1.ResumeAgentRequest{Agent: agentA, Comment: "mended"})
	if err != nil || resumed.GetState() != stintv1.AgentState_AGENT_STATE_ACTIVE {
		t.Fatalf("resumed %v, %v", resumed, err)
	}
	agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db")
}

// wantSuspended fails the test unless the last report tells of a suspended agent whose one task with two leases has ended.
func wantSuspended(t *testing.T, got *stintv1.StopProgress) {
	t.Helper()
	if got.GetTasks() != 1 || got.GetLeases() != 2 || got.GetOpen() != 0 || got.GetByProof()["read_back"] != 2 || got.GetCheckpoint() == "" {
		t.Errorf("stopped %v", got)
	}
	if a := got.GetAgent(); a.GetState() != stintv1.AgentState_AGENT_STATE_SUSPENDED || a.GetBy() != "spiffe://example.org/ops/oncall" {
		t.Errorf("agent %v", a)
	}
}

// wantRefused fails the test unless every kind of call is refused.
func wantRefused(t *testing.T, c *brokertest.Client, task *stintv1.Task) {
	t.Helper()
	ctx := t.Context()
	calls := map[string]func() error{
		"WhoAmI": func() error {
			_, err := c.Tasks.WhoAmI(ctx, &stintv1.WhoAmIRequest{})
			return err
		},
		"DeclareTask": func() error {
			_, err := c.Tasks.DeclareTask(ctx, &stintv1.DeclareTaskRequest{
				Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), Roles: []*stintv1.RoleRequest{{Role: "orders-db"}},
			})
			return err
		},
		"IssueCredential": func() error {
			_, err := c.Credentials.IssueCredential(ctx, &stintv1.IssueCredentialRequest{
				Task: task.GetName(), Role: "orders-db", RequestId: brokertest.RequestID(),
			})
			return err
		},
		"CompleteTask": func() error {
			_, err := c.Tasks.CompleteTask(ctx, &stintv1.CompleteTaskRequest{Name: task.GetName()})
			return err
		},
		"WatchTask": func() error {
			stream, err := c.Tasks.WatchTask(ctx, &stintv1.WatchTaskRequest{Name: task.GetName()})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
	}
	for name, call := range calls {
		if err := call(); status.Code(err) != codes.PermissionDenied || detail[errdetails.ErrorInfo](err).GetReason() != string(fault.AgentSuspended) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A stream of a suspended agent ends also where its task goes on for a while.
func TestSuspensionEndsStreams(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db")
	agent.Issue(t, task, "orders-db")
	h.Memory.Break()
	watch, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = watch.Recv(); err != nil {
		t.Fatal(err)
	}
	req := suspendA()
	req.Wait = nil
	got := mustPull(t, h.Local(t), req)
	if got.GetOpen() != 1 || got.GetUsableUntil() == nil || !got.GetChosen() {
		t.Errorf("stopped %v", got)
	}
	for err == nil {
		_, err = watch.Recv()
	}
	wantReason(t, err, codes.PermissionDenied, fault.AgentSuspended)
	if got = mustPull(t, h.Local(t), req); got.GetTasks() != 1 || got.GetLeases() != 1 || got.GetOpen() != 1 {
		t.Errorf("again: %v", got)
	}
	h.Memory.Heal()
	brokertest.Eventually(t, "the credential is gone", func() bool { return len(h.Memory.Alive()) == 0 })
}

// Over the admin socket everything can be stopped by who has no SVID, when there is no trust domain left to give one; and a
// suspension is there after a restart.
func TestStopWithoutIdentityProvider(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := brokertest.Start(t, brokertest.Config{Dir: dir})
	for _, path := range []string{"/agent/a", "/agent/b"} {
		c := h.As(t, path)
		c.Issue(t, c.Declare(t, "orders-db"), "orders-db")
	}
	dead := attestortest.Material(t, h.Domain, devdomain.X509Request{ID: h.ServerID(), TTL: -time.Minute})
	dead.X509, dead.JWT = x509bundle.NewSet(), jwtbundle.NewSet()
	if err := h.Source.Replace(dead); err != nil {
		t.Fatal(err)
	}
	if _, err := h.As(t, "/ops/oncall").Admin.ListAgents(t.Context(), &stintv1.ListAgentsRequest{}); status.Code(err) != codes.Unavailable {
		t.Fatalf("the trust domain is gone, and yet: %v", err)
	}
	local := h.Local(t)
	if got := mustPull(t, local, suspendA()); got.GetOpen() != 0 || got.GetAgent().GetBy() != "uid:1000" {
		t.Errorf("suspended %v", got)
	}
	got := mustPull(t, local, &stintv1.StopRequest{Target: &stintv1.StopRequest_All{All: true}, Wait: wait(30 * time.Second)})
	if got.GetTasks() != 1 || got.GetOpen() != 0 || len(h.Memory.Alive()) != 0 {
		t.Errorf("stopped %v; alive %v", got, h.Memory.Alive())
	}
	h.Stop()
	again := brokertest.Start(t, brokertest.Config{Dir: dir})
	_, err := again.As(t, "/agent/a").Tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{})
	wantReason(t, err, codes.PermissionDenied, fault.AgentSuspended)
	again.As(t, "/agent/b").Declare(t, "orders-db")
}

func TestStopRequestsAreChecked(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	ops := h.As(t, "/ops/oncall")
	for name, tc := range map[string]struct {
		req    *stintv1.StopRequest
		code   codes.Code
		reason fault.Reason
	}{
		"no target":     {&stintv1.StopRequest{}, codes.InvalidArgument, fault.InvalidArgument},
		"not all":       {&stintv1.StopRequest{Target: &stintv1.StopRequest_All{}}, codes.InvalidArgument, fault.InvalidArgument},
		"no SPIFFE ID":  {&stintv1.StopRequest{Target: &stintv1.StopRequest_Agent{Agent: "a"}}, codes.InvalidArgument, fault.InvalidArgument},
		"a pattern":     {&stintv1.StopRequest{Target: &stintv1.StopRequest_Agent{Agent: "spiffe://example.org/agent/*"}}, codes.InvalidArgument, fault.InvalidArgument},
		"administrator": {&stintv1.StopRequest{Target: &stintv1.StopRequest_Agent{Agent: "spiffe://example.org/ops/alice"}, Suspend: true}, codes.InvalidArgument, fault.InvalidArgument},
		"suspended all": {&stintv1.StopRequest{Target: &stintv1.StopRequest_All{All: true}, Suspend: true}, codes.InvalidArgument, fault.InvalidArgument},
		"too long":      {&stintv1.StopRequest{Target: &stintv1.StopRequest_All{All: true}, Wait: wait(time.Hour)}, codes.InvalidArgument, fault.InvalidArgument},
		"unknown role":  {&stintv1.StopRequest{Target: &stintv1.StopRequest_Role{Role: "order-db"}}, codes.NotFound, fault.NotFound},
		"unknown task":  {&stintv1.StopRequest{Target: &stintv1.StopRequest_Task{Task: "tasks/none-2345"}}, codes.NotFound, fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := pull(t, ops, tc.req)
			wantReason(t, err, tc.code, tc.reason)
		})
	}
}

// Each target of the API reaches the domain, and a dry run changes nothing.
func TestStopTargets(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, ops := h.As(t, "/agent/a"), h.As(t, "/ops/alice")
	task := agent.Declare(t, "orders-db")
	agent.Issue(t, task, "orders-db")
	for name, req := range map[string]*stintv1.StopRequest{
		"task":    {Target: &stintv1.StopRequest_Task{Task: "tasks/" + task.GetShortName()}},
		"agent":   {Target: &stintv1.StopRequest_Agent{Agent: agentA}},
		"profile": {Target: &stintv1.StopRequest_Profile{Profile: "agents"}},
		"role":    {Target: &stintv1.StopRequest_Role{Role: "orders-db"}},
		"backend": {Target: &stintv1.StopRequest_Backend{Backend: "memory/a"}},
		"all":     {Target: &stintv1.StopRequest_All{All: true}},
	} {
		req.DryRun = true
		if got := mustPull(t, ops, req); got.GetLeases() != 1 || got.GetOpen() != 1 || got.GetUsableUntil() == nil || len(h.Memory.Alive()) != 1 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestListAgents(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	ops, auditor := h.As(t, "/ops/oncall"), h.As(t, "/audit/siem")
	ids := []string{agentA, "spiffe://example.org/agent/b", "spiffe://example.org/agent/c"}
	for _, id := range ids {
		mustPull(t, ops, &stintv1.StopRequest{Target: &stintv1.StopRequest_Agent{Agent: id}, Suspend: true})
	}
	if _, err := ops.Admin.ResumeAgent(t.Context(), &stintv1.ResumeAgentRequest{Agent: ids[1]}); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[stintv1.AgentState][]string{
		stintv1.AgentState_AGENT_STATE_UNSPECIFIED: ids, stintv1.AgentState_AGENT_STATE_ACTIVE: ids[1:2],
		stintv1.AgentState_AGENT_STATE_SUSPENDED: {ids[0], ids[2]}, 77: nil,
	} {
		var got []string
		for token, more := "", true; more; more = token != "" {
			page, err := auditor.Admin.ListAgents(t.Context(), &stintv1.ListAgentsRequest{PageSize: 1, PageToken: token, State: state})
			if err != nil || len(page.GetAgents()) > 1 {
				t.Fatalf("page %v, %v", page, err)
			}
			for _, a := range page.GetAgents() {
				got = append(got, a.GetId())
			}
			token = page.GetNextPageToken()
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", state, got, want)
		}
	}
	_, err := auditor.Admin.ListAgents(t.Context(), &stintv1.ListAgentsRequest{PageToken: "a\nb"})
	wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
	_, err = ops.Admin.ResumeAgent(t.Context(), &stintv1.ResumeAgentRequest{Agent: "spiffe://example.org/agent/nobody"})
	wantReason(t, err, codes.NotFound, fault.NotFound)
}
