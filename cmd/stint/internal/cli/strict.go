package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

const (
	helpFlag = " --help"
	nearby   = 2 // a name that differs by so many letters may be what was meant
)

// strict makes every unknown command, argument and flag an error that says what to type. Left to itself cobra shows help
// instead for some, and exits 0.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &failure{error: err, code: codeUsage, next: []string{cmd.CommandPath() + helpFlag}}
	})
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" {
			cmd.Run, cmd.RunE = nil, help
		}
		strictGroup(cmd)
	}
	root.Args = knownCommand
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// strictGroup does so for a command that only has others below it.
func strictGroup(cmd *cobra.Command) {
	if !cmd.HasSubCommands() {
		return
	}
	cmd.Args = knownCommand
	if !cmd.Runnable() {
		cmd.RunE = needsCommand
	}
	for _, child := range cmd.Commands() {
		strictGroup(child)
	}
}

// knownCommand refuses arguments of a command that only has others below it: they are commands that there are not.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = nearby
	var next []string
	for _, name := range cmd.SuggestionsFor(args[0]) {
		next = append(next, fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), name))
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	return &failure{error: err, code: codeUsage, next: append(next, cmd.CommandPath()+helpFlag)}
}

// needsCommand is what a command does that only has others below it.
func needsCommand(cmd *cobra.Command, _ []string) error {
	return &failure{
		error: errors.New(cmd.CommandPath() + " needs a command"), code: codeUsage, next: []string{cmd.CommandPath() + helpFlag},
	}
}

// help shows the help of a command.
func help(cmd *cobra.Command, path []string) error {
	found, rest, err := cmd.Root().Find(path)
	if err != nil {
		return &failure{error: err, code: codeUsage, next: []string{cmd.Root().CommandPath() + helpFlag}}
	}
	if found.HasSubCommands() {
		if err = knownCommand(found, rest); err != nil {
			return err
		}
	}
	found.InitDefaultHelpFlag() // shown like the others
	return found.Help()
}
