package agent_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"time"

	"github.com/stint-dev/stint/sdk/agent"
)

func Example() {
	if err := reconcile(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func reconcile(ctx context.Context) error {
	client, err := agent.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	task, err := client.Declare(ctx, agent.Declaration{
		Purpose: "reconcile-invoices",
		Roles:   []agent.Role{{Name: "orders-db-read"}, {Name: "ledger-api"}},
		TTL:     20 * time.Minute,
	})
	if err != nil {
		return err
	}
	defer task.Close(context.WithoutCancel(ctx)) // else its idle timeout ends it

	database, err := task.Issue(ctx, "orders-db-read", agent.IssueOptions{})
	if err != nil {
		return err
	}
	defer database.Wipe()

	ledger, err := task.Certificate(ctx, "ledger-api", agent.IssueOptions{})
	if err != nil {
		return err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetClientCertificate: ledger.GetClientCertificate}
	return work(ctx, database, config)
}

// work stands for what the agent does.
func work(context.Context, *agent.Credential, *tls.Config) error { return nil }
