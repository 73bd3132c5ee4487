package server_test

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/attestor/attestortest" //nolint:depguard // tests choose who is calling
	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/server"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // as above
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func withBearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func TestAllInvalidFieldsAtOnce(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	_, err := agent.Tasks.DeclareTask(t.Context(), &stintv1.DeclareTaskRequest{
		Purpose: "Not A Token", RequestId: "short", Ttl: durationpb.New(-time.Second),
		NotAfter: &timestamppb.Timestamp{Seconds: 1 << 60},
		Roles:    []*stintv1.RoleRequest{{Role: "orders-db"}, {Role: "BAD", Ttl: durationpb.New(-1)}},
		Labels:   map[string]string{"BAD KEY": ""},
	})
	wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
	var got []string
	for _, v := range detail[errdetails.BadRequest](err).GetFieldViolations() {
		got = append(got, v.GetField())
		if v.GetDescription() == "" {
			t.Errorf("%s: no description", v.GetField())
		}
	}
	for _, want := range []string{"purpose", "request_id", "ttl", "not_after", "roles[1].role", "roles[1].ttl", `labels["BAD KEY"]`} {
		if !slices.Contains(got, want) {
			t.Errorf("violations %v lack %s", got, want)
		}
	}
	stream, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
}

func TestBrokenWellKnownTypes(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	for name, req := range map[string]*stintv1.CompleteTaskRequest{
		"endless":               {Name: "tasks/x", Wait: &durationpb.Duration{Seconds: 1 << 62}},
		"negative nanoseconds":  {Name: "tasks/x", Wait: &durationpb.Duration{Nanos: -5}},
		"an operator's outcome": {Name: "tasks/x", Outcome: stintv1.CloseReason_CLOSE_REASON_STOPPED},
	} {
		_, err := agent.Tasks.CompleteTask(t.Context(), req)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConnections meets the limits of one connection: silence before a handshake, calls at once, and age.
func TestConnections(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{Listen: true, Limits: server.Limits{ConnectionTimeout: 200 * time.Millisecond, MaxConcurrentStreams: 1}})
	silent, err := new(net.Dialer).DialContext(t.Context(), "tcp", h.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err = silent.SetReadDeadline(time.Now().Add(8 * time.Second)); err != nil { // before the default of the timeout
		t.Fatal(err)
	}
	if _, err = silent.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a peer that says nothing is not cut: %v", err)
	}

	agent := h.As(t, "/agent/a")
	task := agent.Declare(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := agent.Tasks.WatchTask(ctx, &stintv1.WatchTaskRequest{Name: task.GetName()})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	short, end := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer end()
	if _, err = agent.Tasks.WhoAmI(short, &stintv1.WhoAmIRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a second call on a connection for one: %v", err)
	}
	cancel()
	if err = whoAmI(t, agent); err != nil {
		t.Errorf("once the first call is over: %v", err)
	}

	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{Limits: server.Limits{MaxConnectionAge: time.Minute}})
		agent := h.As(t, "/agent/a")
		if err := whoAmI(t, agent); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if !agent.Conn.WaitForStateChange(t.Context(), connectivity.Ready) || time.Since(began) > 2*time.Minute {
			t.Errorf("a connection is %s old", time.Since(began))
		}
		if err := whoAmI(t, agent); err != nil {
			t.Errorf("on the next connection: %v", err)
		}
	})
}

// raw is a codec that sends bytes as they are.
type raw []byte

func (r raw) Marshal(any) (mem.BufferSlice, error) { return mem.BufferSlice{mem.SliceBuffer(r)}, nil }

func (raw) Unmarshal(mem.BufferSlice, any) error { return nil }

func (raw) Name() string { return "proto" }

// Bytes that are no protobuf are refused like any other invalid request: with the reason, the request ID and an access line,
// and only after who called was looked at.
func TestBrokenBytes(t *testing.T) {
	t.Parallel()
	core, lines := observer.New(zapcore.InfoLevel)
	h := brokertest.Start(t, brokertest.Config{Logger: zap.New(core)})
	agent := h.As(t, "/agent/a")
	for _, bytes := range []raw{{0xff}, {0x0a, 0x7f}, []byte("GET / HTTP/1.1")} {
		for method, stream := range map[string]bool{
			stintv1.TaskService_DeclareTask_FullMethodName: false, grpc_health_v1.Health_Check_FullMethodName: false,
			stintv1.TaskService_WatchTask_FullMethodName: true,
		} {
			call, err := agent.Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: stream}, method, grpc.ForceCodecV2(bytes))
			if err != nil {
				t.Fatal(err)
			}
			if err = call.SendMsg(bytes); err == nil {
				err = call.CloseSend()
			}
			if err != nil {
				t.Fatal(err)
			}
			wantReason(t, call.RecvMsg(nil), codes.InvalidArgument, fault.InvalidArgument)
			brokertest.Eventually(t, "an access line of "+method, func() bool {
				return lines.FilterField(zap.String("method", method)).FilterField(zap.String("reason", "INVALID_ARGUMENT")).Len() > 0
			})
			lines.TakeAll()
		}
	}
	err := h.WithToken(t, "nonsense").Conn.Invoke(t.Context(), stintv1.TaskService_DeclareTask_FullMethodName, raw{0xff}, nil, grpc.ForceCodecV2(raw{0xff}))
	wantReason(t, err, codes.Unauthenticated, fault.Unauthenticated)
}

func TestOversizeMessage(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	big := &stintv1.ApplyRequest{DryRun: true, Documents: []*stintv1.Document{
		{File: "a.yaml", Yaml: "# " + strings.Repeat("x", 1<<19)}, {File: "b.yaml", Yaml: "# " + strings.Repeat("y", 1<<19)},
	}}
	_, err := h.As(t, "/ops/alice").Admin.Apply(t.Context(), big)
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("over mTLS: %v", err)
	}
	if _, err = h.Local(t).Admin.Apply(t.Context(), big); err != nil {
		t.Errorf("at the admin socket: %v", err)
	}
	_, err = h.WithToken(t, h.Token(t, "/agent/a")).Credentials.IssueCredential(t.Context(), &stintv1.IssueCredentialRequest{
		Task: "tasks/x", Role: "r", Csr: make([]byte, 300<<10), RequestId: brokertest.RequestID(),
	})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("with a token: %v", err)
	}
}

// Who is refused all the time is slowed down, but can still end what it has.
func TestPenalty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		agent, other := h.As(t, "/agent/a"), h.As(t, "/agent/b")
		task := agent.Declare(t, "orders-db")
		agent.Issue(t, task, "orders-db")
		var err error
		for n := 0; status.Code(err) != codes.ResourceExhausted; n++ {
			if n > 200 {
				t.Fatal("never slowed down")
			}
			_, err = agent.Tasks.GetTask(t.Context(), &stintv1.GetTaskRequest{Name: "tasks/guess"})
		}
		wantReason(t, err, codes.ResourceExhausted, fault.RateLimited)
		retry := detail[errdetails.RetryInfo](err).GetRetryDelay().AsDuration()
		if retry <= 0 || retry > time.Second {
			t.Errorf("retry after %v", retry)
		}
		if err = whoAmI(t, other); err != nil {
			t.Errorf("somebody else: %v", err)
		}
		if _, err = agent.Tasks.CompleteTask(t.Context(), &stintv1.CompleteTaskRequest{Name: task.GetName(), Wait: wait(time.Minute)}); err != nil {
			t.Errorf("completing: %v", err)
		}
		if len(h.Memory.Alive()) != 0 {
			t.Error("the credential is alive")
		}
		<-time.After(retry)
		if err := whoAmI(t, agent); err != nil {
			t.Errorf("after the wait: %v", err)
		}
	})
}

// The access line names method, caller, code, reason and request ID, and no message gets into the log.
func TestAccessLine(t *testing.T) {
	t.Parallel()
	core, lines := observer.New(zapcore.DebugLevel)
	h := brokertest.Start(t, brokertest.Config{Logger: zap.New(core)})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db")
	password := string(agent.Issue(t, task, "orders-db").GetSecret().GetFields()["password"])
	_, err := agent.Tasks.DeclareTask(t.Context(), &stintv1.DeclareTaskRequest{
		Purpose: "launder-money", Description: "free text of the agent", RequestId: brokertest.RequestID(),
	})
	wantReason(t, err, codes.PermissionDenied, fault.PurposeOutsideProfile)

	brokertest.Eventually(t, "three access lines", func() bool { return lines.FilterMessage("call").Len() >= 3 })
	last := lines.FilterMessage("call").All()[2].ContextMap()
	for key, want := range map[string]any{
		"method": "/stint.v1.TaskService/DeclareTask", "endpoint": "grpc", "caller": "spiffe://example.org/agent/a",
		"code": "PermissionDenied", "reason": "PURPOSE_OUTSIDE_PROFILE", "request": detail[errdetails.RequestInfo](err).GetRequestId(),
	} {
		if last[key] != want {
			t.Errorf("%s is %v, want %v", key, last[key], want)
		}
	}
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, line := range lines.All() {
		text, err := enc.EncodeEntry(line.Entry, line.Context)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{password, "free text of the agent"} {
			if strings.Contains(text.String(), secret) {
				t.Errorf("the log holds %q", secret)
			}
		}
	}
}

// A server that stops says so to health watchers, ends streams with a reason, and takes no more.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		agent := h.As(t, "/agent/a")
		task := agent.Declare(t, "orders-db")
		stream, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		watch, err := grpc_health_v1.NewHealthClient(agent.Conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got, healthErr := watch.Recv(); healthErr != nil || got.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Fatalf("health: %v, %v", got, healthErr)
		}
		synctest.Wait()
		began := time.Now()
		h.Stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		_, err = stream.Recv()
		wantReason(t, err, codes.Unavailable, fault.ShuttingDown)
		if err := whoAmI(t, agent); status.Code(err) != codes.Unavailable {
			t.Errorf("a stopped server answers %v", err)
		}
	})
}

// What was alive when a broker stopped ends when the next one runs on the same ledger, and its record goes on.
func TestRestart(t *testing.T) {
	t.Parallel()
	domain, dir := attestortest.NewDomain(t, brokertest.TrustDomain, 0), t.TempDir()
	memory := plugintest.NewMemory(plugintest.MemoryConfig{})
	cfg := brokertest.Config{
		Domain: domain, Dir: dir,
		Backends: map[string]plugins.Backend{"memory/a": memory, "preparing/a": plugintest.NewPreparing(plugintest.MemoryConfig{})},
	}
	first := brokertest.Start(t, cfg)
	task := first.As(t, "/agent/a").Declare(t, "orders-db")
	first.As(t, "/agent/a").Issue(t, task, "orders-db")
	size := first.Ledger.Head().Size
	first.Stop()

	second := brokertest.Start(t, cfg)
	done, err := second.As(t, "/agent/a").Tasks.CompleteTask(t.Context(), &stintv1.CompleteTaskRequest{
		Name: task.GetName(), Wait: wait(30 * time.Second),
	})
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSED || len(memory.Alive()) != 0 {
		t.Errorf("completed %v, %v; alive %v", done, err, memory.Alive())
	}
	if got := second.Ledger.Head().Size; got <= size {
		t.Errorf("the log has %d records after %d", got, size)
	}
}
