package agenttest

import (
	"context"
	"slices"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// backendName is the one backend that is compared.
const backendName = "vault/prod"

// Stray makes a credential at the backend that the broker has not issued, under the name of a database user.
func (b *Broker) Stray(user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.strays = append(b.strays, user)
}

// StrayUser makes a database user that no lease has.
func (b *Broker) StrayUser(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users = append(b.users, name)
}

// Reconcile reports every stray, and forgets them where it is told to revoke them.
func (s *adminService) Reconcile(ctx context.Context, req *stintv1.ReconcileRequest) (*stintv1.ReconcileResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	inv := &stintv1.Inventory{
		Backend: backendName, Source: "list", Matched: int32(len(s.b.leases)), //nolint:gosec // a test has few
		Gaps: []*stintv1.InventoryGap{{Role: "per-tenant", Problem: "the backend cannot list what was issued by this role", Permanent: true}},
	}
	inv.Held = inv.GetMatched()
	for _, user := range s.b.strays {
		d := &stintv1.Difference{
			Kind: stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN, Role: "orders-db-read", Key: "cluster " + user, PublicRef: user,
		}
		inv.Unknown++
		if !req.GetRevokeUnknown() {
			inv.Strays++
		} else {
			d.Outcome, d.Proof = "revoked", "read_back"
		}
		inv.Held++
		inv.Differences = append(inv.Differences, d)
	}
	if req.GetRevokeUnknown() {
		s.b.strays = nil
	}
	return &stintv1.ReconcileResponse{Inventories: append([]*stintv1.Inventory{inv}, s.b.databaseUsers(req)...)}, nil
}

// databaseUsers are of a database behind the backend, if there are any; nobody drops them.
func (b *Broker) databaseUsers(req *stintv1.ReconcileRequest) []*stintv1.Inventory {
	if len(b.users) == 0 {
		return nil
	}
	inv := &stintv1.Inventory{Backend: backendName + "/orders", Source: "users"}
	for _, user := range b.users {
		d := &stintv1.Difference{Kind: stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN, Key: user, PublicRef: user}
		if req.GetRevokeUnknown() {
			d.Outcome, d.Problem = "failed", "stint drops no users; end it at the database"
		}
		inv.Held++
		inv.Unknown++
		inv.Strays++
		inv.Differences = append(inv.Differences, d)
	}
	return []*stintv1.Inventory{inv}
}

// MatchDatabaseUsers knows the public references of leases.
func (s *adminService) MatchDatabaseUsers(
	ctx context.Context, req *stintv1.MatchDatabaseUsersRequest,
) (*stintv1.MatchDatabaseUsersResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	out := &stintv1.MatchDatabaseUsersResponse{}
	for _, name := range req.GetNames() {
		i := slices.IndexFunc(s.b.leases, func(l *stintv1.Lease) bool { return l.GetPublicRef() == name })
		switch {
		case i < 0:
			out.Strays = append(out.Strays, &stintv1.DatabaseUser{Name: name, Kind: stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN})
		case s.b.leases[i].GetRevokedAt() != nil:
			out.Strays = append(out.Strays, &stintv1.DatabaseUser{
				Name: name, Kind: stintv1.DifferenceKind_DIFFERENCE_KIND_ENDED_ALIVE, Lease: s.b.leases[i],
			})
		default:
			out.Matched++
		}
	}
	return out, nil
}
