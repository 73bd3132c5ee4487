package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// mostSteps is more than there are.
const mostSteps = 250

// refusedRole is one that Vault does not let issue.
const refusedRole = pkiRole

// everyCall is an installation with a killer between stintd and its backend.
type everyCall struct {
	*crash

	k     *killer
	roles []string
	open  []string // tasks that were declared
}

// TestKilledAtEveryCallOfVault kills stintd at every call to Vault about a credential, once before Vault gets it and once when
// it has answered: of issuing, of what was refused, of revoking, and of sweeping what a kill before left. After each it starts
// again on the same ledger and gets another task, until one comes to its end and nothing is open. Then Vault and PostgreSQL
// are asked: nothing that was issued is alive, whether its agent ever heard of it or not, and the ledger knows it all.
func TestKilledAtEveryCallOfVault(t *testing.T) {
	t.Parallel()
	c := &everyCall{crash: &crash{tally: newTally()}, roles: []string{dbRole, otpRole, kvRole, refusedRole}}
	server := servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: crashHorizon})
	c.pg = servertest.StartPostgres(t)
	c.vault = vaultFor(t, server, c.pg)
	c.vault.KV(t, "a-partners-key")
	c.vault.Policy(t, "stint-internal-cert", `path "pki/issue/other" { capabilities = ["update"] }`)
	if _, err := c.vault.Root.Logical().WriteWithContext(t.Context(), "sys/mounts/ssh/tune", map[string]any{"default_lease_ttl": "15m"}); err != nil {
		t.Fatal(err)
	}
	auth, _ := tokenAuth(t, c.vault)
	k, front := beforeVault(t, server)
	c.run(t, k, vaultBackend(front, auth, `  max_request_duration = "`+crashHorizon.String()+`"`))
	c.killedAt(t, "auth/token/create/stint", "database/creds/stint-orders-ro", "ssh/creds/stint-otp", "kv/data/partner",
		"pki/issue/stint-internal", "sys/leases/renew", "sys/leases/lookup", "lookup, sys/leases/revoke",
		"sys/leases/revoke, sys/leases/revoke", "auth/token/revoke-accessor", "auth/token/lookup-accessor", "sys/leases/tidy")

	all := c.checkEnds(t)
	c.checkVault(t, all)
	if leases := c.vault.Leases(t, "ssh/creds/stint-otp"); len(leases) != 0 {
		t.Errorf("Vault has one-time passwords left: %v", leases)
	}
	c.checkEmptyTokens(t, all)
}

// TestKilledAtEveryCallOfStepCA does the same with step-ca, whose own books say what was signed and what was revoked.
func TestKilledAtEveryCallOfStepCA(t *testing.T) {
	t.Parallel()
	c := &everyCall{crash: &crash{tally: newTally()}, roles: []string{remoteRole}}
	c.ca = servertest.StartStepCA(t, servertest.StepCAOptions{Database: "bbolt"})
	c.caData = onlyFile(t, filepath.Join(filepath.Dir(t.TempDir()), "*", "db.bbolt"))
	k, front := beforeCA(t, c.ca)
	c.run(t, k, remoteCA(t, front))
	c.killedAt(t, "/1.0/sign", "/1.0/revoke", "/1.0/crl")
	c.checkStepCA(t, c.checkEnds(t))
}

// run lets stintd live until it is not killed any more, and then stops it. Nothing ends by its own clock meanwhile.
func (c *everyCall) run(t *testing.T, k *killer, backend string) {
	t.Helper()
	c.k = k
	c.site = newSite(t, "", backend, catalog(limits{dbTTL: "{default: 20m, max: 1h}", ttl: "{default: 20m, max: 30m}"}, c.roles...))
	began := time.Now()
	for c.live(t) {
		if len(k.steps) > mostSteps {
			t.Fatalf("killed at %d steps, and there is no end:\n%s", len(k.steps), strings.Join(k.steps, "\n"))
		}
	}
	t.Logf("killed at %d steps within %s:\n%s", len(k.steps), time.Since(began).Round(time.Second), strings.Join(k.steps, "\n"))
	k.current().d.stop(t)
}

// live starts stintd and lets it work until it is killed. It returns false when it was not, and nothing is left to do.
func (c *everyCall) live(t *testing.T) (killed bool) {
	t.Helper()
	l := c.k.begin()
	d := c.start(t)
	c.k.arm(l, d)
	err := c.work(t)
	if !c.k.killed(l) {
		if err != nil {
			t.Fatalf("nobody killed stintd, and it says: %v\n%s", err, tail(d.log(t)))
		}
		return false
	}
	<-d.exited
	return true
}

// work stops the tasks of before, gives stintd one more from its declaration to its end, and waits until all have ended.
func (c *everyCall) work(t *testing.T) error {
	t.Helper()
	admin, client := c.admin(t), c.agent(t, agentPath)
	defer func() { _, _ = admin.Close(), client.Close() }() // or they would call the next one
	for ; len(c.open) > 0; c.open = c.open[1:] {
		if _, err := admin.Admin().StopTask(t.Context(), &stintv1.StopTaskRequest{Name: c.open[0]}); err != nil {
			return fmt.Errorf("stop %s: %w", c.open[0], err)
		}
	}
	w, err := client.Declare(t.Context(), declaration(30*time.Minute, c.roles...))
	if err != nil {
		return fmt.Errorf("declare: %w", err)
	}
	c.open = append(c.open, w.Name())
	for _, role := range c.roles {
		if err = c.issue(t, w, role); err != nil {
			return fmt.Errorf("issue %s: %w", role, err)
		}
	}
	answer, err := w.Complete(t.Context(), time.Minute)
	if err != nil {
		return fmt.Errorf("complete: %w", err)
	}
	if state := answer.GetTask().GetState(); state != stintv1.TaskState_TASK_STATE_CLOSED {
		return fmt.Errorf("complete: %s: %w", state, c.unfinished(t))
	}
	c.note(func() { c.checkpoints = append(c.checkpoints, client.Checkpoint()) })
	c.open = nil
	return c.ended(t, admin)
}

// issue asks for a credential; one is refused.
func (c *everyCall) issue(t *testing.T, w *agent.Task, role string) error {
	t.Helper()
	credential, err := w.Issue(t.Context(), role, agent.IssueOptions{})
	if role == refusedRole && agent.ReasonOf(err) == stintv1.Reason_REASON_BACKEND_MISCONFIGURED {
		return nil
	}
	if err == nil {
		c.note(func() { c.issued[credential.Lease.GetName()] = credential; c.byRole[role]++ })
	}
	return err
}

// ended waits until no task is open.
func (c *everyCall) ended(t *testing.T, admin *agent.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), closeWait)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := admin.Admin().ListAllTasks(t.Context(), &stintv1.ListAllTasksRequest{
			States: []stintv1.TaskState{stintv1.TaskState_TASK_STATE_ACTIVE, stintv1.TaskState_TASK_STATE_CLOSING},
		})
		if err != nil || len(answer.GetTasks()) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return c.unfinished(t)
		case <-tick.C:
		}
	}
}

// killedAt expects calls that end so to be among those at which stintd was killed.
func (c *everyCall) killedAt(t *testing.T, calls ...string) {
	t.Helper()
	for _, call := range calls {
		for _, when := range []string{" → server", " → answer"} {
			if !slices.ContainsFunc(c.k.steps, func(step string) bool { return strings.HasSuffix(step, call+when) }) {
				t.Errorf("stintd was never killed at %s%s", call, when)
			}
		}
	}
}

// checkEnds sees that everything acknowledged is in the ledger, that everything there has ended, and that the log verifies.
func (c *everyCall) checkEnds(t *testing.T) records {
	t.Helper()
	all := c.checkLedger(t)
	for _, w := range all.tasks {
		if w.State != task.Closed {
			t.Errorf("task %s is %s", w.ShortName, w.State)
		}
	}
	c.verifyLog(t, c.checkpoints)
	return all
}

// checkEmptyTokens looks at the tokens of credentials that are alive: the ledger knows none of them, and none was used.
func (c *everyCall) checkEmptyTokens(t *testing.T, all records) {
	t.Helper()
	left := tokens(t, c.vault)
	for accessor := range left {
		answer, err := c.vault.Root.Auth().Token().LookupAccessorWithContext(t.Context(), accessor)
		if err != nil {
			t.Fatal(err)
		}
		if uses, _ := answer.Data["num_uses"].(json.Number); uses != "2" {
			t.Errorf("token %s was used: %s uses are left", accessor, uses)
		}
		for _, l := range all.leases {
			if strings.Contains(string(l.Handle), accessor) {
				t.Errorf("the token of lease %s, which is %s (%s), is alive", l.ID, l.State, l.ProofDetail)
			}
		}
	}
	t.Logf("%d empty tokens are left, made before an intent that was never committed; they die by Vault's clock", len(left))
}
