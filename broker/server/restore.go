package server

import (
	"context"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// GetRestore says whether the ledger is held.
func (s *adminService) GetRestore(ctx context.Context, _ *stintv1.GetRestoreRequest) (*stintv1.Restore, error) {
	r, err := s.broker().Restore(ctx)
	if err != nil {
		return nil, err
	}
	return restoreOf(r), nil
}

// ConfirmRestore lets a held ledger go on.
func (s *adminService) ConfirmRestore(ctx context.Context, req *stintv1.ConfirmRestoreRequest) (*stintv1.Restore, error) {
	r, err := s.broker().ConfirmRestore(ctx, callerOf(ctx), req.GetSize(), req.GetComment())
	if err != nil {
		return nil, err
	}
	return restoreOf(r), nil
}

func restoreOf(r broker.Restore) *stintv1.Restore {
	out := &stintv1.Restore{Epoch: r.Head.Epoch, Size: r.Head.Size, Checkpoint: string(r.Head.Checkpoint)}
	if r.Held == nil {
		return out
	}
	out.Held, out.Found, out.At, out.Newest = true, string(r.Held.Found), timeOf(r.Held.At), timeOf(r.Newest)
	out.OpenTasks, out.OverdueTasks, out.OpenLeases = count(r.OpenTasks), count(r.OverdueTasks), count(r.OpenLeases)
	if known, err := audit.ReadCheckpoint(r.Held.Known); err == nil {
		out.KnownEpoch, out.KnownSize = known.Epoch(), known.Size
	}
	return out
}
