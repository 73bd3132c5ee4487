package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	stopWait        = 30 * time.Second
	longestStopWait = 10 * time.Minute
	disclosed       = "disclosed" // the proof that is no end
)

// stopFlags are those of the kill switch.
type stopFlags struct {
	comment string
	wait    time.Duration
	suspend bool
	yes     bool
	dryRun  bool
}

func (f *stopFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.comment, "comment", "", "why, for the record")
	cmd.Flags().DurationVar(&f.wait, "wait", stopWait, "wait so long for proof that everything has ended, at most 10m; 0 does not wait")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be ended, and change nothing")
}

// stopTarget is what one pull of the switch is about.
type stopTarget struct {
	kind string // "agent"
	name string // as a person writes it and has to type it
	set  func(req *stintv1.StopRequest)
}

func (t stopTarget) String() string {
	if t.kind == allTargets {
		return "everybody's tasks"
	}
	return t.kind + " " + t.name
}

const allTargets = "all"

func (a *app) stop() *cobra.Command {
	cmd := &cobra.Command{
		Use: "stop", Short: "The kill switch: end everything of a task, an agent, a profile, a role, a backend, or everybody, for operators",
		Args: cobra.NoArgs, RunE: needsCommand,
	}
	for _, kind := range []struct {
		use, short string
		set        func(name string) func(*stintv1.StopRequest)
	}{
		{"task TASK", "Close one task", func(name string) func(*stintv1.StopRequest) {
			return func(r *stintv1.StopRequest) { r.Target = &stintv1.StopRequest_Task{Task: taskName(name)} }
		}},
		{"agent SPIFFE-ID", "Close every task of one agent", setAgent},
		{"profile PROFILE", "Close every task that was declared under a profile", func(name string) func(*stintv1.StopRequest) {
			return func(r *stintv1.StopRequest) {
				r.Target = &stintv1.StopRequest_Profile{Profile: bare(name, "profiles/")}
			}
		}},
		{"role ROLE", "End what was issued by a role; tasks stay open", func(name string) func(*stintv1.StopRequest) {
			return func(r *stintv1.StopRequest) { r.Target = &stintv1.StopRequest_Role{Role: bare(name, "roles/")} }
		}},
		{"backend BACKEND", "End what was issued at a backend; tasks stay open", func(name string) func(*stintv1.StopRequest) {
			return func(r *stintv1.StopRequest) { r.Target = &stintv1.StopRequest_Backend{Backend: name} }
		}},
	} {
		cmd.AddCommand(a.stopOne(kind.use, kind.short, kind.set))
	}
	cmd.AddCommand(a.stopEverything())
	return cmd
}

func bare(name, prefix string) string { return strings.TrimPrefix(name, prefix) }

func setAgent(name string) func(*stintv1.StopRequest) {
	return func(r *stintv1.StopRequest) { r.Target = &stintv1.StopRequest_Agent{Agent: name} }
}

func (a *app) stopOne(use, short string, set func(name string) func(*stintv1.StopRequest)) *cobra.Command {
	var f stopFlags
	kind, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd, stopTarget{kind: kind, name: args[0], set: set(args[0])}, f)
		},
	}
	f.add(cmd)
	if kind == "agent" {
		cmd.Flags().BoolVar(&f.suspend, "suspend", false, "also suspend it: every call of it is refused until it is resumed")
	}
	return cmd
}

func (a *app) stopEverything() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use: allTargets, Short: "Close everybody's tasks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.pull(cmd, stopTarget{kind: allTargets, name: allTargets, set: func(r *stintv1.StopRequest) {
				r.Target = &stintv1.StopRequest_All{All: true}
			}}, f)
		},
	}
	f.add(cmd)
	return cmd
}

// pull asks, stops, shows how it goes on, and tells the truth in the end.
func (a *app) pull(cmd *cobra.Command, t stopTarget, f stopFlags) error {
	if f.wait < 0 || f.wait > longestStopWait {
		return usage("--wait is at most %s, not %s", longestStopWait, f.wait)
	}
	ask := !f.yes && !f.dryRun
	if ask && !isTerminal(a.stdin) {
		return usage("standard input is no terminal to confirm on; --yes stops %s without asking", t)
	}
	if ask { // on a connection of its own: who types slowly must not cut the waiting short
		err := a.with(func(ctx context.Context, s session, _ []string) error { return s.confirm(ctx, t, f) })(cmd, nil)
		if err != nil {
			return err
		}
	}
	return a.with(func(ctx context.Context, s session, _ []string) error {
		last, err := s.stopAndFollow(ctx, t, f)
		if last == nil {
			return err
		}
		if shown := a.show(last, func(w io.Writer) error { return stopTable(w, t, f, last, time.Now()) }); err == nil {
			err = shown
		}
		if err != nil {
			return withNotes(err, []string{"the broker goes on with what was chosen; the same command shows how it stands"}, nil)
		}
		return unproven(t, f, last)
	})(cmd, nil)
}

// request is what the broker is told.
func (t stopTarget) request(f stopFlags) *stintv1.StopRequest {
	req := &stintv1.StopRequest{Suspend: f.suspend, Comment: f.comment, Wait: durationpb.New(f.wait), DryRun: f.dryRun}
	t.set(req)
	return req
}

// confirm says what would end, and wants the name typed.
func (s session) confirm(ctx context.Context, t stopTarget, f stopFlags) error {
	dry := f
	dry.dryRun = true
	seen, err := s.receive(ctx, t.request(dry), func(*stintv1.StopProgress) {})
	if err != nil {
		return err
	}
	what := plural(int(seen.GetLeases()), "lease")
	if seen.GetTasks() > 0 {
		what = plural(int(seen.GetTasks()), "task") + " with " + what
	}
	s.app.sayf("%s: %s will be ended, for good.", t, what)
	if f.suspend {
		s.app.sayf("The agent will be suspended: every call of it is refused until stint agent resume.")
	}
	return confirmed(ctx, s.app.stdin, s.app.stderr, t.name)
}

// confirmed wants the name typed, and waits for it until ctx is done.
func confirmed(ctx context.Context, in io.Reader, out io.Writer, name string) error {
	if _, err := fmt.Fprintf(out, "Type %s to go on: ", render.Clean(name)); err != nil {
		return err
	}
	typed := make(chan string, 1)
	go func() { typed <- readLine(in, len(name)+2) }() // ends with the program where nothing is typed
	select {
	case <-ctx.Done():
		return ctx.Err()
	case line := <-typed:
		if strings.TrimSpace(line) != name {
			return &failure{error: errors.New("not confirmed; nothing was done"), code: codeOther}
		}
		return nil
	}
}

// readLine reads a line, and nothing behind it; at most so many bytes.
func readLine(in io.Reader, most int) string {
	var line []byte
	for b := make([]byte, 1); len(line) <= most; {
		n, err := in.Read(b)
		if n > 0 && b[0] == '\n' {
			break
		}
		line = append(line, b[:n]...)
		if err != nil {
			break
		}
	}
	return string(line)
}

// stopAndFollow stops and shows how it goes on. It returns the last that was heard, also with an error.
func (s session) stopAndFollow(ctx context.Context, t stopTarget, f stopFlags) (*stintv1.StopProgress, error) {
	bar := s.app.newBar()
	last, err := s.receive(ctx, t.request(f), bar.show)
	bar.close()
	return last, err
}

// receive calls and reads to the end. It returns the last message, also with an error; nil where there was none.
func (s session) receive(
	ctx context.Context, req *stintv1.StopRequest, each func(*stintv1.StopProgress),
) (last *stintv1.StopProgress, err error) {
	call, cancel := context.WithTimeout(ctx, s.app.flags.timeout+req.GetWait().AsDuration())
	defer cancel()
	stream, err := s.Admin().Stop(call, req)
	for err == nil {
		var p *stintv1.StopProgress
		if p, err = stream.Recv(); err == nil {
			last = p
			each(p)
		}
	}
	if errors.Is(err, io.EOF) && last.GetDone() {
		err = nil
	}
	return last, err
}

// unproven is the error for what is not known to have ended, where that was waited for.
func unproven(t stopTarget, f stopFlags, last *stintv1.StopProgress) error {
	left := int(last.GetOpen() + last.GetByProof()[disclosed] + last.GetUnseen())
	if f.dryRun || f.wait == 0 || left == 0 {
		return nil
	}
	what := plural(left, "lease") + " of " + t.String()
	if n := last.GetByProof()[disclosed]; n > 0 && last.GetOpen()+last.GetUnseen() == 0 {
		return &failure{error: fmt.Errorf("%s cannot be ended by the broker", what), code: codeUnproven, next: []string{"end it at the backend"}}
	}
	return &failure{
		error: fmt.Errorf("%s not proven ended within %s; the broker goes on", what, render.Short(f.wait)), code: codeUnproven,
		next: []string{"the same command again waits on", "stint lease list --stuck"},
	}
}
