package agenttest

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

type credentialService struct {
	stintv1.UnimplementedCredentialServiceServer

	b *Broker
}

func (s *credentialService) IssueCredential(ctx context.Context, req *stintv1.IssueCredentialRequest) (*stintv1.IssueCredentialResponse, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	task, err := s.b.own(ctx, req.GetTask())
	if err != nil {
		return nil, err
	}
	if again, ok := s.b.requests[req.GetRequestId()].(*stintv1.IssueCredentialResponse); ok {
		if again.GetCertificate() != nil {
			return again, nil
		}
		return nil, Refusal(codes.AlreadyExists, "ALREADY_ISSUED", "the secret is not kept", map[string]string{"lease": again.GetLease().GetName()})
	}
	if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
		return nil, Refusal(codes.FailedPrecondition, "TASK_CLOSED", "the task is closed; declare a new one", nil)
	}
	i := slices.IndexFunc(task.GetGrants(), func(g *stintv1.Grant) bool { return g.GetRole() == req.GetRole() })
	if i < 0 {
		return nil, Refusal(codes.PermissionDenied, "ROLE_NOT_IN_TASK", req.GetRole()+" was not asked for when the task was declared", nil)
	}
	answer, err := s.b.issue(task, task.GetGrants()[i], req)
	if err != nil {
		return nil, err
	}
	s.b.requests[req.GetRequestId()] = answer
	return answer, nil
}

// issue makes lease and credential. The caller holds the lock.
func (b *Broker) issue(task *stintv1.Task, grant *stintv1.Grant, req *stintv1.IssueCredentialRequest) (*stintv1.IssueCredentialResponse, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	ttl := grant.GetTtl().AsDuration()
	if req.GetTtl() != nil {
		ttl = min(ttl, req.GetTtl().AsDuration())
	}
	end := time.Now().Add(ttl)
	if task.GetNotAfter().AsTime().Before(end) {
		end = task.GetNotAfter().AsTime()
	}
	lease := &stintv1.Lease{
		Name: "leases/" + strings.ToUpper(hex.EncodeToString(id[:])), Task: task.GetName(), Role: req.GetRole(), Backend: "vault/prod",
		State: stintv1.LeaseState_LEASE_STATE_ACTIVE, CreateTime: timestamppb.Now(), NotAfter: timestamppb.New(end),
		PublicRef: "v-task-orders-Qx2", Exposure: grant.GetExposure(), Agent: task.GetAgent(), UsableUntil: timestamppb.New(end),
	}
	info := role(req.GetRole())
	answer := &stintv1.IssueCredentialResponse{Lease: lease, Delivery: info.GetDelivery()}
	if info.GetNeedsCsr() {
		lease.Backend, lease.PublicRef = "stepca/internal", "CN=eu1"
		certificate, err := b.authority.sign(req.GetCsr(), id, task, end)
		if err != nil {
			return nil, Refusal(codes.InvalidArgument, "CSR_INVALID", err.Error(), nil)
		}
		answer.Credential = &stintv1.IssueCredentialResponse_Certificate{Certificate: certificate}
	} else {
		answer.Credential = &stintv1.IssueCredentialResponse_Secret{Secret: &stintv1.SecretCredential{
			Fields: map[string][]byte{"username": []byte("v-token-" + task.GetShortName()), "password": []byte(Password)},
		}}
	}
	b.leases = append(b.leases, lease)
	_, answer.Checkpoint = b.log.append(`{"event":"lease.active","lease":"` + lease.GetName() + `"}`)
	answer.Lease = proto.CloneOf(lease)
	return answer, nil
}

func (b *Broker) lease(ctx context.Context, name string) (*stintv1.Lease, error) {
	want := strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(name, "leases/"), "-", ""))
	for _, lease := range b.leases {
		if strings.TrimPrefix(lease.GetName(), "leases/") == want && (lease.GetAgent() == caller(ctx) || caller(ctx) == localCaller) {
			return lease, nil
		}
	}
	return nil, notFound(name)
}

func (s *credentialService) GetLease(ctx context.Context, req *stintv1.GetLeaseRequest) (*stintv1.Lease, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	lease, err := s.b.lease(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(lease), nil
}

func (s *credentialService) ListLeases(ctx context.Context, req *stintv1.ListLeasesRequest) (*stintv1.ListLeasesResponse, error) {
	if caller(ctx) == localCaller {
		return nil, noAgent()
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	name := ""
	if req.GetTask() != "" {
		task, err := s.b.own(ctx, req.GetTask())
		if err != nil {
			return nil, err
		}
		name = task.GetName()
	}
	return &stintv1.ListLeasesResponse{Leases: s.b.copyLeases(name)}, nil
}

func (s *credentialService) RevokeLease(ctx context.Context, req *stintv1.RevokeLeaseRequest) (*stintv1.RevokeLeaseResponse, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	lease, err := s.b.lease(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	s.b.revoke(lease)
	_, checkpoint := s.b.log.append(`{"event":"lease.revoked","lease":"` + lease.GetName() + `"}`)
	return &stintv1.RevokeLeaseResponse{Lease: proto.CloneOf(lease), Checkpoint: checkpoint}, nil
}

// csrKey checks a request and returns its key.
func csrKey(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}
