package agenttest

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// HoldLedger makes the ledger one that was restored and is not confirmed. Only GetRestore and ConfirmRestore heed it.
func (b *Broker) HoldLedger() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unconfirmed = true
}

// GetRestore says whether the ledger is held.
func (s *adminService) GetRestore(ctx context.Context, _ *stintv1.GetRestoreRequest) (*stintv1.Restore, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.b.restore(), nil
}

// restore is how the ledger stands. The caller holds mu.
func (b *Broker) restore() *stintv1.Restore {
	r := &stintv1.Restore{Held: b.unconfirmed, Epoch: 1, Size: b.log.size()}
	if b.unconfirmed {
		r.Found, r.At, r.KnownEpoch, r.KnownSize = "copy", timestamppb.Now(), 1, r.GetSize()+7
		r.OpenTasks, r.OverdueTasks, r.OpenLeases = 2, 1, 3
	} else if b.confirmed {
		r.Epoch = 2
	}
	return r
}

// ConfirmRestore lets the ledger go on.
func (s *adminService) ConfirmRestore(ctx context.Context, req *stintv1.ConfirmRestoreRequest) (*stintv1.Restore, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if !s.b.unconfirmed || req.GetSize() != s.b.log.size() {
		return nil, status.Error(codes.InvalidArgument, "there is nothing to confirm")
	}
	s.b.unconfirmed, s.b.confirmed = false, true
	return s.b.restore(), nil
}
