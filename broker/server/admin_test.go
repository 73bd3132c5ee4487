package server_test

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // tests break a backend
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Administrators see everybody's tasks and leases, agents their own.
func TestAdministratorsSeeAll(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	ctx := t.Context()
	a, b := h.As(t, "/agent/a"), h.As(t, "/agent/b")
	task := a.Declare(t, "orders-db")
	lease := a.Issue(t, task, "orders-db").GetLease()
	b.Issue(t, b.Declare(t, "orders-db"), "orders-db")

	for path, ops := range map[string]*brokertest.Client{
		"/ops/oncall": h.As(t, "/ops/oncall"), "/audit/siem": h.As(t, "/audit/siem"), "socket": h.Local(t),
	} {
		if got, err := ops.Tasks.GetTask(ctx, &stintv1.GetTaskRequest{Name: task.GetName()}); err != nil || got.GetName() != task.GetName() {
			t.Errorf("%s: task %v, %v", path, got, err)
		}
		if got, err := ops.Credentials.GetLease(ctx, &stintv1.GetLeaseRequest{Name: lease.GetName()}); err != nil || got.GetAgent() != task.GetAgent() {
			t.Errorf("%s: lease %v, %v", path, got, err)
		}
		for want, req := range map[int]*stintv1.ListAllLeasesRequest{
			2: {}, 1: {Task: task.GetName()}, 0: {Stuck: true},
		} {
			if got, err := ops.Admin.ListAllLeases(ctx, req); err != nil || len(got.GetLeases()) != want {
				t.Errorf("%s: leases for {%v}: %v, %v", path, req, got, err)
			}
		}
	}
	own, err := b.Credentials.ListLeases(ctx, &stintv1.ListLeasesRequest{})
	if err != nil || len(own.GetLeases()) != 1 || own.GetLeases()[0].GetAgent() != "spiffe://example.org/agent/b" {
		t.Errorf("an agent's own leases %v, %v", own, err)
	}
}

// An operator may end one credential of anybody.
func TestOperatorRevokes(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	lease := agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db").GetLease()
	_, err := h.As(t, "/audit/siem").Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: lease.GetName()})
	wantReason(t, err, codes.PermissionDenied, fault.AdminRoleRequired)
	got, err := h.As(t, "/ops/oncall").Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: lease.GetName(), Wait: wait(30 * time.Second)})
	if err != nil || got.GetLease().GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED || len(h.Memory.Alive()) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDeadlineAndKeepAlive(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	end := time.Now().Add(30 * time.Minute).Truncate(time.Second)
	res, err := agent.Tasks.DeclareTask(t.Context(), &stintv1.DeclareTaskRequest{
		Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), NotAfter: timestamppb.New(end),
		IdleTimeout: durationpb.New(time.Minute), Labels: map[string]string{"team": "billing"},
	})
	if err != nil {
		t.Fatal(err)
	}
	task := res.GetTask()
	if !task.GetNotAfter().AsTime().Equal(end) || task.GetIdleTimeout().AsDuration() != time.Minute || task.GetLabels()["team"] != "billing" {
		t.Errorf("declared %v", task)
	}
	got, err := agent.Tasks.KeepAlive(t.Context(), &stintv1.KeepAliveRequest{Name: task.GetName()})
	if err != nil || got.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE || time.Until(got.GetIdleAt().AsTime()) > time.Minute {
		t.Errorf("kept alive %v, %v", got, err)
	}
}

// A backend that is down is the backend's fault, with its name and when to try again.
func TestBackendDown(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db")
	h.Memory.Break()
	_, err := agent.Credentials.IssueCredential(t.Context(), &stintv1.IssueCredentialRequest{
		Task: task.GetName(), Role: "orders-db", RequestId: brokertest.RequestID(),
	})
	wantReason(t, err, codes.Unavailable, fault.BackendUnavailable)
	if retry := detail[errdetails.RetryInfo](err).GetRetryDelay().AsDuration(); retry != 5*time.Second {
		t.Errorf("retry after %s", retry)
	}
	if h.Memory.Calls(plugintest.OpIssue) != 1 {
		t.Errorf("issue was called %d times", h.Memory.Calls(plugintest.OpIssue))
	}
	h.Memory.Heal()
	agent.Issue(t, task, "orders-db")
}

func TestSetServing(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	client := grpc_health_v1.NewHealthClient(h.Local(t).Conn)
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{
		grpc_health_v1.HealthCheckResponse_NOT_SERVING, grpc_health_v1.HealthCheckResponse_SERVING,
	} {
		h.Server.SetServing(want)
		got, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil || got.GetStatus() != want {
			t.Errorf("health is %v (%v), want %v", got, err, want)
		}
	}
}
