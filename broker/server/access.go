package server

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// rule says who may call a method. The zero rule is for nobody.
type rule struct {
	// agents are the methods of attestation by which callers without an administration role may call. What an agent may
	// do to which task is for the broker to say.
	agents []attestor.Method
	// admins are the administration roles that may.
	admins []attestor.AdminRole
	// open methods may also be called without an identity.
	open bool
	// ends marks methods that end something, or keep it from ending: they are never slowed down.
	ends bool
	// writes marks methods that change the ledger: they are refused while the broker is held.
	writes bool
}

// accessTable is the one table of who may call what. Holders of an administration role are never agents.
func accessTable() map[string]rule {
	var (
		svid   = []attestor.Method{attestor.MethodX509, attestor.MethodJWT}
		x509   = []attestor.Method{attestor.MethodX509}
		all    = attestor.AdminRoles()
		apply  = []attestor.AdminRole{attestor.RoleAdmin}
		stop   = []attestor.AdminRole{attestor.RoleAdmin, attestor.RoleOperator}
		audits = []attestor.AdminRole{attestor.RoleAdmin, attestor.RoleAuditor}
	)
	return map[string]rule{
		stintv1.TaskService_DeclareTask_FullMethodName:        {agents: svid, writes: true},
		stintv1.TaskService_GetTask_FullMethodName:            {agents: svid, admins: all},
		stintv1.TaskService_ListTasks_FullMethodName:          {agents: svid},
		stintv1.TaskService_WatchTask_FullMethodName:          {agents: svid},
		stintv1.TaskService_KeepAlive_FullMethodName:          {agents: svid, ends: true},
		stintv1.TaskService_CompleteTask_FullMethodName:       {agents: svid, ends: true, writes: true},
		stintv1.TaskService_ListAvailableRoles_FullMethodName: {agents: svid},
		stintv1.TaskService_WhoAmI_FullMethodName:             {agents: svid, admins: all},

		stintv1.CredentialService_IssueCredential_FullMethodName: {agents: svid, writes: true},
		stintv1.CredentialService_GetLease_FullMethodName:        {agents: svid, admins: all},
		stintv1.CredentialService_ListLeases_FullMethodName:      {agents: svid},
		stintv1.CredentialService_RevokeLease_FullMethodName:     {agents: svid, admins: stop, ends: true, writes: true},

		stintv1.AdminService_Apply_FullMethodName:          {admins: apply, writes: true},
		stintv1.AdminService_GetResource_FullMethodName:    {admins: all},
		stintv1.AdminService_ListResources_FullMethodName:  {admins: all},
		stintv1.AdminService_DeleteResource_FullMethodName: {admins: apply, ends: true, writes: true},
		stintv1.AdminService_ListAllTasks_FullMethodName:   {admins: all},
		stintv1.AdminService_ListAllLeases_FullMethodName:  {admins: all},
		stintv1.AdminService_StopTask_FullMethodName:       {admins: stop, ends: true, writes: true},
		stintv1.AdminService_Stop_FullMethodName:           {admins: stop, ends: true, writes: true},
		stintv1.AdminService_ResumeAgent_FullMethodName:    {admins: stop, writes: true},
		stintv1.AdminService_ListAgents_FullMethodName:     {admins: all},
		stintv1.AdminService_WhoIs_FullMethodName:          {admins: all},

		// What acts takes more than to be let in here; see Reconcile.
		stintv1.AdminService_Reconcile_FullMethodName:          {admins: all},
		stintv1.AdminService_MatchDatabaseUsers_FullMethodName: {admins: all},

		stintv1.AdminService_GetRestore_FullMethodName:     {admins: all},
		stintv1.AdminService_ConfirmRestore_FullMethodName: {admins: apply, ends: true},

		stintv1.AuditService_ListRecords_FullMethodName:         {admins: audits},
		stintv1.AuditService_StreamRecords_FullMethodName:       {admins: audits},
		stintv1.AuditService_GetCheckpoint_FullMethodName:       {agents: x509, admins: all},
		stintv1.AuditService_GetInclusionProof_FullMethodName:   {admins: audits},
		stintv1.AuditService_GetConsistencyProof_FullMethodName: {agents: x509, admins: all},
		stintv1.AuditService_GetReceipt_FullMethodName:          {agents: x509, admins: audits},

		grpc_health_v1.Health_Check_FullMethodName: {open: true, agents: svid, admins: all},
		grpc_health_v1.Health_List_FullMethodName:  {open: true, agents: svid, admins: all},
		grpc_health_v1.Health_Watch_FullMethodName: {open: true, agents: svid, admins: all},

		grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName:      {agents: svid, admins: all},
		grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: {agents: svid, admins: all},
	}
}

// authorise holds the caller against the table, and agents against their state. Open methods are for suspended agents too.
func (s *Server) authorise(ctx context.Context, c *call, next func(context.Context) error) error {
	refusal := s.refused(c)
	if refusal != nil {
		s.cfg.Broker.Refused(actorOf(c.caller.Identity), refusal.Reason)
		return refusal
	}
	return next(ctx)
}

// refused says why a caller may not call a method; nil where it may.
func (s *Server) refused(c *call) *fault.Error {
	if refusal := s.barred(c); refusal != nil || !c.rule.writes {
		return refusal
	}
	if err := s.cfg.Broker.Unheld(); err != nil {
		return fault.As(err)
	}
	return nil
}

// barred says what of a caller stands against its calling a method; nil where nothing does.
func (s *Server) barred(c *call) *fault.Error {
	id := c.caller.Identity
	switch {
	case id.IsZero() && c.rule.open:
		return nil
	case c.caller.Admin != "" && slices.Contains(c.rule.admins, c.caller.Admin):
		return nil
	case c.caller.Admin != "" || !slices.Contains(c.rule.agents, id.Method):
		return forbidden(c)
	case c.rule.open:
		return nil
	}
	if err := s.cfg.Broker.Admits(c.caller); err != nil {
		return fault.As(err)
	}
	return nil
}

// forbidden says why a caller may not call a method.
func forbidden(c *call) *fault.Error {
	id, held := c.caller.Identity, c.caller.Admin
	switch {
	case held != "" && len(c.rule.admins) == 0 && len(c.rule.agents) > 0:
		return fault.New(fault.NoProfile, fmt.Sprintf("%s administers (%s) and is no agent; call with an agent's SVID", id, held))
	case held != "":
		return fault.New(fault.AdminRoleRequired, fmt.Sprintf("this is for the administration roles %s; %s is %s", list(c.rule.admins), id, held))
	case id.Method == attestor.MethodJWT:
		return fault.New(fault.AdminRoleRequired, "a JWT-SVID is never accepted for this; call over mTLS with an X.509-SVID")
	}
	return fault.New(fault.AdminRoleRequired, fmt.Sprintf("this is for the administration roles %s; %s has none", list(c.rule.admins), id))
}

// list writes roles for people: "admin, operator".
func list(roles []attestor.AdminRole) string {
	names := make([]string, 0, len(roles))
	for _, r := range roles {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// actorOf is how records name an identity.
func actorOf(id attestor.Identity) audit.Actor {
	a := audit.Actor{ID: id.String(), Method: string(id.Method)}
	if id.Method == attestor.MethodLocal {
		uid := id.Local.UID
		a.UID = &uid
	}
	return a
}
