package cli

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// reconcileTimeout is how long comparing may take where --timeout says nothing: backends are asked one after the other.
const reconcileTimeout = 5 * time.Minute

// errUnconfirmed is returned where something would be revoked that Stint has not issued, and nobody has confirmed it.
var errUnconfirmed = errors.New("--revoke-unknown ends what somebody may be using; nothing was done")

const differenceKind = "DIFFERENCE_KIND_"

// sourceUsers is of an inventory of a database's users, whom Stint does not drop.
const sourceUsers = "users"

// comparing are the flags of stint reconcile.
type comparing struct {
	backend, users     string
	revoke, settle, ok bool
}

func (a *app) reconcile() *cobra.Command {
	var c comparing
	var cmd *cobra.Command
	cmd = &cobra.Command{
		Use: "reconcile", Short: "Compare what backends hold with the ledger, for operators", Args: cobra.NoArgs,
		Long: "Compare what backends hold with the ledger. It says what is alive at a backend and should not be (exit code 9), and what\n" +
			"should be alive and is gone. It changes nothing unless told to.",
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			if err := c.check(isTerminal(a.stdin)); err != nil {
				return err
			}
			limit := a.flags.timeout
			if !cmd.Flags().Changed("timeout") {
				limit = reconcileTimeout
			}
			ctx, cancel := a.bounded(ctx, limit)
			defer cancel()
			if c.users != "" {
				return s.matchUsers(ctx, c.users)
			}
			return s.compareBackends(ctx, c)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&c.backend, "backend", "", "compare only this backend (vault/prod)")
	f.BoolVar(&c.revoke, "revoke-unknown", false, "revoke what is alive at a backend and should not be; asks first")
	f.BoolVar(&c.settle, "settle", false, "hand what is gone to teardown, which proves it")
	f.BoolVar(&c.ok, "yes", false, "do not ask before --revoke-unknown")
	f.StringVar(&c.users, "database-users", "", "compare a list of database users, one a line, from a file or - for standard input")
	return cmd
}

// check refuses what does not go together. Who sits at a terminal is asked later.
func (c comparing) check(terminal bool) error {
	switch {
	case c.users != "" && (c.backend != "" || c.revoke || c.settle):
		return usage("--database-users only compares, and asks no backend: leave the other flags out")
	case c.revoke && !c.ok && !terminal:
		return &failure{
			error: errUnconfirmed, code: codeUsage,
			next: []string{"look at what stint reconcile says", "repeat it with --revoke-unknown --yes"},
		}
	}
	return nil
}

// confirmRevoke shows what would be revoked, and wants the word typed.
func (s session) confirmRevoke(ctx context.Context, c comparing) error {
	preview, err := s.Admin().Reconcile(ctx, &stintv1.ReconcileRequest{Backend: c.backend})
	if err != nil {
		return err
	}
	n := 0
	for _, inv := range preview.GetInventories() {
		if inv.GetSource() != sourceUsers {
			n += int(inv.GetStrays())
		}
	}
	if n == 0 {
		return nil // what comes between now and then is younger than what is revoked
	}
	if err := inventoriesTable(s.app.stderr, preview.GetInventories(), time.Now()); err != nil {
		return err
	}
	s.app.sayf("%s will be revoked, for good.", plural(n, "credential"))
	return confirmed(ctx, s.app.stdin, s.app.stderr, "revoke")
}

func (s session) compareBackends(ctx context.Context, c comparing) error {
	a := s.app
	if c.revoke && !c.ok {
		if err := s.confirmRevoke(ctx, c); err != nil {
			return err
		}
	}
	answer, err := s.Admin().Reconcile(ctx, &stintv1.ReconcileRequest{Backend: c.backend, RevokeUnknown: c.revoke, Settle: c.settle})
	if err != nil {
		return err
	}
	err = a.show(answer, func(w io.Writer) error { return inventoriesTable(w, answer.GetInventories(), time.Now()) })
	if err != nil {
		return err
	}
	code := codeOK
	for _, inv := range answer.GetInventories() {
		for _, gap := range inv.GetGaps() {
			a.sayf("note:   %s not compared: %s", join(inv.GetBackend(), gap.GetRole()), gap.GetProblem())
			if !gap.GetPermanent() && code == codeOK {
				code = codeUnavailable
			}
		}
		if left := int(inv.GetUnknown()+inv.GetEndedAlive()+inv.GetGone()+inv.GetDead()) - len(inv.GetDifferences()); left > 0 {
			a.sayf("note:   %s: %d more differences are not shown", inv.GetBackend(), left)
		}
		if inv.GetStrays() > 0 {
			code = codeStray
		}
	}
	if code != codeOK {
		return exit{code}
	}
	return nil
}

func inventoriesTable(w io.Writer, inventories []*stintv1.Inventory, now time.Time) error {
	sums := render.NewTable("BACKEND", "BY", "HELD", "MATCHED", "IN FLIGHT", "UNKNOWN", "ENDED ALIVE", "GONE")
	differences := render.NewTable("KIND", "BACKEND", "ROLE", "REF", "ISSUED", "ENDS", "TASK", "LEASE", "DONE")
	differ := false
	for _, inv := range inventories {
		by := inv.GetSource()
		if by == "" {
			by = "-"
		}
		for _, d := range inv.GetDifferences() {
			differ = true
			differenceRow(differences, inv.GetBackend(), d, now)
		}
		sums.Row(inv.GetBackend(), by, number(inv.GetHeld()), number(inv.GetMatched()), number(inv.GetInFlight()),
			number(inv.GetUnknown()), number(inv.GetEndedAlive()), number(inv.GetGone()))
	}
	if err := sums.Write(w); err != nil || !differ {
		return err
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	return differences.Write(w)
}

func differenceRow(t *render.Table, backend string, d *stintv1.Difference, now time.Time) {
	done := d.GetOutcome()
	switch {
	case d.GetProof() != "":
		done += ", " + d.GetProof()
	case d.GetProblem() != "":
		done += ": " + d.GetProblem()
	}
	task, lease, role := "-", "-", cmp.Or(d.GetRole(), "-")
	if d.GetLease() != nil {
		task, lease = bareTask(d.GetLease().GetTask()), bareLease(d.GetLease().GetName())
	}
	t.Row(render.Word(d.GetKind(), differenceKind), backend, role, d.GetPublicRef(), render.Clock(d.GetIssuedAt(), now),
		render.Clock(d.GetNotAfter(), now), task, lease, done)
}

func number(n int32) string { return strconv.FormatInt(int64(n), 10) }

// matchUsers compares a list of database users, in parts that fit one request.
func (s session) matchUsers(ctx context.Context, file string) error {
	names, listed, err := s.app.readUsers(file)
	if err != nil {
		return err
	}
	sum := &stintv1.MatchDatabaseUsersResponse{}
	for len(names) > 0 {
		part := names[:min(len(names), maxUsers)]
		names = names[len(part):]
		answer, err := s.Admin().MatchDatabaseUsers(ctx, &stintv1.MatchDatabaseUsersRequest{
			Names: part, ListedAt: timestamppb.New(listed),
		})
		if err != nil {
			return err
		}
		sum.Matched += answer.GetMatched()
		sum.InFlight = max(sum.GetInFlight(), answer.GetInFlight())
		sum.Strays = append(sum.Strays, answer.GetStrays()...)
	}
	if err := s.app.show(sum, func(w io.Writer) error { return usersTable(w, sum) }); err != nil {
		return err
	}
	if sum.GetInFlight() > 0 && len(sum.GetStrays()) > 0 {
		s.app.sayf("note:   %s in flight; list the users again in a minute", plural(int(sum.GetInFlight()), "issue"))
	}
	if len(sum.GetStrays()) > 0 {
		return exit{codeStray}
	}
	return nil
}

func usersTable(w io.Writer, sum *stintv1.MatchDatabaseUsersResponse) error {
	t := render.NewTable("USER", "KIND", "TASK", "LEASE")
	for _, u := range sum.GetStrays() {
		task, lease := "-", "-"
		if u.GetLease() != nil {
			task, lease = bareTask(u.GetLease().GetTask()), bareLease(u.GetLease().GetName())
		}
		t.Row(u.GetName(), render.Word(u.GetKind(), differenceKind), task, lease)
	}
	t.Row(plural(int(sum.GetMatched()), "user") + " of open leases, " + strconv.Itoa(len(sum.GetStrays())) + " of none")
	return t.Write(w)
}
