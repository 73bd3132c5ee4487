package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// confirmWord is what is typed to confirm a restore.
const confirmWord = "restore"

func (a *app) restore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore", Short: "Look at a broker whose ledger is an older copy, and let it go on, for operators", Args: cobra.NoArgs, RunE: needsCommand,
	}
	cmd.AddCommand(a.restoreShow(), a.restoreConfirm())
	return cmd
}

func (a *app) restoreShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Say whether the ledger is held, and what is known of what was lost", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			answer, err := s.getRestore(ctx)
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error { return restoreTable(w, answer, time.Now()) })
		}),
	}
}

func (s session) getRestore(ctx context.Context) (*stintv1.Restore, error) {
	ctx, cancel := s.app.call(ctx)
	defer cancel()
	return s.Admin().GetRestore(ctx, &stintv1.GetRestoreRequest{})
}

func (a *app) restoreConfirm() *cobra.Command {
	var comment string
	var yes bool
	cmd := &cobra.Command{
		Use: "confirm", Short: "Let a held ledger go on: what is due is ended, and issuing begins again", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			if !yes && !isTerminal(a.stdin) {
				return usage("standard input is no terminal to confirm on; --yes confirms without asking")
			}
			seen, err := s.getRestore(ctx)
			if err != nil {
				return err
			}
			if !seen.GetHeld() {
				return &failure{error: errors.New("the ledger is not held; there is nothing to confirm"), code: codeOther}
			}
			if !yes {
				if err = s.confirmRestore(ctx, seen); err != nil {
					return err
				}
			}
			call, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Admin().ConfirmRestore(call, &stintv1.ConfirmRestoreRequest{Size: seen.GetSize(), Comment: comment})
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error { return restoreTable(w, answer, time.Now()) })
		}),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "why, for the record")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// confirmRestore shows what there is, and wants the word typed.
func (s session) confirmRestore(ctx context.Context, seen *stintv1.Restore) error {
	if err := restoreTable(s.app.stderr, seen, time.Now()); err != nil {
		return err
	}
	return confirmed(ctx, s.app.stdin, s.app.stderr, confirmWord)
}

// restoreTable says how the ledger stands, and what to type.
func restoreTable(w io.Writer, r *stintv1.Restore, now time.Time) error {
	t := render.NewTable()
	log := plural(int(r.GetSize()), "record") + ", epoch " + strconv.FormatInt(r.GetEpoch(), 10)
	if !r.GetHeld() {
		t.Row("Ledger", "not held")
		t.Row("Log", log)
		return t.Write(w)
	}
	found := "it is a copy, made " + render.Clock(r.GetAt(), now)
	if r.GetFound() != "copy" {
		found = "it is older than what was exported, found " + render.Clock(r.GetAt(), now)
	}
	t.Row("Ledger", "HELD: nothing is issued, ended or changed")
	t.Row("Because", found)
	t.Row("Log", log+", the newest of "+render.Clock(r.GetNewest(), now))
	lost := "not known; no newer checkpoint was kept elsewhere"
	if r.GetKnownSize() > 0 {
		lost = fmt.Sprintf("what came after, up to record %d of epoch %d at least", r.GetKnownSize()-1, r.GetKnownEpoch())
	}
	t.Row("Lost", lost)
	t.Row("Confirming", fmt.Sprintf("%s, %d past the deadline and ended at once; %s", plural(int(r.GetOpenTasks()), "open task"),
		r.GetOverdueTasks(), plural(int(r.GetOpenLeases()), "open lease")))
	t.Row("Next", "stint reconcile, then stint restore confirm")
	return t.Write(w)
}
