package server

import (
	"context"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/resource"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// credentialService is stint.v1.CredentialService.
type credentialService struct {
	stintv1.UnimplementedCredentialServiceServer

	server *Server
}

func (s *credentialService) broker() *broker.Broker { return s.server.cfg.Broker }

// IssueCredential issues one credential.
func (s *credentialService) IssueCredential(
	ctx context.Context, req *stintv1.IssueCredentialRequest,
) (*stintv1.IssueCredentialResponse, error) {
	ref, err := broker.ParseTaskRef(req.GetTask())
	if err != nil {
		return nil, err
	}
	issued, err := s.broker().Issue(ctx, callerOf(ctx), broker.IssueRequest{
		Task: ref, Role: req.GetRole(), Params: req.GetParameters(), TTL: req.GetTtl().AsDuration(),
		CSR: req.GetCsr(), RequestID: req.GetRequestId(),
	})
	if err != nil {
		return nil, err
	}
	return answerOf(issued, s.deliver(issued.Lease.Role)), nil
}

// deliver returns how a role's credentials are handed to a command; nothing where the role is gone meanwhile.
func (s *credentialService) deliver(name string) resource.Deliver {
	role, ok := s.broker().Catalog().Engine().Set().Role(name)
	if !ok {
		return resource.Deliver{}
	}
	return role.Deliver
}

// GetLease returns one of the caller's leases, and anybody's to an administrator.
func (s *credentialService) GetLease(ctx context.Context, req *stintv1.GetLeaseRequest) (*stintv1.Lease, error) {
	id, err := leaseID(req.GetName())
	if err != nil {
		return nil, err
	}
	l, err := s.broker().Lease(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return leaseOf(l), nil
}

// ListLeases returns a page of the caller's leases.
func (s *credentialService) ListLeases(ctx context.Context, req *stintv1.ListLeasesRequest) (*stintv1.ListLeasesResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := leaseToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	ref, err := optionalTask(req.GetTask())
	if err != nil {
		return nil, err
	}
	leases, err := s.broker().Leases(ctx, callerOf(ctx), ref, ledger.LeaseFilter{
		States: leaseStatesOf(req.GetStates()), Before: before, Limit: size + 1,
	})
	if err != nil {
		return nil, err
	}
	leases, token := cutPage(leases, size, func(l lease.Lease) [16]byte { return l.ID })
	return &stintv1.ListLeasesResponse{Leases: leasesOf(leases), NextPageToken: token}, nil
}

// RevokeLease ends one credential before its task ends.
func (s *credentialService) RevokeLease(ctx context.Context, req *stintv1.RevokeLeaseRequest) (*stintv1.RevokeLeaseResponse, error) {
	id, err := leaseID(req.GetName())
	if err != nil {
		return nil, err
	}
	l, checkpoint, err := s.broker().RevokeLease(ctx, callerOf(ctx), id, req.GetWait().AsDuration())
	if err != nil {
		return nil, err
	}
	return &stintv1.RevokeLeaseResponse{Lease: leaseOf(l), Checkpoint: string(checkpoint)}, nil
}
