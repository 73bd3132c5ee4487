package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Verify the audit log, and make its key"}
	cmd.AddCommand(auditVerifyCommand(), auditKeyCommand())
	return cmd
}

// logCheck is what `stintd audit verify` is told.
type logCheck struct {
	ledger, pubkey, checkpoints string
}

func auditVerifyCommand() *cobra.Command {
	var c logCheck
	cmd := &cobra.Command{
		Use:   "verify --ledger FILE --pubkey KEY",
		Short: "Recompute a whole log from its records, and say which record is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return verifyLedger(cmd.Context(), c, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.ledger, "ledger", "", "the ledger's file, or a backup of it")
	f.StringVar(&c.pubkey, "pubkey", "", "the log's verifier key, or @FILE that holds it")
	f.StringVar(&c.checkpoints, "checkpoints", "", "checkpoints that were shipped away, to detect a rewritten log")
	for _, name := range []string{"ledger", "pubkey"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			cmd.RunE = func(*cobra.Command, []string) error { return err }
		}
	}
	return cmd
}

func verifyLedger(ctx context.Context, c logCheck, out, progress io.Writer) error {
	key := c.pubkey
	if file, ok := strings.CutPrefix(key, "@"); ok {
		raw, err := os.ReadFile(file) //nolint:gosec // the auditor names the file
		if err != nil {
			return fmt.Errorf("read verifier key: %w", err)
		}
		key = string(raw)
	}
	known, err := knownCheckpoints(c.checkpoints)
	if err != nil {
		return err
	}
	store, err := sqlite.OpenReader(ctx, c.ledger)
	if err != nil {
		return err
	}
	var rep audit.LogReport
	err = store.View(ctx, func(r ledger.Reader) error {
		var verr error
		rep, verr = audit.VerifyLog(ctx, r, audit.LogCheck{
			VerifierKey: strings.TrimSpace(key), Known: known, Progress: progressTo(progress),
		})
		return verr
	})
	if err = errors.Join(err, store.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "ok: %d records of %s, as signed; held against %d known checkpoints; %d texts shown, %d erased\n",
		rep.Size, rep.Origin, rep.Known, rep.Texts, rep.Erased)
	for _, r := range rep.Restores {
		if err == nil {
			err = printRestore(out, r)
		}
	}
	return err
}

// printRestore says what was lost, and who took that on.
func printRestore(out io.Writer, r audit.RestoreReport) error {
	lost := "no known checkpoint is of what was lost"
	if r.Lost > 0 {
		lost = fmt.Sprintf("%d known checkpoints are of lost records and prove nothing, up to record %d", r.Lost, r.LostTo-1)
	}
	_, err := fmt.Fprintf(out, "restored: epoch %d goes on from an older copy at record %d, confirmed by %s at %s; %s\n",
		r.Epoch, r.Size, r.Actor.ID, r.ConfirmedAt.UTC().Format(time.RFC3339), lost)
	return err
}

func knownCheckpoints(path string) ([][]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	known, err := audit.ReadCheckpoints(f)
	return known, errors.Join(err, f.Close())
}

// progressTo says how far it is, every two seconds.
func progressTo(w io.Writer) func(done, total int64) {
	last := time.Now()
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= 2*time.Second {
			last = now
			_, _ = fmt.Fprintf(w, "%d of %d records\n", done, total) // progress is a courtesy
		}
	}
}

func auditKeyCommand() *cobra.Command {
	var origin, file string
	cmd := &cobra.Command{
		Use:   "key --origin NAME --file FILE",
		Short: "Make the key that signs checkpoints, or print the public part of one",
		Long: `Make an Ed25519 key for the log NAME (audit.origin in the configuration) in a new file of mode 0600, and print the
verifier key that auditors need (C2SP signed-note). Where the file exists, only print its verifier key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := makeKeys(file, origin)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), k.Text)
			return err
		},
	}
	cmd.Flags().StringVar(&origin, "origin", "", "the log's name")
	cmd.Flags().StringVar(&file, "file", "/etc/stint/audit.key", "the key file")
	if err := cmd.MarkFlagRequired("origin"); err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
	}
	return cmd
}

// openKeys loads the log's key. A key of another log is refused.
func openKeys(path, origin string) (audit.Key, error) {
	k, err := audit.LoadKey(path)
	if errors.Is(err, os.ErrNotExist) {
		return k, fmt.Errorf("%w; make one with: stintd audit key --origin %s --file %s", err, origin, path)
	}
	if err == nil && k.Signer.Name() != origin {
		return k, fmt.Errorf("the key in %s is of the log %q, and audit.origin is %q", path, k.Signer.Name(), origin)
	}
	return k, err
}

// makeKeys loads the log's key, and makes one where there is none.
func makeKeys(path, origin string) (audit.Key, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return audit.CreateKey(path, origin)
	}
	return openKeys(path, origin)
}
