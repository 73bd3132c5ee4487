package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// demoLimit bounds the whole story.
const demoLimit = 2 * time.Minute

func demoCommand() *cobra.Command {
	var o devOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Tell the whole story in under a minute, for real, and exit 0 only if every step did what it says",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.noVault && o.needVault {
				return &codeError{exitUsage, errors.New("--vault and --no-vault: only one of them")}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
			defer cancel()
			return demo(ctx, &narrator{out: cmd.OutOrStdout(), json: asJSON}, o)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per step")
	cmd.Flags().BoolVar(&o.noVault, "no-vault", false, "leave Vault out even where there is one")
	cmd.Flags().BoolVar(&o.needVault, "vault", false, "fail where there is no Vault, instead of leaving it out")
	return cmd
}

// step is one line of the story.
type step struct {
	Step    int               `json:"step"`
	Title   string            `json:"title"`
	OK      bool              `json:"ok"`
	Detail  []string          `json:"detail,omitempty"`
	Facts   map[string]string `json:"facts,omitempty"`
	Error   string            `json:"error,omitempty"`
	Seconds float64           `json:"seconds"`
}

// narrator tells steps as they happen.
type narrator struct {
	out  io.Writer
	json bool
	n    int
}

// tell runs one step and says what came of it.
func (n *narrator) tell(ctx context.Context, title string, do func(ctx context.Context, s *step) error) error {
	n.n++
	s := step{Step: n.n, Title: title, Facts: map[string]string{}}
	if !n.json {
		fmt.Fprintf(n.out, "%2d  %s\n", s.Step, title)
	}
	began := time.Now()
	err := do(ctx, &s)
	s.Seconds = time.Since(began).Seconds()
	s.OK = err == nil
	if err != nil {
		s.Error = err.Error()
		err = fmt.Errorf("step %d, %s: %w", s.Step, title, err)
	}
	if n.json {
		return errors.Join(err, json.NewEncoder(n.out).Encode(s))
	}
	for _, line := range s.Detail {
		fmt.Fprintf(n.out, "      %s\n", line)
	}
	if s.Error != "" {
		fmt.Fprintf(n.out, "    FAILED: %s\n", s.Error)
	}
	return err
}

// say adds a line to a step.
func (s *step) say(format string, args ...any) {
	s.Detail = append(s.Detail, fmt.Sprintf(format, args...))
}

// demo runs a development broker in a directory and on ports of its own, and the story in front of it.
func demo(ctx context.Context, n *narrator, o devOptions) (err error) {
	began := time.Now()
	if o.dataDir, err = os.MkdirTemp("", "stint-demo-"); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dataDir)) }()
	if o.grpc, err = freeAddr(ctx); err != nil {
		return err
	}
	if o.http, err = freeAddr(ctx); err != nil {
		return err
	}
	o.logLevel, o.svidTTL = "error", 10*time.Minute
	d, err := openDev(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := d.run(ctx, func(ctx context.Context) error {
		defer stop()
		return tellStory(ctx, n, d)
	}); err != nil {
		return err
	}
	if !n.json {
		fmt.Fprintf(n.out, "\nEvery step did what it says, in %.1f s.\n", time.Since(began).Seconds())
	}
	return nil
}
