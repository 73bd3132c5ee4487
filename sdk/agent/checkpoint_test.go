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

// TestVerifyRestoredLog: a client that has seen what a restore lost is told so until it accepts that, and then goes on. What
// the log kept is proven all the same, and a restore excuses nothing else.
func TestVerifyRestoredLog(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	saw, early := connect(t, b, agent.WithLogKey(b.LogKey)), connect(t, b, agent.WithLogKey(b.LogKey))
	declare(t, early, agent.Declaration{})
	kept := b.LogSize()
	for range 3 {
		declare(t, saw, agent.Declaration{})
	}
	newest := saw.Checkpoint()

	b.CutLog(kept) // nobody has confirmed it yet
	if err := saw.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) || errors.Is(err, agent.ErrRestored) {
		t.Errorf("a log that is shorter: %v", err)
	}
	b.RestoreLog(kept)
	declare(t, early, agent.Declaration{})
	if err := early.VerifyLog(t.Context()); err != nil {
		t.Errorf("a client that saw nothing of what was lost: %v", err)
	}
	later := connect(t, b, agent.WithLogKey(b.LogKey), agent.WithCheckpoint(newest))
	for name, client := range map[string]*agent.Client{"the same client": saw, "one that kept its checkpoint": later} {
		for range 2 { // it stays until it is accepted
			err := client.VerifyLog(t.Context())
			if !errors.Is(err, agent.ErrRestored) || errors.Is(err, agent.ErrLog) {
				t.Fatalf("%s: %v", name, err)
			}
			t.Log(err)
		}
		client.AcceptRestore()
		declare(t, client, agent.Declaration{})
		if err := client.VerifyLog(t.Context()); err != nil {
			t.Errorf("%s, after accepting: %v", name, err)
		}
	}
	b.Rewrite(`{"event":"nothing happened"}`) // of what was kept
	declare(t, later, agent.Declaration{})
	if err := later.VerifyLog(t.Context()); !errors.Is(err, agent.ErrLog) {
		t.Errorf("a record rewritten that was kept: %v", err)
	}
}
