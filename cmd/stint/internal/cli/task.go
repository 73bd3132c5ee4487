package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

func (a *app) task() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Declare, look at and end tasks", Args: cobra.NoArgs, RunE: needsCommand}
	cmd.AddCommand(a.taskDeclare(), a.taskGet(), a.taskList(), a.taskWatch(), a.taskComplete(), a.taskStop())
	return cmd
}

// declareFlags are those of a declaration.
type declareFlags struct {
	purpose, description, from string
	roles, params, labels      []string
	ttl, idle                  time.Duration
	strict, dryRun             bool
}

func (f *declareFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.purpose, "purpose", "", "what the task is for, a short token")
	flags.StringArrayVar(&f.roles, "role", nil, "a role to ask for, with a TTL for its credentials if wanted: NAME[=TTL]; repeat for more")
	flags.StringArrayVar(&f.params, "param", nil, "a parameter of a role: ROLE.NAME=VALUE; repeat for more")
	flags.DurationVar(&f.ttl, "ttl", 0, "how long the task may last (default: the profile's)")
	flags.StringVar(&f.description, "description", "", "for people")
	flags.StringArrayVar(&f.labels, "label", nil, "for your own bookkeeping: NAME=VALUE; repeat for more")
}

func (f *declareFlags) declaration() (agent.Declaration, error) {
	roles, err := parseRoles(f.roles, f.params)
	if err != nil {
		return agent.Declaration{}, err
	}
	labels, err := parsePairs("label", f.labels)
	if err != nil {
		return agent.Declaration{}, err
	}
	if f.ttl < 0 {
		return agent.Declaration{}, usage("--ttl must be positive")
	}
	return agent.Declaration{
		Purpose: f.purpose, Description: f.description, Roles: roles, TTL: f.ttl, IdleTimeout: f.idle, Labels: labels,
		Strict: f.strict, ValidateOnly: f.dryRun,
	}, nil
}

func (a *app) taskDeclare() *cobra.Command {
	f := &declareFlags{}
	cmd := &cobra.Command{
		Use: "declare --purpose P --role R…", Short: "Declare a task", Args: cobra.NoArgs,
		Long: "Declare a task. Nothing keeps it alive after this command: with an idle timeout it closes by itself unless it is\n" +
			"used or watched. `stint run` declares, keeps alive and completes in one.",
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			d, err := f.complete(ctx, s)
			if err != nil {
				return err
			}
			call, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Open(call, d)
			if err != nil {
				return s.explain(ctx, d, err)
			}
			a.sayClamps(answer.GetClamps())
			return a.show(answer, func(w io.Writer) error { return a.declaredTable(w, answer) })
		}),
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&f.idle, "idle-timeout", 0, "close the task when nothing was heard for so long (default: the profile's)")
	cmd.Flags().BoolVar(&f.strict, "strict", false, "deny instead of shortening what is longer than allowed")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "decide and answer, but open nothing")
	cmd.Flags().StringVar(&f.from, "from", "", "take what no flag says from an earlier task: purpose, roles with parameters and TTLs, length, labels")
	return cmd
}

// complete fills in what --from says and the flags don't.
func (f *declareFlags) complete(ctx context.Context, s session) (agent.Declaration, error) {
	d, err := f.declaration()
	if err != nil {
		return d, err
	}
	if f.from == "" {
		if d.Purpose == "" {
			return d, usage("--purpose is missing; stint whoami lists yours")
		}
		return d, nil
	}
	ctx, cancel := s.app.call(ctx)
	defer cancel()
	old, err := s.Tasks().GetTask(ctx, &stintv1.GetTaskRequest{Name: taskName(f.from)})
	if err != nil {
		return d, err
	}
	return again(d, old), nil
}

// again fills in what an earlier task says and the declaration doesn't.
func again(d agent.Declaration, old *stintv1.Task) agent.Declaration {
	d.Purpose = cmp.Or(d.Purpose, old.GetPurpose())
	d.Description = cmp.Or(d.Description, old.GetDescription())
	d.IdleTimeout = cmp.Or(d.IdleTimeout, old.GetIdleTimeout().AsDuration())
	lasted := old.GetNotAfter().AsTime().Sub(old.GetCreateTime().AsTime())
	d.TTL = cmp.Or(d.TTL, lasted.Round(time.Second)) // deadlines are whole seconds, beginnings are not
	if d.Labels == nil {
		d.Labels = old.GetLabels()
	}
	if len(d.Roles) == 0 {
		for _, g := range old.GetGrants() {
			d.Roles = append(d.Roles, agent.Role{Name: g.GetRole(), Parameters: g.GetParameters(), TTL: g.GetTtl().AsDuration()})
		}
	}
	return d
}

func (a *app) declaredTable(w io.Writer, answer *stintv1.DeclareTaskResponse) error {
	now, task := time.Now(), answer.GetTask()
	if task.GetName() == "" {
		_, err := fmt.Fprintf(w, "would be allowed until %s; nothing was created\n", render.Clock(task.GetNotAfter(), now))
		return err
	}
	if idle := task.GetIdleTimeout(); idle != nil {
		a.sayf("note:   closes when nothing was heard for %s: use it, or keep it with stint task watch %s", render.Duration(idle), task.GetShortName())
	}
	return taskTable(w, task, nil, now)
}

func (a *app) sayClamps(clamps []*stintv1.Clamp) {
	for _, c := range clamps {
		field := c.GetField()
		if field == "not_after" { // what the SDK makes of --ttl
			field = "ttl"
		}
		a.sayf("note:   %s %s became %s (%s)", field, asked(c.GetRequested().AsDuration()), render.Duration(c.GetGranted()), c.GetLimitedBy())
	}
}

// asked writes what somebody asked for, without the part of a second that a deadline in whole seconds lost on the way.
func asked(d time.Duration) string {
	if whole := d.Round(time.Minute); (whole - d).Abs() <= time.Second {
		d = whole
	}
	return render.Short(d)
}

// explain adds to a denial what the profile would have allowed.
func (s session) explain(ctx context.Context, d agent.Declaration, err error) error {
	if exitCode(err) != codeDenied {
		return err
	}
	ctx, cancel := s.app.call(ctx)
	defer cancel()
	me, whoErr := s.WhoAmI(ctx)
	if whoErr != nil || me.GetProfile() == "" {
		return err
	}
	var notes, next []string
	if most := me.GetMaxTaskTtl().AsDuration(); most > 0 && d.TTL > most {
		notes = append(notes, fmt.Sprintf("ttl %s would become %s (profile %s)", render.Short(d.TTL), render.Short(most), me.GetProfile()))
	}
	if me.GetOwner() != "" {
		next = append(next, "ask the owner, "+me.GetOwner())
	}
	return withNotes(err, notes, next)
}

func (a *app) taskGet() *cobra.Command {
	return &cobra.Command{
		Use: "get TASK", Short: "Show one task", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			task, err := s.Tasks().GetTask(ctx, &stintv1.GetTaskRequest{Name: taskName(args[0])})
			if err != nil {
				return err
			}
			leases, err := s.listLeases(ctx, leaseFilter{task: task.GetName()})
			if err != nil {
				return err
			}
			return a.show(task, func(w io.Writer) error { return taskTable(w, task, leases, time.Now()) })
		}),
	}
}

func (a *app) taskList() *cobra.Command {
	var all bool
	var states []string
	var who string
	cmd := &cobra.Command{
		Use: "list", Short: "List your tasks, or everybody's", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			wanted, err := parseStates(states)
			if err != nil {
				return err
			}
			tasks, err := s.listTasks(ctx, taskFilter{everybody: all || who != "", states: wanted, agent: who})
			if err != nil {
				return err
			}
			return a.show(&stintv1.ListTasksResponse{Tasks: tasks}, func(w io.Writer) error { return tasksTable(w, tasks, time.Now()) })
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "everybody's; what operators get in any case")
	cmd.Flags().StringVar(&who, "agent", "", "only this agent's, for operators")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only these: active, closing, closed")
	return cmd
}
