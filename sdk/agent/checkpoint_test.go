package agent_test

import (
	"errors"
	"testing"

	"github.com/stint-dev/stint/sdk/agent"
	"github.com/stint-dev/stint/sdk/agent/agenttest"
)

func TestVerifyLog(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b, agent.WithLogKey(b.LogKey))
	task := declare(t, client, agent.Declaration{})
	for range 3 {
		if _, err := task.Issue(t.Context(), "orders-db-read", agent.IssueOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.VerifyLog(t.Context()); err != nil {
		t.Fatalf("an honest log: %v", err)
	}
	kept := client.Checkpoint()
	next := connect(t, b, agent.WithLogKey(b.LogKey), agent.WithCheckpoint(kept))
	declare(t, next, agent.Declaration{})
	if err := next.VerifyLog(t.Context()); err != nil {
		t.Fatalf("an honest log, with a checkpoint of an earlier run: %v", err)
	}

	b.Rewrite(`{"event":"nothing happened"}`)
	if err := next.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) {
		t.Errorf("a log with the same size and other records: %v", err)
	}
	declare(t, client, agent.Declaration{}) // the rewritten log has grown
	if err := client.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) {
		t.Errorf("a log with a rewritten record that has grown: %v", err)
	}
	if err := client.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) {
		t.Errorf("the fault did not stay: %v", err)
	}
}

func TestVerifyLogWithForeignKey(t *testing.T) {
	t.Parallel()
	b, other := agenttest.Start(t, agenttest.Config{}), agenttest.Start(t, agenttest.Config{})
	client := connect(t, b, agent.WithLogKey(other.LogKey))
	if err := client.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) {
		t.Errorf("a log signed by another key: %v", err)
	}
	if err := connect(t, b).VerifyLog(t.Context()); !errors.Is(err, agent.ErrUsage) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := agent.New(t.Context(), agent.WithAddr(b.Addr), agent.WithLogKey("nonsense")); !errors.Is(err, agent.ErrUsage) {
		t.Errorf("a key that is none: %v", err)
	}
}

// TestVerifyLogProvesEveryAnswer shows one client a checkpoint in the middle that belongs to another log.
func TestVerifyLogProvesEveryAnswer(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b, agent.WithLogKey(b.LogKey))
	declare(t, client, agent.Declaration{})
	declare(t, client, agent.Declaration{})
	honest := b.Record(0)
	b.Rewrite(`{"event":"a fork"}`)
	declare(t, client, agent.Declaration{})
	b.Rewrite(honest)
	declare(t, client, agent.Declaration{})
	if err := client.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) {
		t.Errorf("a fork in the middle: %v", err)
	}
}
