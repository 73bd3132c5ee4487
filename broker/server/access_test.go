package server_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/stint-dev/stint/broker/brokertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// matrix says who gets past the door: a for agents with an X.509-SVID, j for agents with a JWT-SVID, A for admin, O for
// operator, U for auditor, L for the admin socket. It is written apart from the table that it tests.
const matrix = `
TaskService DeclareTask a j
TaskService GetTask a j A O U L
TaskService ListTasks a j
TaskService WatchTask a j
TaskService KeepAlive a j
TaskService CompleteTask a j
TaskService ListAvailableRoles a j
TaskService WhoAmI a j A O U L
CredentialService IssueCredential a j
CredentialService GetLease a j A O U L
CredentialService ListLeases a j
CredentialService RevokeLease a j A O L
AdminService Apply A L
AdminService GetResource A O U L
AdminService ListResources A O U L
AdminService DeleteResource A L
AdminService ListAllTasks A O U L
AdminService ListAllLeases A O U L
AdminService StopTask A O L
AdminService Stop A O L
AdminService ResumeAgent A O L
AdminService ListAgents A O U L
AdminService WhoIs A O U L
AdminService Reconcile A O U L
AdminService MatchDatabaseUsers A O U L
AdminService GetRestore A O U L
AdminService ConfirmRestore A L
AuditService ListRecords A U L
AuditService StreamRecords A U L
AuditService GetCheckpoint a A O U L
AuditService GetInclusionProof A U L
AuditService GetConsistencyProof a A O U L
AuditService GetReceipt a A U L
`

// allowed parses the matrix: method → callers.
func allowed() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(strings.TrimSpace(matrix)) {
		f := strings.Fields(line)
		out["/stint.v1."+f[0]+"/"+f[1]] = strings.Join(f[2:], "")
	}
	return out
}

// attempt calls a method with an empty request: who gets past the door is refused for its fields, or answered.
func attempt(t *testing.T, c *brokertest.Client, m protoreflect.MethodDescriptor, full string) error {
	t.Helper()
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return c.Conn.Invoke(t.Context(), full, proto.Message(in), proto.Message(out))
	}
	stream, err := c.Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, full)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(proto.Message(in)); err != nil && !errors.Is(err, io.EOF) { // a refusal may come first
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(proto.Message(out))
}

func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	callers := map[string]*brokertest.Client{
		"a": h.As(t, "/agent/a"), "j": h.WithToken(t, h.Token(t, "/agent/a")), "A": h.As(t, "/ops/alice"),
		"O": h.As(t, "/ops/oncall"), "U": h.As(t, "/audit/siem"), "L": h.Local(t),
		"admin by JWT": h.WithToken(t, h.Token(t, "/ops/alice")),
	}
	may := allowed()
	for _, file := range []protoreflect.FileDescriptor{
		stintv1.File_stint_v1_task_proto, stintv1.File_stint_v1_credential_proto, stintv1.File_stint_v1_admin_proto,
		stintv1.File_stint_v1_audit_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				full := "/" + string(service.FullName()) + "/" + string(m.Name())
				list, ok := may[full]
				if !ok {
					t.Errorf("the matrix lacks %s", full)
				}
				for who, client := range callers {
					err := attempt(t, client, m, full)
					refused := status.Code(err) == codes.PermissionDenied
					if who == "admin by JWT" {
						who = "j" // no more than any other
					}
					if want := !strings.Contains(list, who); refused != want {
						t.Errorf("%s called by %q: %v; refused %v, want %v", full, who, err, refused, want)
					}
					if refused && detail[errdetails.ErrorInfo](err) == nil {
						t.Errorf("%s called by %q: no reason in %v", full, who, err)
					}
				}
			}
		}
	}
}

func TestHealthNeedsNoIdentity(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	for name, client := range map[string]*brokertest.Client{
		"token": h.WithToken(t, ""), "mtls": h.As(t, "/nobody/special"), "local": h.Local(t),
	} {
		got, err := grpc_health_v1.NewHealthClient(client.Conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil || got.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	_, err := grpc_health_v1.NewHealthClient(h.WithToken(t, "garbage").Conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("with bad evidence: %v", err)
	}
}

func TestReflectionOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	for asked, want := range map[bool]codes.Code{false: codes.Unimplemented, true: codes.OK} {
		h := brokertest.Start(t, brokertest.Config{Reflect: asked})
		stream, err := grpc_reflection_v1.NewServerReflectionClient(h.As(t, "/agent/a").Conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
		}); err != nil && !errors.Is(err, io.EOF) { // the answer may come before the question
			t.Fatal(err)
		}
		if _, err = stream.Recv(); status.Code(err) != want {
			t.Errorf("asked for %v: %v", asked, err)
		}
	}
}
