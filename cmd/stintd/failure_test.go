package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// TestVaultFails spoils one thing after the other; each time nothing is issued, the reason says what it is, and it works
// again once it is mended.
func TestVaultFails(t *testing.T) {
	t.Parallel()
	server := servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: 4 * time.Second, OnDisk: true})
	pg := servertest.StartPostgres(t)
	f := vaultFor(t, server, pg)
	auth, _ := tokenAuth(t, f)
	s := newSite(t, "", vaultBackend(server, auth, `max_request_duration = "4s"`), catalog(limits{}, dbRole, slowRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, dbRole, slowRole)
	issue(t, task, dbRole)
	var heard *agent.Error
	refused := func(role string, want stintv1.Reason) {
		t.Helper()
		before := users(t, pg, "v-%")
		_, err := task.Issue(t.Context(), role, agent.IssueOptions{})
		var ok bool
		if heard, ok = errors.AsType[*agent.Error](err); !ok || heard.Reason != want {
			t.Fatalf("issue %s: %v, want %s", role, err, want)
		}
		if n := users(t, pg, "v-%"); n != before {
			t.Errorf("after an issue that was refused PostgreSQL has %d users, before %d", n, before)
		}
	}

	tokenDies(t, s, f, pg, task)

	// A policy that a role needs is missing: Vault only warns, and hands out a token that can do nothing.
	policy, err := f.Root.Sys().GetPolicyWithContext(t.Context(), "stint-orders-db-read")
	if err != nil {
		t.Fatal(err)
	}
	if err = f.Root.Sys().DeletePolicyWithContext(t.Context(), "stint-orders-db-read"); err != nil {
		t.Fatal(err)
	}
	refused(dbRole, stintv1.Reason_REASON_BACKEND_MISCONFIGURED)
	d.says(t, "stint-orders-db-read")

	// It is there, and allows something else.
	f.Policy(t, "stint-orders-db-read", `path "database/creds/other" { capabilities = ["read"] }`)
	refused(dbRole, stintv1.Reason_REASON_BACKEND_MISCONFIGURED)
	d.saysAtOnce(t, "database/creds/stint-orders-ro", "policy stint-orders-db-read", "`stintd setup vault`")
	f.Policy(t, "stint-orders-db-read", policy)

	// Stint's own policy lacks what it needs.
	own, err := f.Root.Sys().GetPolicyWithContext(t.Context(), vault.StintPolicy)
	if err != nil {
		t.Fatal(err)
	}
	f.Policy(t, vault.StintPolicy, strings.Replace(own, "auth/token/create/stint", "auth/token/create/other", 1))
	refused(dbRole, stintv1.Reason_REASON_BACKEND_MISCONFIGURED)
	d.says(t, "auth/token/create/stint")
	f.Policy(t, vault.StintPolicy, own)
	issue(t, task, dbRole)

	server.Seal(t)
	refused(dbRole, stintv1.Reason_REASON_BACKEND_UNAVAILABLE)
	if heard.Message != "vault/main is sealed, retry in 5 s; nothing was issued" || heard.RetryAfter != 5*time.Second {
		t.Errorf("of a sealed Vault the agent hears %q, retry after %s", heard.Message, heard.RetryAfter)
	}
	eventually(t, 10*time.Second, func() error {
		if report := string(s.get(t, "/readyz")); !strings.Contains(report, "vault/main") || !strings.Contains(report, "degraded") {
			return errNotYet
		}
		return nil
	})
	server.Unseal(t)
	issue(t, task, dbRole)

	server.Kill(t)
	refused(dbRole, stintv1.Reason_REASON_BACKEND_UNAVAILABLE)
	done, err := task.Complete(t.Context(), time.Second)
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSING {
		t.Errorf("complete while Vault is down: %v, %v; want CLOSING", done.GetTask().GetState(), err)
	}
	server.Restart(t)
	s.allClosed(t, s.admin(t))
	databaseEmpty(t, f, pg)
}

// databaseEmpty asks Vault and PostgreSQL for what the database roles issue.
func databaseEmpty(t *testing.T, f *vaulttest.Fixture, pg *servertest.Postgres) {
	t.Helper()
	if n := users(t, pg, "v-%"); n != 0 {
		t.Errorf("PostgreSQL has %d users left", n)
	}
	if n := len(f.Leases(t, "database/creds/stint-orders-ro")) + len(f.Leases(t, "database/creds/stint-slow")); n != 0 {
		t.Errorf("Vault has %d leases left", n)
	}
	if n := len(tokens(t, f)); n != 0 {
		t.Errorf("Vault has %d tokens of credentials left", n)
	}
}

// tokenDies revokes the token of a credential while Vault is busy making it. Whatever the agent hears, nothing is alive
// after the horizon.
func tokenDies(t *testing.T, s *site, f *vaulttest.Fixture, pg *servertest.Postgres, task *agent.Task) {
	t.Helper()
	before := users(t, pg, "v-%")
	answer := make(chan error, 1)
	go func() {
		_, err := task.Issue(context.WithoutCancel(t.Context()), slowRole, agent.IssueOptions{})
		answer <- err
	}()
	var dying lease.Lease
	eventually(t, 10*time.Second, func() error {
		for _, l := range s.ledger(t).leases {
			if l.Role == slowRole && l.State == lease.Intent {
				dying = l
				return nil
			}
		}
		return errNotYet
	})
	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))
	eventually(t, 5*time.Second, func() error { // Vault is busy with it
		busy := 0
		err := super.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").Scan(&busy)
		if err == nil && busy == 0 {
			err = errNotYet
		}
		return err
	})
	_, rest, _ := strings.Cut(string(dying.Handle), `"accessor":"`)
	accessor, _, _ := strings.Cut(rest, `"`)
	if err := f.Root.Auth().Token().RevokeAccessorWithContext(t.Context(), accessor); err != nil {
		t.Fatalf("revoke %q: %v", accessor, err)
	}
	err := <-answer
	t.Logf("the issue whose token died says: %v", err)
	name := "leases/" + dying.ID.String()
	if err == nil { // the credential was made all the same, and ends like any other
		_, err = s.admin(t).Credentials().RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
	} else if reason := agent.ReasonOf(err); reason != stintv1.Reason_REASON_BACKEND_UNAVAILABLE && reason != stintv1.Reason_REASON_BACKEND_MISCONFIGURED {
		t.Errorf("the issue whose token died says %s: %v", reason, err)
	}
	eventually(t, time.Minute, func() error {
		if l := s.ledger(t).leases[name]; !l.State.Final() {
			return s.unfinished(t)
		}
		return nil
	})
	t.Logf("its lease ended as %s", s.ledger(t).leases[name].ProofDetail)
	if n := len(f.Leases(t, "database/creds/stint-slow")); n != 0 {
		t.Errorf("Vault has %d leases of the token that died", n)
	}
	if n := users(t, pg, "v-%"); n != before {
		t.Errorf("PostgreSQL has %d users, before the token died %d", n, before)
	}
}

// TestStepCAFails asks for a certificate while step-ca is down, and closes the task meanwhile.
func TestStepCAFails(t *testing.T) {
	t.Parallel()
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{})
	s := newSite(t, "", remoteCA(t, ca), catalog(limits{}, remoteRole))
	s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, remoteRole)
	cert := issue(t, task, remoteRole)
	ca.Stop(t)
	if _, err := task.Issue(t.Context(), remoteRole, agent.IssueOptions{}); agent.ReasonOf(err) != stintv1.Reason_REASON_BACKEND_UNAVAILABLE {
		t.Errorf("issue while step-ca is down: %v", err)
	}
	done, err := task.Complete(t.Context(), time.Second)
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSING {
		t.Errorf("complete while step-ca is down: %v, %v; want CLOSING", done.GetTask().GetState(), err)
	}
	ca.Restart(t)
	s.allClosed(t, s.admin(t))
	if !s.revocations(t, "stepca/remote").holds(cert.Certificate.Chain[0]) {
		t.Error("the certificate is not on step-ca's CRL")
	}
}

// TestAdminSocket stops a task over the admin socket after the identity files are gone; the record has the caller's uid.
func TestAdminSocket(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 5*time.Minute, certRole)
	cert := issue(t, task, certRole)
	if err := os.RemoveAll(s.file("identity")); err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	d.says(t, "what was in force stays in force")
	answer, err := s.admin(t).Admin().StopTask(t.Context(), &stintv1.StopTaskRequest{Name: task.Name()})
	if err != nil {
		t.Fatal(err)
	}
	if got := answer.GetTask().GetCloseReason(); got != stintv1.CloseReason_CLOSE_REASON_STOPPED {
		t.Errorf("the task was closed as %s", got)
	}
	select {
	case <-task.Done():
	case <-time.After(10 * time.Second):
		t.Error("the agent does not hear that its task was stopped")
	}
	s.allClosed(t, s.admin(t))
	if !s.revocations(t, "stepca/internal").holds(cert.Certificate.Chain[0]) {
		t.Error("the certificate of the stopped task is not on the CRL")
	}
	s.record(t, `"event":"task.closing"`, `"reason":"stopped"`, `"uid":`)
	info, err := os.Stat(s.file("admin.sock"))
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the admin socket has mode %v, %v", info.Mode(), err)
	}
}
