package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

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
	usage(root)
	return root
}

// usage makes wrong arguments of a command and those below it an error of usage. A command that only groups others prints
// its help, and refuses what it does not know with what may have been meant.
func usage(cmd *cobra.Command) {
	check := cmd.Args
	if cmd.HasSubCommands() {
		check = knownSubcommand
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := cmd.ValidateRequiredFlags()
		if err == nil && check != nil {
			err = check(cmd, args)
		}
		if err != nil {
			return &codeError{exitUsage, fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())}
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		usage(sub)
	}
}

// knownSubcommand refuses any argument: what names a subcommand never gets here.
func knownSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := ""
	if meant := cmd.SuggestionsFor(args[0]); len(meant) > 0 {
		hint = "; did you mean " + strings.Join(meant, " or ") + "?"
	}
	return fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
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
