package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

func backupCommand() *cobra.Command {
	var path, out string
	cmd := &cobra.Command{
		Use:   "backup --config FILE --out FILE",
		Short: "Write a consistent copy of the ledger, also while the broker serves",
		Long: `Write a consistent copy of the ledger to a new file of mode 0600. The copy holds no secret and no key. Back up
the audit key and an embedded CA's key beside it: they are not in the ledger.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path, builtinNames()...)
			if err != nil {
				return err
			}
			if err = backup(cmd.Context(), filepath.Join(cfg.DataDir, sqlite.File), out); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), out)
			return err
		},
	}
	cmd.Flags().StringVar(&path, "config", "/etc/stint/stint.hcl", "configuration file")
	cmd.Flags().StringVar(&out, "out", "", "the new file")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
	}
	return cmd
}

func backup(ctx context.Context, ledgerFile, out string) error {
	store, err := sqlite.OpenReader(ctx, ledgerFile)
	if err != nil {
		return err
	}
	return errors.Join(store.Backup(ctx, out), store.Close())
}
