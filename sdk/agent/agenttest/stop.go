package agenttest

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// suspended refuses a suspended agent. The caller holds the lock.
func (b *Broker) suspended(id string) error {
	if b.agents[id].GetState() != stintv1.AgentState_AGENT_STATE_SUSPENDED {
		return nil
	}
	return Refusal(codes.PermissionDenied, "AGENT_SUSPENDED", id+" is suspended; only an operator resumes it", nil)
}

// setAgent writes the state of an agent. The caller holds the lock.
func (b *Broker) setAgent(id string, state stintv1.AgentState) *stintv1.Agent {
	if b.agents == nil {
		b.agents = map[string]*stintv1.Agent{}
	}
	if b.agents[id].GetState() != state {
		index, _ := b.log.append(`{"event":"agent.changed","agent":"` + id + `"}`)
		b.agents[id] = &stintv1.Agent{Id: id, State: state, Since: timestamppb.Now(), By: "uid:0", AuditIndex: index}
		b.notify()
	}
	return proto.CloneOf(b.agents[id])
}

// Stop closes what is meant, and reports until everything of it has ended or the time is over.
func (s *adminService) Stop(req *stintv1.StopRequest, stream grpc.ServerStreamingServer[stintv1.StopProgress]) error {
	ctx := stream.Context()
	if err := admin(ctx); err != nil {
		return err
	}
	s.b.mu.Lock()
	s.b.calls["Stop"]++
	tasks, leases := s.b.meant(req)
	if len(tasks) == 0 && req.GetProfile()+req.GetTask() != "" {
		s.b.mu.Unlock()
		return notFound("such thing")
	}
	progress := &stintv1.StopProgress{Tasks: int32(len(tasks)), Chosen: true, Checkpoint: s.b.log.checkpoint()} //nolint:gosec // a handful
	if !req.GetDryRun() {
		progress.Agent = s.b.halt(req, tasks, leases)
	}
	s.b.mu.Unlock()
	wait := req.GetWait().AsDuration()
	if req.GetDryRun() {
		wait = 0
	}
	if err := stream.Send(s.b.counted(progress, leases)); err != nil {
		return err
	}
	s.b.await(ctx, wait, func() bool { return s.b.open(leases) == 0 })
	progress.Done = true
	return stream.Send(s.b.counted(progress, leases))
}

// meant returns the open tasks and leases that a request is about. The caller holds the lock.
func (b *Broker) meant(req *stintv1.StopRequest) (tasks []*stintv1.Task, leases []*stintv1.Lease) {
	byLease := req.GetRole() != "" || req.GetBackend() != ""
	for _, task := range b.sorted() {
		names := []string{task.GetAgent(), task.GetProfile(), task.GetName(), "tasks/" + task.GetShortName()}
		named := slices.Contains(names, req.GetAgent()+req.GetProfile()+req.GetTask()) // of which one is set
		if !byLease && !closed(task) && (req.GetAll() || named) {
			tasks = append(tasks, task)
		}
	}
	for _, lease := range b.leases {
		of := slices.ContainsFunc(tasks, func(t *stintv1.Task) bool { return t.GetName() == lease.GetTask() })
		if lease.GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED &&
			(of || byLease && (lease.GetRole() == req.GetRole() || lease.GetBackend() == req.GetBackend())) {
			leases = append(leases, lease)
		}
	}
	return tasks, leases
}

// halt ends what is meant, and suspends the agent where that was asked for. The caller holds the lock.
func (b *Broker) halt(req *stintv1.StopRequest, tasks []*stintv1.Task, leases []*stintv1.Lease) *stintv1.Agent {
	var agent *stintv1.Agent
	why := stintv1.CloseReason_CLOSE_REASON_STOPPED
	if req.GetSuspend() {
		why = stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED
		agent = b.setAgent(req.GetAgent(), stintv1.AgentState_AGENT_STATE_SUSPENDED)
	}
	for _, task := range tasks {
		b.close(task, why)
	}
	if len(tasks) == 0 {
		for _, lease := range leases {
			b.revoke(lease)
		}
		b.notify()
	}
	return agent
}

// open counts the leases that have not ended. The caller holds the lock.
func (b *Broker) open(leases []*stintv1.Lease) int {
	n := 0
	for _, lease := range leases {
		if lease.GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED {
			n++
		}
	}
	return n
}

// counted is a report with how the leases stand now.
func (b *Broker) counted(p *stintv1.StopProgress, leases []*stintv1.Lease) *stintv1.StopProgress {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := proto.CloneOf(p)
	out.ByProof, out.Leases, out.Open = map[string]int32{}, int32(len(leases)), int32(b.open(leases)) //nolint:gosec // a handful
	for _, lease := range leases {
		if lease.GetState() == stintv1.LeaseState_LEASE_STATE_REVOKED {
			out.ByProof[lease.GetProof()]++
		} else {
			out.UsableUntil = lease.GetNotAfter()
		}
	}
	return out
}

func (s *adminService) ResumeAgent(ctx context.Context, req *stintv1.ResumeAgentRequest) (*stintv1.Agent, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.b.agents[req.GetAgent()] == nil {
		return nil, notFound(req.GetAgent())
	}
	return s.b.setAgent(req.GetAgent(), stintv1.AgentState_AGENT_STATE_ACTIVE), nil
}

func (s *adminService) ListAgents(ctx context.Context, req *stintv1.ListAgentsRequest) (*stintv1.ListAgentsResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	answer := &stintv1.ListAgentsResponse{}
	for _, a := range s.b.agents {
		if want := req.GetState(); want == stintv1.AgentState_AGENT_STATE_UNSPECIFIED || a.GetState() == want {
			answer.Agents = append(answer.Agents, proto.CloneOf(a))
		}
	}
	slices.SortFunc(answer.GetAgents(), func(x, y *stintv1.Agent) int { return strings.Compare(x.GetId(), y.GetId()) })
	return answer, nil
}

// Suspend suspends the agent of WorkloadAPI and closes its tasks.
func (b *Broker) Suspend() {
	id := "spiffe://" + TrustDomain + AgentPath
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setAgent(id, stintv1.AgentState_AGENT_STATE_SUSPENDED)
	for _, task := range b.tasks {
		if task.GetAgent() == id {
			b.close(task, stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED)
		}
	}
}
