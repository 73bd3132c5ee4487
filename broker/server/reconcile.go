package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/reconcile"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// maxDifferences is how many differences of one backend an answer holds, so that it fits what clients receive.
const maxDifferences = 1000

// Reconcile compares what backends hold with the ledger. Whoever may call it may look; acting takes more.
func (s *adminService) Reconcile(ctx context.Context, req *stintv1.ReconcileRequest) (*stintv1.ReconcileResponse, error) {
	caller := callerOf(ctx)
	if req.GetRevokeUnknown() {
		if err := s.needs(ctx, "revoke_unknown", attestor.RoleAdmin); err != nil {
			return nil, err
		}
	}
	if req.GetSettle() {
		if err := s.needs(ctx, "settle", attestor.RoleAdmin, attestor.RoleOperator); err != nil {
			return nil, err
		}
	}
	if req.GetRevokeUnknown() || req.GetSettle() { // looking is never held up; what acts is recorded first
		if err := s.broker().Unheld(); err != nil {
			return nil, err
		}
	}
	found, err := s.server.cfg.Reconciler.Reconcile(ctx, reconcile.Order{
		Backend: req.GetBackend(), RevokeUnknown: req.GetRevokeUnknown(), Settle: req.GetSettle(),
		Actor: actorOf(caller.Identity), Request: caller.Request,
	})
	if err != nil {
		return nil, ledgerFault(err)
	}
	out := &stintv1.ReconcileResponse{Checkpoint: string(s.server.cfg.Ledger.Head().Checkpoint)}
	for _, inv := range found {
		out.Inventories = append(out.Inventories, inventoryOf(inv))
	}
	return out, nil
}

// needs refuses a flag to who holds another administration role than those it takes.
func (s *adminService) needs(ctx context.Context, flag string, roles ...attestor.AdminRole) error {
	caller := callerOf(ctx)
	if slices.Contains(roles, caller.Admin) {
		return nil
	}
	f := fault.New(fault.AdminRoleRequired, flag+" is for the administration roles "+list(roles)+"; "+
		caller.Identity.String()+" is "+string(caller.Admin))
	s.broker().Refused(actorOf(caller.Identity), f.Reason)
	return f
}

// MatchDatabaseUsers says which users of a database are of no open lease.
func (s *adminService) MatchDatabaseUsers(
	ctx context.Context, req *stintv1.MatchDatabaseUsersRequest,
) (*stintv1.MatchDatabaseUsersResponse, error) {
	listed := time.Now()
	if req.GetListedAt() != nil {
		listed = req.GetListedAt().AsTime()
	}
	users, err := s.server.cfg.Reconciler.MatchUsers(ctx, req.GetNames(), listed)
	if err != nil {
		return nil, ledgerFault(err)
	}
	out := &stintv1.MatchDatabaseUsersResponse{Matched: count(users.Matched), InFlight: count(users.InFlight)}
	for _, u := range users.Strays {
		stray := &stintv1.DatabaseUser{Name: u.Name, Kind: differenceKindOf(u.Kind)}
		if u.Row != nil {
			stray.Lease = leaseOf(*u.Row)
		}
		out.Strays = append(out.Strays, stray)
	}
	return out, nil
}

// ledgerFault words what the ledger did not do.
func ledgerFault(err error) error {
	switch {
	case errors.Is(err, ledger.ErrOutcomeUnknown):
		return fault.Wrap(fault.OutcomeUnknown, "it is not known whether everything was recorded; compare again", err).Retry(ledgerRetry)
	case errors.Is(err, ledger.ErrUnavailable), errors.Is(err, ledger.ErrClosed):
		return fault.Wrap(fault.LedgerUnavailable, "the ledger cannot be used now", err).Retry(ledgerRetry)
	}
	return err
}

func inventoryOf(inv reconcile.Inventory) *stintv1.Inventory {
	out := &stintv1.Inventory{
		Backend: inv.Backend, Source: inv.Source, Held: count(inv.Held), Matched: count(inv.Matched), InFlight: count(inv.InFlight),
	}
	all, open := inv.All(), inv.Open()
	out.Unknown, out.EndedAlive, out.Gone, out.Dead = count(all.Unknown), count(all.Ended), count(all.Gone), count(all.Dead)
	out.Strays = count(open.Unknown + open.Ended)
	for _, f := range inv.Findings[:min(len(inv.Findings), maxDifferences)] {
		d := &stintv1.Difference{
			Kind: differenceKindOf(f.Kind), Role: f.Role, Key: f.Key, PublicRef: f.PublicRef, IssuedAt: timeOf(f.IssuedAt),
			NotAfter: timeOf(f.NotAfter), Outcome: string(f.Outcome), Proof: string(f.Proof), Problem: f.Problem,
		}
		if f.Lease != nil {
			d.Lease = leaseOf(*f.Lease)
		}
		out.Differences = append(out.Differences, d)
	}
	for _, g := range inv.Gaps {
		out.Gaps = append(out.Gaps, &stintv1.InventoryGap{Role: g.Role, Problem: g.Problem, Permanent: g.Permanent})
	}
	return out
}

func differenceKindOf(k reconcile.Kind) stintv1.DifferenceKind {
	switch k {
	case reconcile.Unknown:
		return stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN
	case reconcile.Ended:
		return stintv1.DifferenceKind_DIFFERENCE_KIND_ENDED_ALIVE
	case reconcile.Gone:
		return stintv1.DifferenceKind_DIFFERENCE_KIND_GONE
	case reconcile.Dead:
		return stintv1.DifferenceKind_DIFFERENCE_KIND_DEAD
	}
	return stintv1.DifferenceKind_DIFFERENCE_KIND_UNSPECIFIED
}
