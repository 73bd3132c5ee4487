package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// codeError is an error with an exit status of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// Exit statuses: 1 for faults, 2 for usage.
const (
	exitFault = 1
	exitUsage = 2
)

func exitCode(err error) int {
	if c, ok := errors.AsType[*codeError](err); ok {
		return c.code
	}
	return exitFault
}

// newRoot builds the command tree.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "stintd",
		Short:         "Stint hands autonomous agents credentials for one task, and ends them with it",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &codeError{exitUsage, err} })
	root.AddCommand(serveCommand(), checkCommand(), setupCommand(), devCommand(), demoCommand(), backupCommand(), auditCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "stintd %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
