package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/child"
	"github.com/stint-dev/stint/cmd/stint/internal/handover"
	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	killAfter     = 10 * time.Second // from SIGTERM to SIGKILL
	completeFor   = 10 * time.Second // how long to try to tell the broker that the command has ended
	completePause = time.Second
	earlyExpiry   = 5 * time.Second // a credential that ends so much before its task is worth a word
)

func (a *app) run() *cobra.Command {
	f := &declareFlags{}
	var quiet bool
	cmd := &cobra.Command{
		Use:   "run --purpose P --role R… -- CMD [ARG…]",
		Short: "Run a command with credentials that end when it does",
		Long: "Declare a task, get a credential for each role, hand them to a command as the roles say (environment or files), and\n" +
			"complete the task when the command ends. The command has standard input and output, gets the signals, and its exit\n" +
			"code is handed on. When the task ends from outside it gets SIGTERM, 10 s later SIGKILL, and the exit code is 6.\n" +
			"\n" +
			"Credentials are not renewed: --ttl, or the profile's default, is the command's limit. So that each lasts as long,\n" +
			"it is asked for with its role's longest TTL, not the role's default, bounded by --ttl and by the task's deadline.\n" +
			"A service that does not check revocation takes a certificate for so long. --role NAME=TTL asks for less.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := f.declaration()
			if err != nil {
				return err
			}
			if d.Purpose == "" {
				return usage("--purpose is missing; stint whoami lists yours")
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			signals := listen(cancel)
			defer signals.close()
			return a.connect(ctx, func(ctx context.Context, s session) error {
				r := &runner{session: s, declaration: d, args: args, signals: signals, quiet: quiet}
				return r.run(ctx)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.strict, "strict", false, "deny instead of shortening what is longer than allowed")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing but errors")
	cmd.Flags().SetInterspersed(false) // what follows the command is the command's
	return cmd
}

// runner is one `stint run`.
type runner struct {
	session

	declaration agent.Declaration
	args        []string
	signals     *signals
	quiet       bool
}

// run declares, works and completes, on every way out.
func (r *runner) run(ctx context.Context) error {
	if err := r.longest(ctx); err != nil {
		return r.interrupted(err)
	}
	call, cancel := r.app.call(ctx)
	task, err := r.Declare(call, r.declaration)
	cancel()
	if err != nil {
		return r.interrupted(r.explain(ctx, r.declaration, err))
	}
	code, err := r.work(ctx, task)
	r.finish(context.WithoutCancel(ctx), task, outcome(code, err))
	if err != nil {
		return r.interrupted(err)
	}
	if code != codeOK {
		return exit{code}
	}
	return nil
}

// longest asks for the longest TTL of each role that was named without one, bounded by --ttl: nothing renews a credential,
// and it ends with the task in any case.
func (r *runner) longest(ctx context.Context) error {
	for i, role := range r.declaration.Roles {
		if role.TTL != 0 {
			continue
		}
		call, cancel := r.app.call(ctx)
		info, err := r.Role(call, role.Name)
		cancel()
		switch {
		case exitCode(err) == codeNotFound: // the broker says why when the task is declared
		case err != nil:
			return err
		default:
			r.declaration.Roles[i].TTL = bounded(info.GetMaxTtl().AsDuration(), r.declaration.TTL).Truncate(time.Second)
		}
	}
	return nil
}

// bounded returns the longest TTL of a role, or the task's where that is set and shorter.
func bounded(longest, task time.Duration) time.Duration {
	if task > 0 {
		return min(longest, task)
	}
	return longest
}

// work hands over and runs. Its error is about us; the exit code is the command's.
func (r *runner) work(ctx context.Context, task *agent.Task) (code int, err error) {
	folder, err := handover.Open()
	if err != nil {
		return 0, err
	}
	defer func() {
		if closeErr := folder.Close(); closeErr != nil {
			r.app.sayf("note:   %v", closeErr)
		}
	}()
	if !folder.InMemory() {
		r.app.sayf("note:   no tmpfs found: files with credentials are on disk in %s until the command ends", folder.Path())
	}
	env, err := r.issue(ctx, task, folder)
	if err != nil {
		return 0, err
	}
	running, err := child.Start(child.Command{
		Args: r.args, Env: env.List(os.Environ()), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Grace: killAfter,
	})
	if err != nil {
		return 0, err
	}
	r.signals.handOver(running.Forward)
	select {
	case <-running.Done():
		return running.Wait()
	case <-task.Done():
	}
	r.app.sayf("%v; the command gets SIGTERM, and SIGKILL after %s", task.Err(), killAfter)
	running.Stop()
	return 0, task.Err()
}

// issue gets one credential for each role.
func (r *runner) issue(ctx context.Context, task *agent.Task, folder *handover.Folder) (*handover.Environment, error) {
	env := handover.NewEnvironment(folder)
	now := time.Now()
	var got []string
	for _, role := range r.declaration.Roles {
		call, cancel := r.app.call(ctx)
		c, err := task.Issue(call, role.Name, agent.IssueOptions{})
		cancel()
		if err != nil {
			return nil, err
		}
		err = env.Add(role.Name, c)
		c.Wipe()
		if err != nil {
			return nil, err
		}
		got = append(got, role.Name+" until "+render.Clock(c.Lease.GetNotAfter(), now))
		if end := task.Latest().GetNotAfter().AsTime(); end.Sub(c.Expires()) > earlyExpiry {
			r.app.sayf("note:   %s ends in %s, before the task (%s), and is not renewed", role.Name,
				render.Until(c.Lease.GetNotAfter(), now), render.Until(task.Latest().GetNotAfter(), now))
		}
	}
	r.tell("task %s until %s: %s", task.Latest().GetShortName(), render.Clock(task.Latest().GetNotAfter(), now), strings.Join(got, ", "))
	return env, nil
}

// finish completes the task, and says so where that does not work: then its idle timeout does.
func (r *runner) finish(ctx context.Context, task *agent.Task, outcome stintv1.CloseReason) {
	ctx, cancel := context.WithTimeout(ctx, completeFor+defaultWait)
	defer cancel()
	r.signals.forward(func(os.Signal) { cancel() }) // who does not want to wait need not
	task.SetOutcome(outcome)
	stop := r.progress(ctx, task.Name())
	answer, err := complete(ctx, task)
	stop()
	switch {
	case err == nil:
		r.tell("%s", closedLine(answer, time.Now()))
	case suspended(err):
		r.app.sayf("note:   the agent is suspended; the broker ends everything of task %s", task.Latest().GetShortName())
	case ctx.Err() != nil:
		r.app.sayf("note:   teardown of task %s goes on at the broker; stint task get %s", task.Latest().GetShortName(), task.Latest().GetShortName())
	default:
		r.app.sayf("note:   the broker could not be told that the command has ended (%v); the task closes by itself within %s",
			err, agent.DefaultIdleTimeout)
	}
}

// complete tries for a while where the broker does not answer.
func complete(ctx context.Context, task *agent.Task) (*stintv1.CompleteTaskResponse, error) {
	for end := time.Now().Add(completeFor); ; {
		answer, err := task.Complete(ctx, defaultWait)
		if err == nil || exitCode(err) != codeUnavailable || time.Now().After(end) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(completePause):
		}
	}
}

// interrupted makes the exit code where the command was not started.
func (r *runner) interrupted(err error) error {
	err = r.signals.explain(err)
	if e, ok := errors.AsType[*child.StartError](err); ok {
		return &failure{error: err, code: e.Code}
	}
	return err
}

func (r *runner) tell(format string, args ...any) {
	if !r.quiet {
		r.app.say(render.Clean(fmt.Sprintf(format, args...)))
	}
}

// outcome is what the broker is told.
func outcome(code int, err error) stintv1.CloseReason {
	switch {
	case err != nil:
		return stintv1.CloseReason_CLOSE_REASON_CANCELLED
	case code != codeOK:
		return stintv1.CloseReason_CLOSE_REASON_FAILED
	}
	return stintv1.CloseReason_CLOSE_REASON_COMPLETED
}

// suspended says whether the broker refuses every call of this agent, which closed the task.
func suspended(err error) bool {
	e, ok := errors.AsType[*agent.Error](err)
	return ok && e.Reason == stintv1.Reason_REASON_AGENT_SUSPENDED
}
