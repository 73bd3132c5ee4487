package server

import (
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func taskStateOf(s task.State) stintv1.TaskState {
	switch s {
	case task.Active:
		return stintv1.TaskState_TASK_STATE_ACTIVE
	case task.Closing:
		return stintv1.TaskState_TASK_STATE_CLOSING
	case task.Closed:
		return stintv1.TaskState_TASK_STATE_CLOSED
	}
	return stintv1.TaskState_TASK_STATE_UNSPECIFIED
}

// taskStatesOf reads states to filter by. A state that this version does not know matches nothing.
func taskStatesOf(states []stintv1.TaskState) []task.State {
	known := map[stintv1.TaskState]task.State{}
	for _, s := range []task.State{task.Active, task.Closing, task.Closed} {
		known[taskStateOf(s)] = s
	}
	var out []task.State
	for _, s := range states {
		out = append(out, known[s])
	}
	return out
}

func leaseStateOf(s lease.State) stintv1.LeaseState {
	switch s {
	case lease.Intent:
		return stintv1.LeaseState_LEASE_STATE_INTENT
	case lease.Active:
		return stintv1.LeaseState_LEASE_STATE_ACTIVE
	case lease.Revoking:
		return stintv1.LeaseState_LEASE_STATE_REVOKING
	case lease.Revoked:
		return stintv1.LeaseState_LEASE_STATE_REVOKED
	case lease.Lapsing:
		return stintv1.LeaseState_LEASE_STATE_LAPSING
	case lease.Lapsed:
		return stintv1.LeaseState_LEASE_STATE_LAPSED
	case lease.Disclosed:
		return stintv1.LeaseState_LEASE_STATE_DISCLOSED
	}
	return stintv1.LeaseState_LEASE_STATE_UNSPECIFIED
}

// leaseStatesOf reads states to filter by. A state that this version does not know matches nothing.
func leaseStatesOf(states []stintv1.LeaseState) []lease.State {
	known := map[stintv1.LeaseState]lease.State{}
	for _, s := range []lease.State{
		lease.Intent, lease.Active, lease.Revoking, lease.Revoked, lease.Lapsing, lease.Lapsed, lease.Disclosed,
	} {
		known[leaseStateOf(s)] = s
	}
	var out []lease.State
	for _, s := range states {
		out = append(out, known[s])
	}
	return out
}

func closeReasonOf(r task.CloseReason) stintv1.CloseReason {
	switch r {
	case task.Completed:
		return stintv1.CloseReason_CLOSE_REASON_COMPLETED
	case task.Failed:
		return stintv1.CloseReason_CLOSE_REASON_FAILED
	case task.Cancelled:
		return stintv1.CloseReason_CLOSE_REASON_CANCELLED
	case task.Expired:
		return stintv1.CloseReason_CLOSE_REASON_EXPIRED
	case task.Abandoned:
		return stintv1.CloseReason_CLOSE_REASON_ABANDONED
	case task.Stopped:
		return stintv1.CloseReason_CLOSE_REASON_STOPPED
	case task.AgentSuspended:
		return stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED
	}
	return stintv1.CloseReason_CLOSE_REASON_UNSPECIFIED
}

// outcomeOf reads how an agent says that its task ended. What it may not say was refused before.
func outcomeOf(r stintv1.CloseReason) task.CloseReason {
	switch r { //nolint:exhaustive // the others are not an agent's to say
	case stintv1.CloseReason_CLOSE_REASON_FAILED:
		return task.Failed
	case stintv1.CloseReason_CLOSE_REASON_CANCELLED:
		return task.Cancelled
	default:
		return task.Completed
	}
}

func kindOf(k resource.Kind) stintv1.ResourceKind {
	switch k {
	case resource.KindRole:
		return stintv1.ResourceKind_RESOURCE_KIND_ROLE
	case resource.KindProfile:
		return stintv1.ResourceKind_RESOURCE_KIND_PROFILE
	case resource.KindPolicy:
		return stintv1.ResourceKind_RESOURCE_KIND_POLICY
	}
	return stintv1.ResourceKind_RESOURCE_KIND_UNSPECIFIED
}
