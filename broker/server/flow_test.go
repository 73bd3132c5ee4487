package server_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// detail returns the first detail of a type, or nil.
func detail[T any](err error) *T {
	for _, d := range status.Convert(err).Details() {
		if found, ok := d.(*T); ok {
			return found
		}
	}
	return nil
}

// wantReason fails the test unless err carries the reason under the code, in the form that clients rely on.
func wantReason(t *testing.T, err error, code codes.Code, reason fault.Reason) {
	t.Helper()
	info := detail[errdetails.ErrorInfo](err)
	if status.Code(err) != code || info == nil || info.GetReason() != string(reason) || info.GetDomain() != "stint.dev" {
		t.Fatalf("got %v (%v), want %s with reason %s", err, info, code, reason)
	}
	if id := detail[errdetails.RequestInfo](err); id == nil || len(id.GetRequestId()) != 36 {
		t.Errorf("no request ID in %v", err)
	}
}

func wait(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func TestWholeFlow(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db", "vault-like")
	if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE || task.GetAgent() != "spiffe://example.org/agent/a" ||
		task.GetProfile() != "agents" || len(task.GetGrants()) != 2 || task.GetLastSeen() == nil {
		t.Fatalf("declared %v", task)
	}
	for _, role := range []string{"orders-db", "vault-like", "orders-db"} {
		wantSecret(t, task, agent.Issue(t, task, role))
	}
	if n := len(h.Memory.Alive()) + len(h.Preparing.Alive()); n != 3 {
		t.Fatalf("%d credentials are alive", n)
	}
	done, err := agent.Tasks.CompleteTask(t.Context(), &stintv1.CompleteTaskRequest{Name: task.GetName(), Wait: wait(30 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	wantClosed(t, done)
	if n := len(h.Memory.Alive()) + len(h.Preparing.Alive()) + h.Preparing.Tokens(); n != 0 {
		t.Errorf("%d credentials or tokens are alive after the task", n)
	}
	_, err = agent.Credentials.IssueCredential(t.Context(), &stintv1.IssueCredentialRequest{
		Task: task.GetName(), Role: "orders-db", RequestId: brokertest.RequestID(),
	})
	wantReason(t, err, codes.FailedPrecondition, fault.TaskClosed)
}

// wantSecret fails the test unless a secret was issued with all that belongs to it.
func wantSecret(t *testing.T, task *stintv1.Task, res *stintv1.IssueCredentialResponse) {
	t.Helper()
	l := res.GetLease()
	if len(res.GetSecret().GetFields()["password"]) < 20 || res.GetCheckpoint() == "" {
		t.Errorf("%s: the answer holds no secret or no checkpoint", l.GetRole())
	}
	if l.GetState() != stintv1.LeaseState_LEASE_STATE_ACTIVE || l.GetTask() != task.GetName() {
		t.Errorf("lease %v", l)
	}
	if env := res.GetDelivery().GetEnv()["PGUSER"]; l.GetRole() == "orders-db" && env != "{{ .username }}" {
		t.Errorf("delivery of PGUSER is %q", env)
	}
}

// wantClosed fails the test unless a task of three leases is closed and each was read back.
func wantClosed(t *testing.T, done *stintv1.CompleteTaskResponse) {
	t.Helper()
	if got := done.GetTask(); got.GetState() != stintv1.TaskState_TASK_STATE_CLOSED ||
		got.GetCloseReason() != stintv1.CloseReason_CLOSE_REASON_COMPLETED || got.GetTeardown().GetByProof()["read_back"] != 3 {
		t.Errorf("completed %v", got)
	}
	for _, l := range done.GetLeases() {
		if l.GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED || l.GetProof() != "read_back" || l.GetRevokedAt() == nil {
			t.Errorf("lease %v", l)
		}
	}
}

func TestAnotherAgentSeesNothing(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	owner, other := h.As(t, "/agent/a"), h.As(t, "/agent/b")
	task := owner.Declare(t, "orders-db")
	lease := owner.Issue(t, task, "orders-db").GetLease()
	ctx := t.Context()
	calls := map[string]func(task, lease string) error{
		"GetTask": func(task, _ string) error {
			_, err := other.Tasks.GetTask(ctx, &stintv1.GetTaskRequest{Name: task})
			return err
		},
		"WatchTask": func(task, _ string) error {
			stream, err := other.Tasks.WatchTask(ctx, &stintv1.WatchTaskRequest{Name: task})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
		"KeepAlive": func(task, _ string) error {
			_, err := other.Tasks.KeepAlive(ctx, &stintv1.KeepAliveRequest{Name: task})
			return err
		},
		"CompleteTask": func(task, _ string) error {
			_, err := other.Tasks.CompleteTask(ctx, &stintv1.CompleteTaskRequest{Name: task})
			return err
		},
		"IssueCredential": func(task, _ string) error {
			_, err := other.Credentials.IssueCredential(ctx, &stintv1.IssueCredentialRequest{
				Task: task, Role: "orders-db", RequestId: brokertest.RequestID(),
			})
			return err
		},
		"ListLeases": func(task, _ string) error {
			_, err := other.Credentials.ListLeases(ctx, &stintv1.ListLeasesRequest{Task: task})
			return err
		},
		"GetLease": func(_, lease string) error {
			_, err := other.Credentials.GetLease(ctx, &stintv1.GetLeaseRequest{Name: lease})
			return err
		},
		"RevokeLease": func(_, lease string) error {
			_, err := other.Credentials.RevokeLease(ctx, &stintv1.RevokeLeaseRequest{Name: lease})
			return err
		},
		"GetReceipt": func(task, _ string) error {
			_, err := other.Audit.GetReceipt(ctx, &stintv1.GetReceiptRequest{Task: task})
			return err
		},
	}
	for name, call := range calls {
		foreign := call(task.GetName(), lease.GetName())
		unknown := call("tasks/0199aaaa-0000-7000-8000-000000000000", "leases/0199AAAA000070008000000000000000")
		wantReason(t, foreign, codes.NotFound, fault.NotFound)
		wantReason(t, unknown, codes.NotFound, fault.NotFound)
		if a, b := status.Convert(foreign).Message(), status.Convert(unknown).Message(); a != b {
			t.Errorf("%s tells somebody else's (%q) from nobody's (%q)", name, a, b)
		}
	}
	if len(h.Memory.Alive()) != 1 {
		t.Error("another agent ended the credential")
	}
	byShortName := call(t, owner, task.GetShortName())
	if byShortName.GetName() != task.GetName() {
		t.Errorf("short name %q finds %v", task.GetShortName(), byShortName)
	}
}

func call(t *testing.T, c *brokertest.Client, shortName string) *stintv1.Task {
	t.Helper()
	task, err := c.Tasks.GetTask(t.Context(), &stintv1.GetTaskRequest{Name: "tasks/" + shortName})
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func TestValidateOnlyOpensNothing(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	res, err := agent.Tasks.DeclareTask(t.Context(), &stintv1.DeclareTaskRequest{
		Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), Ttl: durationpb.New(9 * time.Hour), ValidateOnly: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.GetTask().GetName() != "" || res.GetTask().GetProfile() != "agents" {
		t.Errorf("got %v", res.GetTask())
	}
	if len(res.GetClamps()) != 1 || res.GetClamps()[0].GetField() != "ttl" || res.GetClamps()[0].GetGranted().AsDuration() != time.Hour {
		t.Errorf("clamps %v", res.GetClamps())
	}
	list, err := agent.Tasks.ListTasks(t.Context(), &stintv1.ListTasksRequest{})
	if err != nil || len(list.GetTasks()) != 0 {
		t.Errorf("tasks %v, %v", list, err)
	}
}

func TestWatchSeesTheEnd(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db")
	agent.Issue(t, task, "orders-db")
	stream, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
		t.Fatalf("first: %v, %v", first, err)
	}
	stopped, err := h.Local(t).Admin.StopTask(t.Context(), &stintv1.StopTaskRequest{
		Name: task.GetName(), Comment: "enough", Wait: wait(30 * time.Second),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := stopped.GetTask().GetCloseReason(); got != stintv1.CloseReason_CLOSE_REASON_STOPPED {
		t.Errorf("stopped as %v", got)
	}
	var last *stintv1.Task
	for {
		next, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = next
	}
	if last.GetState() != stintv1.TaskState_TASK_STATE_CLOSED || last.GetTeardown().GetFinal() != 1 {
		t.Errorf("the watch ended with %v", last)
	}
}

// collect reads all pages, of at most two, and returns the names of what they hold.
func collect[T interface{ GetName() string }](t *testing.T, list func(token string) ([]T, string, error)) []string {
	t.Helper()
	var names []string
	for token, more := "", true; more; more = token != "" {
		page, next, err := list(token)
		if err != nil || len(page) > 2 || len(names) > 20 {
			t.Fatalf("a page of %d after %d: %v", len(page), len(names), err)
		}
		for _, one := range page {
			names = append(names, one.GetName())
		}
		token = next
	}
	return names
}

func TestPages(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, ops := h.As(t, "/agent/a"), h.As(t, "/ops/alice")
	var want []string
	for range 5 {
		want = append(want, agent.Declare(t, "orders-db").GetName())
	}
	slices.Reverse(want)
	var all []string
	got := collect(t, func(token string) ([]*stintv1.Task, string, error) {
		page, err := agent.Tasks.ListTasks(t.Context(), &stintv1.ListTasksRequest{PageSize: 2, PageToken: token})
		return page.GetTasks(), page.GetNextPageToken(), err
	})
	page, err := ops.Admin.ListAllTasks(t.Context(), &stintv1.ListAllTasksRequest{
		PageSize: 5, Agent: "spiffe://example.org/agent/a", States: []stintv1.TaskState{stintv1.TaskState_TASK_STATE_ACTIVE},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range page.GetTasks() {
		all = append(all, task.GetName())
	}
	if !cmp.Equal(got, want) || !cmp.Equal(all, want) || page.GetNextPageToken() != "" {
		t.Errorf("pages %v, all %v (next %q), want %v", got, all, page.GetNextPageToken(), want)
	}
	var leases []string
	for range 5 {
		leases = append(leases, agent.Issue(t, &stintv1.Task{Name: want[0]}, "orders-db").GetLease().GetName())
	}
	slices.Reverse(leases)
	got = collect(t, func(token string) ([]*stintv1.Lease, string, error) {
		page, err := agent.Credentials.ListLeases(t.Context(), &stintv1.ListLeasesRequest{Task: want[0], PageSize: 2, PageToken: token})
		return page.GetLeases(), page.GetNextPageToken(), err
	})
	all = collect(t, func(token string) ([]*stintv1.Lease, string, error) {
		page, err := ops.Admin.ListAllLeases(t.Context(), &stintv1.ListAllLeasesRequest{PageSize: 2, PageToken: token})
		return page.GetLeases(), page.GetNextPageToken(), err
	})
	if !cmp.Equal(got, leases) || !cmp.Equal(all, leases) {
		t.Errorf("leases %v, all %v, want %v", got, all, leases)
	}
	for _, token := range []string{"no base64!", "AAAA"} {
		_, err := agent.Tasks.ListTasks(t.Context(), &stintv1.ListTasksRequest{PageToken: token})
		wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
	}
}

// What is too long is shortened and said, and with strict refused.
func TestStrict(t *testing.T) {
	t.Parallel()
	agent := brokertest.Start(t, brokertest.Config{}).As(t, "/agent/a")
	req := &stintv1.DeclareTaskRequest{Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), Ttl: wait(9 * time.Hour), Strict: true}
	_, err := agent.Tasks.DeclareTask(t.Context(), req)
	wantReason(t, err, codes.PermissionDenied, fault.TTLTooLong)
	req.Strict, req.RequestId = false, brokertest.RequestID()
	answer, err := agent.Tasks.DeclareTask(t.Context(), req)
	if clamps := answer.GetClamps(); err != nil || len(clamps) != 1 || clamps[0].GetGranted().AsDuration() != time.Hour {
		t.Errorf("got %v, %v", answer, err)
	}
}

// A denial by a policy names it, and what of the context it read.
func TestPolicyDenied(t *testing.T) {
	t.Parallel()
	agent := brokertest.Start(t, brokertest.Config{Resources: brokertest.Resources + `---
apiVersion: stint.dev/v1
kind: Policy
metadata: {name: short}
spec:
  cedar: |
    forbid (principal, action == Stint::Action::"issue", resource == Stint::Role::"orders-db")
    when { context.ttl > duration("1m") && context.method == "x509-svid" };
`}).As(t, "/agent/a")
	_, err := agent.Tasks.DeclareTask(t.Context(), &stintv1.DeclareTaskRequest{
		Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), Roles: []*stintv1.RoleRequest{{Role: "orders-db"}},
	})
	wantReason(t, err, codes.PermissionDenied, fault.PolicyDenied)
	got := detail[errdetails.ErrorInfo](err).GetMetadata()
	for key, want := range map[string]string{
		"classes": "policy", "reasons": "POLICY_DENIED", "policies": "policy/short", "conditions": "method,ttl",
		"profile": "agents", "owner": "platform@example.org",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

func TestRevokeOneLease(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db")
	lease := agent.Issue(t, task, "orders-db").GetLease()
	agent.Issue(t, task, "orders-db")
	got, err := agent.Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: lease.GetName(), Wait: wait(30 * time.Second)})
	if err != nil || got.GetLease().GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED || got.GetCheckpoint() == "" {
		t.Fatalf("got %v, %v", got, err)
	}
	if n := len(h.Memory.Alive()); n != 1 {
		t.Errorf("%d credentials are alive", n)
	}
	list, err := agent.Credentials.ListLeases(t.Context(), &stintv1.ListLeasesRequest{
		Task: task.GetName(), States: []stintv1.LeaseState{stintv1.LeaseState_LEASE_STATE_ACTIVE},
	})
	if err != nil || len(list.GetLeases()) != 1 {
		t.Errorf("active leases %v, %v", list, err)
	}
}

// A task expires, and an idle one is abandoned, unless a watch is open on it.
func TestTimeEndsTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		agent := h.As(t, "/agent/a")
		ctx, cancel := context.WithCancel(t.Context())
		var tasks []*stintv1.Task
		for range 2 {
			res, err := agent.Tasks.DeclareTask(ctx, &stintv1.DeclareTaskRequest{
				Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), Ttl: durationpb.New(5 * time.Minute),
				Roles: []*stintv1.RoleRequest{{Role: "orders-db"}}, IdleTimeout: durationpb.New(time.Minute),
			})
			if err != nil {
				t.Fatal(err)
			}
			agent.Issue(t, res.GetTask(), "orders-db")
			tasks = append(tasks, res.GetTask())
		}
		if _, err := agent.Tasks.WatchTask(ctx, &stintv1.WatchTaskRequest{Name: tasks[1].GetName()}); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Minute)
		if n := len(h.Memory.Alive()); n != 1 {
			t.Errorf("%d credentials are alive after two minutes", n)
		}
		<-time.After(4 * time.Minute)
		if n := len(h.Memory.Alive()); n != 0 {
			t.Errorf("%d credentials are alive after the deadline", n)
		}
		for i, want := range []stintv1.CloseReason{
			stintv1.CloseReason_CLOSE_REASON_ABANDONED, stintv1.CloseReason_CLOSE_REASON_EXPIRED,
		} {
			got, err := agent.Tasks.GetTask(ctx, &stintv1.GetTaskRequest{Name: tasks[i].GetName()})
			if err != nil || got.GetCloseReason() != want {
				t.Errorf("task %d ended as %v (%v), want %v", i, got.GetCloseReason(), err, want)
			}
		}
		cancel()
	})
}
