package server

import (
	"regexp"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	"github.com/stint-dev/stint/attestor"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Every method of every service that can be served stands in the table, and nothing else does.
func TestTableKnowsEveryMethod(t *testing.T) {
	t.Parallel()
	g := grpc.NewServer()
	s := &Server{}
	stintv1.RegisterTaskServiceServer(g, &taskService{server: s})
	stintv1.RegisterCredentialServiceServer(g, &credentialService{server: s})
	stintv1.RegisterAdminServiceServer(g, &adminService{server: s})
	stintv1.RegisterAuditServiceServer(g, &auditService{server: s})
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)

	table := accessTable()
	served := map[string]bool{grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: true}
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			served[full] = true
			r, ok := table[full]
			if !ok || (len(r.agents) == 0 && len(r.admins) == 0) {
				t.Errorf("nobody may call %s", full)
			}
		}
	}
	files := stintv1.File_stint_v1_task_proto.Services().Len() + stintv1.File_stint_v1_credential_proto.Services().Len() +
		stintv1.File_stint_v1_admin_proto.Services().Len() + stintv1.File_stint_v1_audit_proto.Services().Len()
	if files != 4 {
		t.Errorf("the API has %d services, four are served", files)
	}
	for method, r := range table {
		if !served[method] {
			t.Errorf("the table has %s, which is not served", method)
		}
		for _, m := range r.agents {
			if m == attestor.MethodLocal {
				t.Errorf("%s: a local peer is no agent", method)
			}
		}
	}
}

// What is not held up while a restore waits for its confirmation only looks, is held up where it acts (Reconcile), or is the
// confirmation.
func TestWhatWritesIsHeldUp(t *testing.T) {
	t.Parallel()
	looks := regexp.MustCompile(`/(Get|List|Stream|Watch|WhoIs|WhoAmI|Match|Check|KeepAlive|Reconcile|ConfirmRestore|ServerReflectionInfo)`)
	for method, r := range accessTable() {
		if r.writes == looks.MatchString(method) {
			t.Errorf("%s: writes is %v", method, r.writes)
		}
	}
}

func TestUnknownMethodIsNobodys(t *testing.T) {
	t.Parallel()
	if r := accessTable()["/stint.v1.TaskService/Later"]; r.open || r.agents != nil || r.admins != nil {
		t.Errorf("rule %v", r)
	}
}
