package agenttest

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

type taskService struct {
	stintv1.UnimplementedTaskServiceServer

	b *Broker
}

// roles are those of the fixed profile.
func roles() []*stintv1.AvailableRole {
	brief := &stintv1.Exposure{Max: durationpb.New(0), Reason: "revoked at once"}
	crl := &stintv1.Exposure{Max: durationpb.New(time.Second), UntilExpiry: true, Reason: "CRL every second"}
	hour, quarter := durationpb.New(time.Hour), durationpb.New(15*time.Minute)
	return []*stintv1.AvailableRole{
		{
			Name: "ledger-api", Description: "mTLS client of the ledger service", DefaultTtl: durationpb.New(5 * time.Minute),
			MaxTtl: quarter, Exposure: crl, NeedsCsr: true, Delivery: &stintv1.Delivery{Env: map[string]string{
				"LEDGER_CERT": "{{ .cert_file }}", "LEDGER_KEY": "{{ .key_file }}", "LEDGER_CA": "{{ .ca_file }}",
			}},
		},
		{
			Name: "opaque", Description: "a secret without delivery", DefaultTtl: quarter, MaxTtl: hour, Exposure: brief,
			Parameters: []*stintv1.ParameterInfo{{Name: "schema", Description: "which schema", Pattern: "[a-z]+"}},
		},
		{
			Name: "orders-db-read", Description: "Read-only rows of the orders\x1b[2J database", DefaultTtl: quarter, MaxTtl: hour,
			Exposure: brief, Delivery: &stintv1.Delivery{
				Env:   map[string]string{"PGUSER": "{{ .username }}", "PGPASSWORD": "{{ .password }}", "PGPASSFILE": "{{ .dir }}/pgpass"}, //nolint:gosec // templates
				With:  map[string]string{"PGHOST": "orders.db.example.org"},
				Files: map[string]string{"pgpass": "*:*:*:{{ .username }}:{{ .password }}\n"}, //nolint:gosec // a template
			},
		},
		{Name: "web-client", Description: "a certificate without delivery", DefaultTtl: quarter, MaxTtl: hour, Exposure: crl, NeedsCsr: true},
	}
}

func role(name string) *stintv1.AvailableRole {
	all := roles()
	if i := slices.IndexFunc(all, func(r *stintv1.AvailableRole) bool { return r.GetName() == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func purposes() []string { return []string{"answer-invoice", "reconcile-invoices"} }

func (b *Broker) known(id string) bool { return strings.HasSuffix(id, AgentPath) || id == localCaller }

func (s *taskService) WhoAmI(ctx context.Context, _ *stintv1.WhoAmIRequest) (*stintv1.WhoAmIResponse, error) {
	me := &stintv1.WhoAmIResponse{
		Id: caller(ctx), Method: "x509-svid", SvidExpires: timestamppb.New(time.Now().Add(10 * time.Minute)),
		ServerTime: timestamppb.Now(), ServerVersion: "test", ServerId: s.b.ServerID(),
	}
	switch {
	case me.GetId() == localCaller:
		me.Method, me.SvidExpires, me.AdminRoles = "local", nil, []string{"admin"}
	case s.b.known(me.GetId()):
		me.Profile, me.Purposes, me.Roles = ProfileName, purposes(), roles()
		me.MaxTaskTtl, me.Owner = durationpb.New(MaxTTL), "billing-platform@example.org"
	}
	return me, nil
}

func (s *taskService) ListAvailableRoles(ctx context.Context, _ *stintv1.ListAvailableRolesRequest) (*stintv1.ListAvailableRolesResponse, error) {
	if !s.b.known(caller(ctx)) {
		return &stintv1.ListAvailableRolesResponse{}, nil
	}
	return &stintv1.ListAvailableRolesResponse{Roles: roles()}, nil
}

func (s *taskService) DeclareTask(ctx context.Context, req *stintv1.DeclareTaskRequest) (*stintv1.DeclareTaskResponse, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if again, ok := s.b.requests[req.GetRequestId()].(*stintv1.DeclareTaskResponse); ok {
		return again, nil
	}
	if len(req.GetRequestId()) < 22 {
		return nil, invalid("request_id", "at least 22 characters")
	}
	if err := s.b.decide(caller(ctx), req); err != nil {
		return nil, err
	}
	answer := &stintv1.DeclareTaskResponse{}
	task, err := newTask(caller(ctx), req, answer)
	if err != nil {
		return nil, err
	}
	answer.Task = task
	if req.GetValidateOnly() {
		task.Name, task.ShortName = "", ""
		return answer, nil
	}
	task.AuditIndex, answer.Checkpoint = s.b.log.append(`{"event":"task.declared","task":"` + task.GetName() + `"}`)
	answer.Task = clone(task)
	s.b.tasks[task.GetName()] = task
	s.b.requests[req.GetRequestId()] = answer
	return answer, nil
}

// decide says no as the real policy would.
func (b *Broker) decide(who string, req *stintv1.DeclareTaskRequest) error {
	if !b.known(who) {
		return Refusal(codes.PermissionDenied, "NO_PROFILE", "no profile names "+who, nil)
	}
	meta := map[string]string{"profile": ProfileName, "record": "1290"}
	var outside, allowed []string
	for _, r := range req.GetRoles() {
		if role(r.GetRole()) == nil {
			outside = append(outside, r.GetRole())
		}
	}
	for _, r := range roles() {
		allowed = append(allowed, r.GetName())
	}
	switch {
	case len(outside) > 0:
		return Refusal(codes.PermissionDenied, "ROLE_OUTSIDE_PROFILE", fmt.Sprintf("%s; profile %s allows %s. Nothing was created.",
			strings.Join(outside, ", "), ProfileName, strings.Join(allowed, ", ")), meta)
	case !slices.Contains(purposes(), req.GetPurpose()):
		return Refusal(codes.PermissionDenied, "PURPOSE_OUTSIDE_PROFILE", fmt.Sprintf("%s; profile %s allows %s. Nothing was created.",
			req.GetPurpose(), ProfileName, strings.Join(purposes(), ", ")), meta)
	}
	return nil
}

func newTask(who string, req *stintv1.DeclareTaskRequest, answer *stintv1.DeclareTaskResponse) (*stintv1.Task, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	asked := DefaultTTL
	if req.GetNotAfter() != nil {
		asked = req.GetNotAfter().AsTime().Sub(now)
	}
	granted := min(asked, MaxTTL)
	if granted < asked {
		answer.Clamps = append(answer.Clamps, &stintv1.Clamp{
			Field: "ttl", Requested: durationpb.New(asked.Round(time.Second)), Granted: durationpb.New(granted), LimitedBy: "profile " + ProfileName,
		})
		if req.GetStrict() {
			return nil, Refusal(codes.PermissionDenied, "TTL_TOO_LONG", "the task may last 1h. Nothing was created.", nil)
		}
	}
	hash, err := manifestHash(who, req)
	if err != nil {
		return nil, err
	}
	task := &stintv1.Task{
		Name: "tasks/" + id.String(), ShortName: req.GetPurpose() + "-" + hex.EncodeToString(id[14:]), Agent: who, Profile: ProfileName,
		Purpose: req.GetPurpose(), State: stintv1.TaskState_TASK_STATE_ACTIVE, NotAfter: timestamppb.New(now.Add(granted).Truncate(time.Second)),
		IdleTimeout: req.GetIdleTimeout(), CreateTime: timestamppb.New(now), LastSeen: timestamppb.New(now), Labels: req.GetLabels(),
		Owner: "billing-platform@example.org", Sponsor: "head-of-billing@example.org", PolicySet: "9c2e51d0", Description: req.GetDescription(),
		ManifestSha256: hash, Teardown: &stintv1.TeardownSummary{},
	}
	for _, r := range req.GetRoles() {
		info := role(r.GetRole())
		ttl := info.GetDefaultTtl()
		if r.GetTtl() != nil {
			ttl = r.GetTtl()
		}
		task.Grants = append(task.Grants, &stintv1.Grant{
			Role: r.GetRole(), Ttl: ttl, Parameters: r.GetParameters(), Policies: []string{"profile/" + ProfileName}, Exposure: info.GetExposure(),
		})
	}
	return task, nil
}

func manifestHash(who string, req *stintv1.DeclareTaskRequest) (string, error) {
	if req.GetNotAfter() == nil {
		return "", nil
	}
	m := agent.Manifest{
		Agent: who, Purpose: req.GetPurpose(), Description: req.GetDescription(),
		NotAfter: req.GetNotAfter().AsTime(), RequestID: req.GetRequestId(),
	}
	for _, r := range req.GetRoles() {
		m.Roles = append(m.Roles, agent.ManifestRole{Name: r.GetRole(), Parameters: r.GetParameters(), TTL: r.GetTtl().AsDuration()})
	}
	return m.SHA256()
}

func (s *taskService) GetTask(ctx context.Context, req *stintv1.GetTaskRequest) (*stintv1.Task, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	task, err := s.b.own(ctx, req.GetName())
	return clone(task), err
}

func (s *taskService) ListTasks(ctx context.Context, _ *stintv1.ListTasksRequest) (*stintv1.ListTasksResponse, error) {
	if caller(ctx) == localCaller {
		return nil, noAgent()
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	answer := &stintv1.ListTasksResponse{}
	for _, task := range s.b.sorted() {
		if task.GetAgent() == caller(ctx) {
			answer.Tasks = append(answer.Tasks, clone(task))
		}
	}
	return answer, nil
}

func (s *taskService) WatchTask(req *stintv1.WatchTaskRequest, stream grpc.ServerStreamingServer[stintv1.Task]) error {
	for {
		s.b.mu.Lock()
		task, err := s.b.own(stream.Context(), req.GetName())
		task, changed := clone(task), s.b.changed
		if err == nil {
			err = s.b.suspended(caller(stream.Context()))
		}
		s.b.mu.Unlock()
		if err != nil {
			return err
		}
		if err := stream.Send(task); err != nil || closed(task) {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}

func (s *taskService) KeepAlive(ctx context.Context, req *stintv1.KeepAliveRequest) (*stintv1.KeepAliveResponse, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	task, err := s.b.own(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	task.LastSeen = timestamppb.Now()
	return &stintv1.KeepAliveResponse{State: task.GetState()}, nil
}

func (s *taskService) CompleteTask(ctx context.Context, req *stintv1.CompleteTaskRequest) (*stintv1.CompleteTaskResponse, error) {
	s.b.mu.Lock()
	task, err := s.b.own(ctx, req.GetName())
	if err != nil {
		s.b.mu.Unlock()
		return nil, err
	}
	outcome := req.GetOutcome()
	if outcome == stintv1.CloseReason_CLOSE_REASON_UNSPECIFIED {
		outcome = stintv1.CloseReason_CLOSE_REASON_COMPLETED
	}
	s.b.close(task, outcome)
	s.b.mu.Unlock()
	s.b.await(ctx, req.GetWait().AsDuration(), func() bool { return closed(task) })
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return &stintv1.CompleteTaskResponse{Task: clone(task), Leases: s.b.copyLeases(task.GetName()), Checkpoint: s.b.log.checkpoint()}, nil
}

func clone(task *stintv1.Task) *stintv1.Task {
	if task == nil {
		return nil
	}
	return proto.CloneOf(task)
}
