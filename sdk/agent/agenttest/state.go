package agenttest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// find returns a task by ID or short name. The caller holds the lock.
func (b *Broker) find(name string) *stintv1.Task {
	for _, task := range b.tasks {
		if task.GetName() == name || "tasks/"+task.GetShortName() == name {
			return task
		}
	}
	return nil
}

// own is find for the caller of a call.
func (b *Broker) own(ctx context.Context, name string) (*stintv1.Task, error) {
	task := b.find(name)
	if task == nil || (task.GetAgent() != caller(ctx) && caller(ctx) != localCaller) {
		return nil, notFound(name)
	}
	return task, nil
}

// sorted returns all tasks, newest first.
func (b *Broker) sorted() []*stintv1.Task {
	return slices.SortedFunc(maps.Values(b.tasks), func(x, y *stintv1.Task) int { return strings.Compare(y.GetName(), x.GetName()) })
}

func (b *Broker) newest() *stintv1.Task {
	all := b.sorted()
	if len(all) == 0 {
		return nil
	}
	return clone(all[0])
}

// close begins the end of a task, and ends it unless teardown is held. The caller holds the lock.
func (b *Broker) close(task *stintv1.Task, why stintv1.CloseReason) {
	if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
		return
	}
	task.State, task.CloseReason, task.ClosingTime = stintv1.TaskState_TASK_STATE_CLOSING, why, timestamppb.Now()
	for _, lease := range b.leases {
		if lease.GetTask() == task.GetName() && lease.GetState() == stintv1.LeaseState_LEASE_STATE_ACTIVE {
			lease.State = stintv1.LeaseState_LEASE_STATE_REVOKING
			if b.hold {
				lease.Attempts, lease.LastError, lease.NextAttempt = 3, "vault/prod is sealed", timestamppb.New(time.Now().Add(time.Minute))
				task.Teardown.UsableUntil = lease.GetNotAfter()
			}
		}
	}
	task.Teardown.Leases = int32(len(b.copyLeases(task.GetName()))) //nolint:gosec // a handful
	if !b.hold {
		b.finish(task)
	}
	b.notify()
}

// finish ends every lease of a task, and the task.
func (b *Broker) finish(task *stintv1.Task) {
	task.Teardown.ByProof, task.Teardown.UsableUntil = map[string]int32{}, timestamppb.Now()
	for _, lease := range b.leases {
		if lease.GetTask() == task.GetName() {
			b.revoke(lease)
			task.Teardown.Final++
			task.Teardown.ByProof[lease.GetProof()]++
		}
	}
	task.State, task.ClosedTime = stintv1.TaskState_TASK_STATE_CLOSED, timestamppb.New(time.Now())
	b.log.append(`{"event":"task.closed","task":"` + task.GetName() + `"}`)
}

// revoke ends a lease that is not final.
func (b *Broker) revoke(lease *stintv1.Lease) {
	if lease.GetState() == stintv1.LeaseState_LEASE_STATE_REVOKED {
		return
	}
	lease.State, lease.RevokedAt = stintv1.LeaseState_LEASE_STATE_REVOKED, timestamppb.Now()
	lease.UsableUntil = lease.GetRevokedAt()
	lease.Proof, lease.ProofDetail = "read_back", "Vault: invalid lease; token gone"
	if lease.GetExposure().GetUntilExpiry() {
		lease.UncheckedUntil, lease.Proof, lease.ProofDetail = lease.GetNotAfter(), "crl", "CRL 418"
	}
	b.authority.revoke(lease)
}

// copyLeases returns copies of the leases of a task, or of all, newest first.
func (b *Broker) copyLeases(task string) []*stintv1.Lease {
	var out []*stintv1.Lease
	for _, lease := range slices.Backward(b.leases) {
		if task == "" || lease.GetTask() == task {
			out = append(out, proto.CloneOf(lease))
		}
	}
	return out
}
