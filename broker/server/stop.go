package server

import (
	"context"
	"encoding/base64"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/stop"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Stop is the kill switch.
func (s *adminService) Stop(req *stintv1.StopRequest, stream grpc.ServerStreamingServer[stintv1.StopProgress]) error {
	ctx := stream.Context()
	target, err := s.targetOf(ctx, req)
	if err != nil {
		return err
	}
	order := broker.StopOrder{
		Target: target, Suspend: req.GetSuspend(), Comment: req.GetComment(), Wait: req.GetWait().AsDuration(), DryRun: req.GetDryRun(),
	}
	return s.broker().StopAll(ctx, callerOf(ctx), order, func(p broker.Stopping) error { return stream.Send(progressOf(p)) })
}

// targetOf reads what a request is about. That there is one was checked before.
func (s *adminService) targetOf(ctx context.Context, req *stintv1.StopRequest) (stop.Target, error) {
	switch t := req.GetTarget().(type) {
	case *stintv1.StopRequest_Task:
		ref, err := broker.ParseTaskRef(t.Task)
		if err != nil {
			return stop.Target{}, err
		}
		found, err := s.broker().AnyTask(ctx, ref)
		return stop.Target{Kind: stop.Task, Task: found.ID}, err
	case *stintv1.StopRequest_Agent:
		id, err := s.agentID(t.Agent)
		return stop.Target{Kind: stop.Agent, Name: id}, err
	case *stintv1.StopRequest_Profile:
		return stop.Target{Kind: stop.Profile, Name: t.Profile}, nil
	case *stintv1.StopRequest_Role:
		return stop.Target{Kind: stop.Role, Name: t.Role}, nil
	case *stintv1.StopRequest_Backend:
		return stop.Target{Kind: stop.Backend, Name: t.Backend}, nil
	case *stintv1.StopRequest_All:
		return stop.Target{Kind: stop.All}, nil
	}
	return stop.Target{}, errors.New("a stop request without a target was not refused")
}

// agentID reads the exact SPIFFE ID of an agent. An administrator is none.
func (s *adminService) agentID(text string) (string, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return "", invalid(fault.Field{Name: "agent", Problem: "must be an agent's exact SPIFFE ID: " + err.Error()})
	}
	if role, ok := s.server.cfg.Admins.Of(attestor.Identity{ID: id, Method: attestor.MethodX509}); ok {
		return "", invalid(fault.Field{Name: "agent", Problem: id.String() + " administers (" + string(role) +
			") and is no agent; take the role away in the configuration"})
	}
	return id.String(), nil
}

// ResumeAgent lets a suspended agent call again.
func (s *adminService) ResumeAgent(ctx context.Context, req *stintv1.ResumeAgentRequest) (*stintv1.Agent, error) {
	id, err := s.agentID(req.GetAgent())
	if err != nil {
		return nil, err
	}
	a, err := s.broker().ResumeAgent(ctx, callerOf(ctx), id, req.GetComment())
	if err != nil {
		return nil, err
	}
	return agentOf(a), nil
}

// ListAgents returns a page of the agents whose state somebody has set.
func (s *adminService) ListAgents(ctx context.Context, req *stintv1.ListAgentsRequest) (*stintv1.ListAgentsResponse, error) {
	size := pageSize(req.GetPageSize())
	after, err := base64.RawURLEncoding.Strict().DecodeString(req.GetPageToken())
	if err != nil || base64.RawURLEncoding.EncodeToString(after) != req.GetPageToken() { // it skips line breaks
		return nil, invalid(fault.Field{Name: "page_token", Problem: "must be the next_page_token of an answer"})
	}
	filter := ledger.AgentFilter{After: string(after), Limit: size + 1}
	if want := req.GetState(); want != stintv1.AgentState_AGENT_STATE_UNSPECIFIED {
		filter.State = agentStateFrom(want)
	}
	agents, err := s.broker().Agents(ctx, filter)
	if err != nil {
		return nil, err
	}
	out := &stintv1.ListAgentsResponse{}
	if len(agents) > size {
		agents = agents[:size]
		out.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(agents[size-1].ID))
	}
	for _, a := range agents {
		out.Agents = append(out.Agents, agentOf(a))
	}
	return out, nil
}

func agentOf(a ledger.Agent) *stintv1.Agent {
	return &stintv1.Agent{Id: a.ID, State: agentStateOf(a.State), Since: timeOf(a.Since), By: a.By, AuditIndex: a.Record}
}

func agentStateOf(s ledger.AgentState) stintv1.AgentState {
	switch s {
	case ledger.AgentActive:
		return stintv1.AgentState_AGENT_STATE_ACTIVE
	case ledger.AgentSuspended:
		return stintv1.AgentState_AGENT_STATE_SUSPENDED
	}
	return stintv1.AgentState_AGENT_STATE_UNSPECIFIED
}

// agentStateFrom reads a state to filter by. A state that this version does not know matches nothing.
func agentStateFrom(s stintv1.AgentState) ledger.AgentState {
	for _, known := range []ledger.AgentState{ledger.AgentActive, ledger.AgentSuspended} {
		if agentStateOf(known) == s {
			return known
		}
	}
	return ledger.AgentState(s.String())
}

func progressOf(p broker.Stopping) *stintv1.StopProgress {
	out := &stintv1.StopProgress{
		Tasks: count(p.Tasks), Leases: count(p.Leases), Open: count(p.Open), Stuck: count(p.Stuck), Unbounded: count(p.Unbounded), Unseen: count(p.Unseen),
		ByProof: map[string]int32{}, UsableUntil: timeOf(p.UsableUntil), UncheckedUntil: timeOf(p.UncheckedUntil),
		Chosen: p.Chosen, Done: p.Done, Checkpoint: string(p.Checkpoint),
	}
	for proof, n := range p.ByProof {
		out.ByProof[string(proof)] = count(n)
	}
	if p.Agent != nil {
		out.Agent = agentOf(*p.Agent)
	}
	return out
}
