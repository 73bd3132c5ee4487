package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func (a *app) lease() *cobra.Command {
	cmd := &cobra.Command{Use: "lease", Short: "Look at and revoke what was issued", Args: cobra.NoArgs, RunE: needsCommand}
	cmd.AddCommand(a.leaseList(), a.leaseGet(), a.leaseRevoke())
	return cmd
}

func (a *app) leaseList() *cobra.Command {
	var task string
	var all, stuck bool
	var states []string
	cmd := &cobra.Command{
		Use: "list", Short: "List your leases, or everybody's", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			wanted, err := parseLeaseStates(states)
			if err != nil {
				return err
			}
			f := leaseFilter{everybody: all || stuck, states: wanted, stuck: stuck}
			if task != "" {
				f.task = taskName(task)
			}
			leases, err := s.listLeases(ctx, f)
			if err != nil {
				return err
			}
			return a.show(&stintv1.ListLeasesResponse{Leases: leases}, func(w io.Writer) error { return leasesTable(w, leases, time.Now()) })
		}),
	}
	cmd.Flags().StringVar(&task, "task", "", "only those of this task")
	cmd.Flags().BoolVar(&all, "all", false, "everybody's; what operators get in any case")
	cmd.Flags().BoolVar(&stuck, "stuck", false, "everybody's whose end is overdue, for operators")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only these: intent, active, revoking, revoked, lapsing, lapsed, disclosed")
	return cmd
}

func leasesTable(w io.Writer, leases []*stintv1.Lease, now time.Time) error {
	t := render.NewTable("LEASE", "ROLE", "BACKEND", "STATE", "EXPIRES", "EXPOSURE", "REF")
	for _, l := range leases {
		word := render.Word(l.GetState(), leaseState)
		if l.GetStuck() {
			word += " STUCK"
		}
		expires := render.Until(l.GetNotAfter(), now)
		if l.GetRevokedAt() != nil {
			expires = "-"
		}
		note := ""
		if until := unchecked(l); until.AsTime().After(now) {
			note = "* without CRL: " + render.Until(until, now)
		}
		t.Row(bareLease(l.GetName()), l.GetRole(), l.GetBackend(), word, expires, exposure(l.GetExposure()), l.GetPublicRef(), note)
	}
	return t.Write(w)
}

// unchecked is until when those who check no revocation accept what was issued; nil where that makes no difference. The
// broker states it with the proof of the end; before, it is the credential's own end.
func unchecked(l *stintv1.Lease) *timestamppb.Timestamp {
	if l.GetUncheckedUntil() == nil && l.GetRevokedAt() == nil && l.GetExposure().GetUntilExpiry() {
		return l.GetNotAfter()
	}
	return l.GetUncheckedUntil()
}

func (a *app) leaseGet() *cobra.Command {
	return &cobra.Command{
		Use: "get LEASE", Short: "Show one lease", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			lease, err := s.Credentials().GetLease(ctx, &stintv1.GetLeaseRequest{Name: leaseName(args[0])})
			if err != nil {
				return err
			}
			return a.show(lease, func(w io.Writer) error { return leaseTable(w, lease, time.Now()) })
		}),
	}
}

func leaseTable(w io.Writer, l *stintv1.Lease, now time.Time) error {
	t := render.NewTable()
	t.Row("Lease", bareLease(l.GetName()))
	t.Row("State", leaseEnd(l, now))
	t.Row("Role", join(l.GetRole(), l.GetBackend(), labelled("ref", l.GetPublicRef())))
	t.Row("Task", bareTask(l.GetTask()))
	t.Row("Agent", l.GetAgent())
	t.Row("Issued", l.GetCreateTime().AsTime().Format(time.RFC3339))
	t.Row("Exposure", join(exposure(l.GetExposure()), l.GetExposure().GetReason()))
	if l.GetUsableUntil() != nil {
		t.Row("Usable", render.Worst(l.GetUsableUntil(), now))
	}
	if detail := endDetail(l, now); detail != "" {
		t.Row("End", detail)
	}
	return t.Write(w)
}

// leaseEnd writes "ACTIVE, ends in 3m42s (10:18:02Z)" or "REVOKED".
func leaseEnd(l *stintv1.Lease, now time.Time) string {
	word := render.Word(l.GetState(), leaseState)
	if l.GetState() == stintv1.LeaseState_LEASE_STATE_ACTIVE {
		word += ", ends in " + render.Until(l.GetNotAfter(), now) + " (" + render.Clock(l.GetNotAfter(), now) + ")"
	}
	return word
}

func (a *app) leaseRevoke() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "revoke LEASE", Short: "End one credential before its task ends", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			if err := checkWait(wait); err != nil {
				return err
			}
			call, cancel := a.bounded(ctx, a.flags.timeout+wait)
			defer cancel()
			answer, err := s.Credentials().RevokeLease(call, &stintv1.RevokeLeaseRequest{
				Name: leaseName(args[0]), Wait: durationpb.New(wait),
			})
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error { return leaseTable(w, answer.GetLease(), time.Now()) })
		}),
	}
	cmd.Flags().DurationVar(&wait, "wait", defaultWait, "wait so long for its end, at most 60s")
	return cmd
}

func (a *app) whois() *cobra.Command {
	return &cobra.Command{
		Use:   "whois LEASE|SERIAL|USER|ACCESSOR|SPIFFE-ID",
		Short: "Find the task behind something that was found somewhere, for operators", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Admin().WhoIs(ctx, &stintv1.WhoIsRequest{Query: args[0]})
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error {
				now := time.Now()
				if err := taskTable(w, answer.GetTask(), nil, now); err != nil || answer.GetLease() == nil {
					return err
				}
				return leaseTable(w, answer.GetLease(), now)
			})
		}),
	}
}
