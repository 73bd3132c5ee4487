package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/task"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// taskService is stint.v1.TaskService.
type taskService struct {
	stintv1.UnimplementedTaskServiceServer

	server *Server
}

func (s *taskService) broker() *broker.Broker { return s.server.cfg.Broker }

// DeclareTask opens a task.
func (s *taskService) DeclareTask(ctx context.Context, req *stintv1.DeclareTaskRequest) (*stintv1.DeclareTaskResponse, error) {
	declared, err := s.broker().Declare(ctx, callerOf(ctx), declarationOf(req))
	if err != nil {
		return nil, err
	}
	t := s.server.task(declared.Task)
	if req.GetValidateOnly() { // nothing was opened, so nothing has a name
		t.Name, t.ShortName, t.LastSeen = "", "", nil
	}
	return &stintv1.DeclareTaskResponse{
		Task: t, Clamps: clampsOf(declared.Clamps), Checkpoint: string(declared.Checkpoint),
	}, nil
}

// GetTask returns one of the caller's tasks, and anybody's to an administrator.
func (s *taskService) GetTask(ctx context.Context, req *stintv1.GetTaskRequest) (*stintv1.Task, error) {
	ref, err := broker.ParseTaskRef(req.GetName())
	if err != nil {
		return nil, err
	}
	caller := callerOf(ctx)
	var t task.Task
	if caller.Admin != "" {
		t, err = s.broker().AnyTask(ctx, ref)
	} else {
		t, err = s.broker().Task(ctx, caller, ref)
	}
	if err != nil {
		return nil, err
	}
	return s.server.task(t), nil
}

// ListTasks returns a page of the caller's tasks.
func (s *taskService) ListTasks(ctx context.Context, req *stintv1.ListTasksRequest) (*stintv1.ListTasksResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := taskToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	tasks, err := s.broker().Tasks(ctx, callerOf(ctx), ledger.TaskFilter{
		States: taskStatesOf(req.GetStates()), Before: before, Limit: size + 1,
	})
	if err != nil {
		return nil, err
	}
	tasks, token := cutPage(tasks, size, func(t task.Task) [16]byte { return t.ID })
	return &stintv1.ListTasksResponse{Tasks: s.server.tasks(tasks), NextPageToken: token}, nil
}

// WatchTask sends a task now and after every change.
func (s *taskService) WatchTask(req *stintv1.WatchTaskRequest, stream grpc.ServerStreamingServer[stintv1.Task]) error {
	ref, err := broker.ParseTaskRef(req.GetName())
	if err != nil {
		return err
	}
	ctx := stream.Context()
	return s.broker().Watch(ctx, callerOf(ctx), ref, func(t task.Task) error { return stream.Send(s.server.task(t)) })
}

// KeepAlive restarts the idle timeout of a task.
func (s *taskService) KeepAlive(ctx context.Context, req *stintv1.KeepAliveRequest) (*stintv1.KeepAliveResponse, error) {
	ref, err := broker.ParseTaskRef(req.GetName())
	if err != nil {
		return nil, err
	}
	t, idleAt, err := s.broker().KeepAlive(ctx, callerOf(ctx), ref)
	if err != nil {
		return nil, err
	}
	return &stintv1.KeepAliveResponse{State: taskStateOf(t.State), IdleAt: timeOf(idleAt)}, nil
}

// CompleteTask closes a task and everything issued for it.
func (s *taskService) CompleteTask(ctx context.Context, req *stintv1.CompleteTaskRequest) (*stintv1.CompleteTaskResponse, error) {
	ref, err := broker.ParseTaskRef(req.GetName())
	if err != nil {
		return nil, err
	}
	ended, err := s.broker().Complete(ctx, callerOf(ctx), ref, outcomeOf(req.GetOutcome()), req.GetWait().AsDuration())
	if err != nil {
		return nil, err
	}
	return &stintv1.CompleteTaskResponse{
		Task: s.server.task(ended.Task), Leases: leasesOf(ended.Leases), Checkpoint: string(ended.Checkpoint),
	}, nil
}

// ListAvailableRoles returns the roles that the caller may ask for.
func (s *taskService) ListAvailableRoles(
	ctx context.Context, _ *stintv1.ListAvailableRolesRequest,
) (*stintv1.ListAvailableRolesResponse, error) {
	engine := s.broker().Catalog().Engine()
	return &stintv1.ListAvailableRolesResponse{Roles: availableOf(engine.Available(callerOf(ctx).Identity.ID))}, nil
}

// WhoAmI returns how Stint sees the caller.
func (s *taskService) WhoAmI(ctx context.Context, _ *stintv1.WhoAmIRequest) (*stintv1.WhoAmIResponse, error) {
	caller := callerOf(ctx)
	who := whoIs(caller.Identity)
	who.ServerTime, who.ServerVersion, who.ServerId = timestamppb.New(time.Now()), s.server.cfg.Version, s.server.cfg.ServerID
	if caller.Admin != "" {
		who.AdminRoles = []string{string(caller.Admin)}
	}
	if caller.Identity.Method != attestor.MethodLocal {
		addProfile(who, s.broker().Catalog().Engine(), caller.Identity)
	}
	return who, nil
}

// addProfile adds what the agent's profile allows.
func addProfile(who *stintv1.WhoAmIResponse, engine *policy.Engine, id attestor.Identity) {
	p, ok := engine.Profile(id.ID)
	if !ok {
		return
	}
	who.Profile, who.Purposes, who.Owner, who.MaxTaskTtl = p.Name, p.Purposes, p.Owner, durationOf(p.MaxTTL)
	who.Roles = availableOf(engine.Available(id.ID))
}

// task writes a task with what only memory knows of it.
func (s *Server) task(t task.Task) *stintv1.Task {
	out := taskOf(t)
	if t.State == task.Active {
		out.LastSeen = timeOf(s.cfg.Broker.LastSeen(t))
	}
	return out
}

func (s *Server) tasks(tasks []task.Task) []*stintv1.Task {
	out := make([]*stintv1.Task, 0, len(tasks))
	for _, t := range tasks {
		out = append(out, s.task(t))
	}
	return out
}
