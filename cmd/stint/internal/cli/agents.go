package cli

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const agentState = "AGENT_STATE_"

func (a *app) agent() *cobra.Command {
	cmd := &cobra.Command{Use: "agent", Short: "Suspend and resume agents, for operators", Args: cobra.NoArgs, RunE: needsCommand}
	cmd.AddCommand(a.agentSuspend(), a.agentResume(), a.agentList())
	return cmd
}

func (a *app) agentSuspend() *cobra.Command {
	f := stopFlags{suspend: true}
	cmd := &cobra.Command{
		Use: "suspend SPIFFE-ID", Short: "Refuse every call of an agent and end everything of it: stint stop agent --suspend", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd, stopTarget{kind: "agent", name: args[0], set: setAgent(args[0])}, f)
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) agentResume() *cobra.Command {
	var comment string
	cmd := &cobra.Command{
		Use: "resume SPIFFE-ID", Short: "Let a suspended agent call again; what was ended stays ended", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Admin().ResumeAgent(ctx, &stintv1.ResumeAgentRequest{Agent: args[0], Comment: comment})
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error { return agentsTable(w, []*stintv1.Agent{answer}, time.Now()) })
		}),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "why, for the record")
	return cmd
}

func (a *app) agentList() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use: "list", Short: "List the agents that were ever suspended", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			wanted := stintv1.AgentState_AGENT_STATE_UNSPECIFIED
			if state != "" {
				parsed, err := parseEnum[stintv1.AgentState]("--state", agentState, []string{state}, stintv1.AgentState_value)
				if err != nil {
					return err
				}
				wanted = parsed[0]
			}
			agents, err := pages(func(token string) ([]*stintv1.Agent, string, error) {
				call, cancel := a.call(ctx)
				defer cancel()
				answer, err := s.Admin().ListAgents(call, &stintv1.ListAgentsRequest{PageSize: pageSize, PageToken: token, State: wanted})
				return answer.GetAgents(), answer.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return a.show(&stintv1.ListAgentsResponse{Agents: agents}, func(w io.Writer) error { return agentsTable(w, agents, time.Now()) })
		}),
	}
	cmd.Flags().StringVar(&state, "state", "", "only these: active or suspended")
	return cmd
}

func agentsTable(w io.Writer, agents []*stintv1.Agent, now time.Time) error {
	t := render.NewTable("AGENT", "STATE", "SINCE", "BY", "AUDIT")
	for _, a := range agents {
		t.Row(a.GetId(), render.Word(a.GetState(), agentState), render.Clock(a.GetSince(), now), a.GetBy(), strconv.FormatInt(a.GetAuditIndex(), 10))
	}
	return t.Write(w)
}
