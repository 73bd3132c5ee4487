package server_test

import (
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Every administrator may look; acting takes the role that the flag names.
func TestReconcileRoles(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	admin, oncall, auditor := h.As(t, "/ops/alice"), h.As(t, "/ops/oncall"), h.As(t, "/audit/eve")
	look, settle := &stintv1.ReconcileRequest{}, &stintv1.ReconcileRequest{Settle: true}
	revoke := &stintv1.ReconcileRequest{RevokeUnknown: true}
	for name, c := range map[string]struct {
		as      *brokertest.Client
		req     *stintv1.ReconcileRequest
		allowed bool
	}{
		"auditor looks": {auditor, look, true}, "auditor settles": {auditor, settle, false}, "auditor revokes": {auditor, revoke, false},
		"operator looks": {oncall, look, true}, "operator settles": {oncall, settle, true}, "operator revokes": {oncall, revoke, false},
		"admin looks": {admin, look, true}, "admin settles": {admin, settle, true}, "admin revokes": {admin, revoke, true},
	} {
		res, err := c.as.Admin.Reconcile(t.Context(), c.req)
		if !c.allowed {
			wantReason(t, err, codes.PermissionDenied, fault.AdminRoleRequired)
			continue
		}
		if err != nil || len(res.GetInventories()) != 2 || res.GetCheckpoint() == "" {
			t.Errorf("%s: %v, %v", name, res, err)
		}
	}
	_, err := admin.Admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{Backend: "vault/nowhere"})
	wantReason(t, err, codes.NotFound, fault.NotFound)
}

func TestReconcileAnswers(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, oncall := h.As(t, "/agent/a"), h.As(t, "/ops/oncall")
	l := agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db").GetLease()
	id, err := lease.ParseID(l.GetName()[len("leases/"):])
	if err != nil {
		t.Fatal(err)
	}
	h.Memory.Drop(id)
	res, err := oncall.Admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{Backend: "memory/a"})
	if err != nil || len(res.GetInventories()) != 1 || len(res.GetInventories()[0].GetDifferences()) != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	d := res.GetInventories()[0].GetDifferences()[0]
	if d.GetKind() != stintv1.DifferenceKind_DIFFERENCE_KIND_GONE || d.GetLease().GetName() != l.GetName() || d.GetPublicRef() != l.GetPublicRef() ||
		d.GetOutcome() != "" || d.GetNotAfter() == nil {
		t.Errorf("%v", d)
	}

	users, err := oncall.Admin.MatchDatabaseUsers(t.Context(), &stintv1.MatchDatabaseUsersRequest{
		Names: []string{l.GetPublicRef(), uuid.NewString()}, ListedAt: timestamppb.Now(),
	})
	if err != nil || users.GetMatched() != 1 || len(users.GetStrays()) != 1 || users.GetStrays()[0].GetLease() != nil ||
		users.GetStrays()[0].GetKind() != stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN {
		t.Errorf("%v, %v", users, err)
	}
	_, err = oncall.Admin.MatchDatabaseUsers(t.Context(), &stintv1.MatchDatabaseUsersRequest{})
	wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
}
