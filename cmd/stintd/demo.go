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
	var asJSON, noVault bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Tell the whole story in under a minute, for real, and exit 0 only if every step did what it says",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
			defer cancel()
			return demo(ctx, &narrator{out: cmd.OutOrStdout(), json: asJSON}, noVault)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per step")
	cmd.Flags().BoolVar(&noVault, "no-vault", false, "leave Vault out even where there is one")
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

// demo runs a development broker in a directory of its own, and the story in front of it.
func demo(ctx context.Context, n *narrator, noVault bool) (err error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "stint-demo-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	grpcAddr, err := freeAddr(ctx)
	if err != nil {
		return err
	}
	httpAddr, err := freeAddr(ctx)
	if err != nil {
		return err
	}
	d, err := openDev(ctx, devOptions{
		dataDir: dir, grpc: grpcAddr, http: httpAddr, noVault: noVault, logLevel: "error", svidTTL: 10 * time.Minute,
	})
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
