package agent_test

import (
	"testing"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
	"github.com/stint-dev/stint/sdk/agent/agenttest"
)

// The task of a suspended agent is over, though the broker no longer answers a call about it.
func TestSuspensionEndsTask(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b)
	task, err := client.Declare(t.Context(), agent.Declaration{Purpose: "reconcile-invoices", Roles: []agent.Role{{Name: "orders-db-read"}}})
	if err != nil {
		t.Fatal(err)
	}
	b.Suspend()
	wait(t, "the end", task.Done())
	e := reason(t, task.Err(), stintv1.Reason_REASON_TASK_CLOSED)
	if e.Metadata["close_reason"] != "AGENT_SUSPENDED" {
		t.Errorf("metadata %v", e.Metadata)
	}
	_, err = client.WhoAmI(t.Context())
	reason(t, err, stintv1.Reason_REASON_AGENT_SUSPENDED)
	reason(t, task.Close(t.Context()), stintv1.Reason_REASON_AGENT_SUSPENDED) // what there was of it ends all the same
}
