package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	defaultWait = 30 * time.Second
	longestWait = 60 * time.Second
	rewatch     = time.Second
)

func (a *app) taskComplete() *cobra.Command {
	var outcome string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "complete TASK", Short: "Complete a task and see everything of it end", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			reason, err := parseOutcome(outcome)
			if err != nil {
				return err
			}
			if err = checkWait(wait); err != nil {
				return err
			}
			call, cancel := context.WithTimeout(ctx, a.flags.timeout+wait)
			defer cancel()
			name := taskName(args[0])
			stop := s.progress(ctx, name)
			answer, err := s.Tasks().CompleteTask(call, &stintv1.CompleteTaskRequest{Name: name, Outcome: reason, Wait: durationpb.New(wait)})
			stop()
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error { return a.closedTable(w, answer) })
		}),
	}
	cmd.Flags().StringVar(&outcome, "outcome", "completed", "how it ended: completed, failed or cancelled")
	cmd.Flags().DurationVar(&wait, "wait", defaultWait, "wait so long for teardown, at most 60s")
	return cmd
}

func (a *app) taskStop() *cobra.Command {
	var comment string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "stop TASK", Short: "Stop anybody's task, for operators", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			if err := checkWait(wait); err != nil {
				return err
			}
			call, cancel := context.WithTimeout(ctx, a.flags.timeout+wait)
			defer cancel()
			name := taskName(args[0])
			stop := s.progress(ctx, name)
			answer, err := s.Admin().StopTask(call, &stintv1.StopTaskRequest{Name: name, Comment: comment, Wait: durationpb.New(wait)})
			stop()
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error { return a.closedTable(w, answer) })
		}),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "why, for the record")
	cmd.Flags().DurationVar(&wait, "wait", defaultWait, "wait so long for teardown, at most 60s")
	return cmd
}

func checkWait(wait time.Duration) error {
	if wait < 0 || wait > longestWait {
		return usage("--wait is at most %s, not %s", longestWait, wait)
	}
	return nil
}

// progress says how teardown goes on, once it has taken more than two seconds. The function it returns ends it.
func (s session) progress(ctx context.Context, task string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(done)
		ticker := time.NewTicker(progressAfter)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				s.app.sayf("waiting for teardown, %s%s", render.Short(time.Since(began).Round(time.Second)), s.final(ctx, task))
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// final writes ": 1 of 2 leases final", or nothing if that cannot be had.
func (s session) final(ctx context.Context, name string) string {
	call, cancel := context.WithTimeout(ctx, progressAfter)
	defer cancel()
	task, err := s.Tasks().GetTask(call, &stintv1.GetTaskRequest{Name: name})
	if err != nil {
		return ""
	}
	return ": " + teardown(task)
}

// closing is what the answers of completing and stopping have in common.
type closing interface {
	GetTask() *stintv1.Task
	GetLeases() []*stintv1.Lease
	GetCheckpoint() string
}

func (a *app) closedTable(w io.Writer, answer closing) error {
	now, task := time.Now(), answer.GetTask()
	t := render.NewTable()
	for _, l := range answer.GetLeases() {
		t.Row(l.GetRole(), l.GetBackend(), endState(l, task), endDetail(l, now))
	}
	if err := t.Write(w); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w, render.Clean(closedLine(answer, now))); err != nil {
		return err
	}
	if task.GetState() != stintv1.TaskState_TASK_STATE_CLOSED {
		a.sayf("note:   teardown goes on at the broker; stint task watch %s", task.GetShortName())
	}
	return nil
}

// endState writes "REVOKED in 84 ms".
func endState(l *stintv1.Lease, task *stintv1.Task) string {
	word := render.Word(l.GetState(), leaseState)
	if l.GetRevokedAt() == nil {
		return word
	}
	took := l.GetRevokedAt().AsTime().Sub(task.GetClosingTime().AsTime())
	if took < 0 {
		return word + " before"
	}
	return word + " in " + render.Short(took)
}

// endDetail writes the proof, and until when who checks nothing is fooled; or why there is no end yet.
func endDetail(l *stintv1.Lease, now time.Time) string {
	text := l.GetProofDetail()
	if text == "" {
		text = l.GetProof()
	}
	if text != "" && l.GetRevokedAt() != nil {
		text += ", " + l.GetRevokedAt().AsTime().Format("15:04:05.000Z")
	}
	if until := unchecked(l); text != "" && until.AsTime().After(now) {
		text += "; services that read no CRL accept it until " + render.Clock(until, now)
	}
	if l.GetLastError() != "" && l.GetRevokedAt() == nil {
		text = fmt.Sprintf("attempt %d: %s; again in %s", l.GetAttempts(), l.GetLastError(), render.Until(l.GetNextAttempt(), now))
	}
	if l.GetStuck() {
		text = "STUCK " + text
	}
	return text
}

// closedLine writes "CLOSED (completed) after 12m41s: 2 revoked and read back, 0 disclosed, 0 stuck · audit 1284-1299 · …".
func closedLine(answer closing, now time.Time) string {
	task := answer.GetTask()
	sum := task.GetTeardown()
	ended := append(ends(sum), fmt.Sprintf("%d disclosed", sum.GetByProof()["disclosed"]), fmt.Sprintf("%d stuck", sum.GetStuck()))
	if open := sum.GetLeases() - sum.GetFinal(); open > 0 {
		ended = append(ended, fmt.Sprintf("%d not yet ended, usable %s", open, usable(sum, now)))
	}
	if until := unseen(answer.GetLeases()); until.AsTime().After(now) {
		ended = append(ended, "not seen to end where it is used, usable "+render.Worst(until, now))
	}
	records := "audit " + strconv.FormatInt(task.GetAuditIndex(), 10)
	if size, ok := agent.CheckpointSize(answer.GetCheckpoint()); ok && size-1 > task.GetAuditIndex() {
		records += "-" + strconv.FormatInt(size-1, 10)
	}
	return state(task, now) + ": " + strings.Join(ended, ", ") + " · " + records + " · stint audit receipt " + task.GetShortName()
}

// unseen returns until when, at worst, something could work that is gone at its backend, and that nobody saw end where it is used; nil
// if there is none. What is on a CRL is none of that: its exposure says for how long an older one is believed.
func unseen(leases []*stintv1.Lease) *timestamppb.Timestamp {
	var last *timestamppb.Timestamp
	for _, l := range leases {
		until := l.GetUsableUntil()
		if l.GetState() == stintv1.LeaseState_LEASE_STATE_REVOKED && l.GetProof() != "crl" && l.GetUncheckedUntil() == nil &&
			until.AsTime().After(last.AsTime()) {
			last = until
		}
	}
	return last
}

// ends writes how many leases ended by which kind of proof.
func ends(sum *stintv1.TeardownSummary) []string {
	var out []string
	for _, kind := range [][2]string{
		{"read_back", "revoked and read back"},
		{"crl", "revoked by CRL"},
		{"lapsed", "lapsed"},
		{"swept", "swept"},
		{"lost_at_backend", "lost at the backend"},
		{"not_issued", "not issued"},
	} {
		if n := sum.GetByProof()[kind[0]]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, kind[1]))
		}
	}
	if len(out) == 0 {
		return []string{"0 revoked"}
	}
	return out
}

func (a *app) taskWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch TASK", Short: "Follow a task until it is closed, and keep it alive meanwhile", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			return a.acrossReconnects(ctx, func() error { return s.follow(ctx, taskName(args[0])) })
		}),
	}
}

// acrossReconnects follows a stream until it ends, or ctx is done, or an error says that trying again is no help.
func (a *app) acrossReconnects(ctx context.Context, follow func() error) error {
	for {
		err := follow()
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // an interrupt ends following, and is no failure
		}
		if exitCode(err) != codeUnavailable {
			return err
		}
		a.sayf("note:   %v; trying again", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rewatch):
		}
	}
}

// follow writes a task each time it changes, until it is closed.
func (s session) follow(ctx context.Context, name string) error {
	stream, err := s.Tasks().WatchTask(ctx, &stintv1.WatchTaskRequest{Name: name})
	if err != nil {
		return err
	}
	for {
		task, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.app.watchLine(task, time.Now()); err != nil {
			return err
		}
		if task.GetState() == stintv1.TaskState_TASK_STATE_CLOSED {
			return nil
		}
	}
}

// watchLine writes one line: JSON, or text for people.
func (a *app) watchLine(task *stintv1.Task, now time.Time) error {
	switch format, _ := a.format(); format {
	case render.FormatJSON:
		return render.WriteLine(a.stdout, task)
	case render.FormatYAML:
		if _, err := io.WriteString(a.stdout, "---\n"); err != nil {
			return err
		}
		return render.Write(a.stdout, format, task)
	case render.FormatTable, render.FormatWide:
	}
	line := now.UTC().Format("15:04:05Z") + "  " + task.GetShortName() + "  " + state(task, now)
	if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
		line += "  " + teardown(task)
	}
	_, err := fmt.Fprintln(a.stdout, render.Clean(line))
	return err
}
