package main

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// TestStopAndGoOn stops a daemon with an issue in flight: that one is finished, nothing more is admitted, and open tasks
// stay open and are said so. The next start goes on with them, and tears down what expired meanwhile.
func TestStopAndGoOn(t *testing.T) {
	t.Parallel()
	f, pg := sharedVault(t), servers.Postgres(t)
	s := newSite(t, "", vaultBackend(f.Server, appRoleAuth(t, f))+embeddedCA, catalog(limits{}, dbRole, slowRole, certRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	brief := declare(t, client, 14*time.Second, certRole)
	short := issue(t, brief, certRole)
	long := declare(t, client, 5*time.Minute, dbRole, slowRole, certRole)
	db := issue(t, long, dbRole)

	type answer struct {
		credential *agent.Credential
		err        error
	}
	inFlight := make(chan answer, 1)
	go func() {
		c, err := long.Issue(context.WithoutCancel(t.Context()), slowRole, agent.IssueOptions{})
		inFlight <- answer{c, err}
	}()
	eventually(t, 10*time.Second, func() error { return s.intent(t, slowRole) })
	d.signal(t, syscall.SIGTERM)
	eventually(t, 5*time.Second, func() error {
		_, err := client.Tasks().DeclareTask(t.Context(), &stintv1.DeclareTaskRequest{
			Purpose: "reconcile-invoices", RequestId: agent.NewRequestID(), Roles: []*stintv1.RoleRequest{{Role: certRole}},
		})
		if agent.ReasonOf(err) == stintv1.Reason_REASON_SHUTTING_DOWN {
			return nil
		}
		t.Logf("declare while stopping: %v", err)
		return errNotYet
	})
	got := <-inFlight
	if got.err != nil {
		t.Fatalf("the issue in flight was cut: %v", got.err)
	}
	if code := d.wait(t, 30*time.Second); code != 0 {
		t.Fatalf("stintd exited with %d:\n%s", code, tail(d.log(t)))
	}
	d.says(t, `"open_tasks":`)
	s.record(t, `"event":"server.stopped"`, "tasks left open")
	if _, err := login(t.Context(), pg, db); err != nil {
		t.Errorf("the database user of an open task is gone after a stop: %v", err)
	}

	<-time.After(time.Until(brief.Latest().GetNotAfter().AsTime()) + time.Second)
	s.start(t)
	eventually(t, 20*time.Second, func() error {
		if task := s.ledger(t).tasks[brief.Name()]; string(task.State) != "CLOSED" || string(task.CloseReason) != "expired" {
			return errNotYet
		}
		return nil
	})
	if !s.revocations(t, "stepca/internal").holds(short.Certificate.Chain[0]) {
		t.Error("the certificate of the task that expired while stintd was down is not on the CRL")
	}
	eventually(t, 10*time.Second, func() error { // the client connects again by itself, within seconds
		_, err := client.WhoAmI(t.Context())
		return err
	})
	issue(t, long, certRole)
	done, err := long.Complete(t.Context(), 30*time.Second)
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSED {
		t.Fatalf("complete after the restart: %v, %v", done.GetTask().GetState(), err)
	}
	for _, c := range []*agent.Credential{db, got.credential} {
		if n := users(t, pg, string(c.Fields["username"].Expose())); n != 0 {
			t.Errorf("the database user of %s outlived its task", c.Lease.GetRole())
		}
	}
}

// TestKilledWhileRevoking kills stintd in the middle of a revocation. The next start goes on with it at once, and not only
// when the dead process's claim runs out.
func TestKilledWhileRevoking(t *testing.T) {
	t.Parallel()
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{})
	s := newSite(t, "", remoteCA(t, ca), catalog(limits{}, remoteRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	task := declare(t, client, 5*time.Minute, remoteRole)
	cert := issue(t, task, remoteRole)
	ca.Pause(t)
	if _, err := task.Complete(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	name := cert.Lease.GetName()
	s.claimed(t, name)
	d.kill(t)
	ca.Resume(t)
	d = s.start(t)
	d.says(t, "begun again")
	eventually(t, 15*time.Second, func() error {
		if !s.ledger(t).leases[name].State.Final() {
			return s.unfinished(t)
		}
		return nil
	})
}

// claimed waits until stintd is ending a lease, and returns until when it may by itself.
func (s *site) claimed(tb testing.TB, name string) (until time.Time) {
	tb.Helper()
	eventually(tb, 10*time.Second, func() error {
		if until = s.ledger(tb).leases[name].ClaimUntil; until.IsZero() {
			return errNotYet
		}
		return nil
	})
	return until
}

// TestFrozenWhileRevoking freezes stintd in the middle of a revocation for longer than its claim. It goes on when it wakes
// up, and what it ends is what the ledger says.
func TestFrozenWhileRevoking(t *testing.T) {
	t.Parallel()
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{})
	s := newSite(t, "", remoteCA(t, ca), catalog(limits{}, remoteRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	task := declare(t, client, 10*time.Minute, remoteRole)
	cert := issue(t, task, remoteRole)
	ca.Pause(t)
	if _, err := task.Complete(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	until := s.claimed(t, cert.Lease.GetName())
	d.signal(t, syscall.SIGSTOP)
	ca.Resume(t)
	<-time.After(time.Until(until) + time.Second)
	if l := s.ledger(t).leases[cert.Lease.GetName()]; l.State.Final() {
		t.Fatalf("a frozen broker has ended %s", l.ID)
	}
	d.signal(t, syscall.SIGCONT)
	s.allClosed(t, s.admin(t))
	if !s.revocations(t, "stepca/remote").holds(cert.Certificate.Chain[0]) {
		t.Error("the task is closed, and its certificate is not on the CRL")
	}
	s.record(t, `"event":"task.closed"`) // the copy follows the log, and is complete up to there
	if n := strings.Count(string(read(t, s.file("log", "audit.jsonl"))), `"event":"lease.ended"`); n != 1 {
		t.Errorf("the end was recorded %d times", n)
	}
	d.stop(t)
	s.verifyLog(t, []string{client.Checkpoint()})
}

// TestHangup reloads resources on SIGHUP. What is invalid is refused whole, with file and line, and the old stay in force;
// a role that is gone ends what was issued by it.
func TestHangup(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	task := declare(t, client, 5*time.Minute, certRole)
	cert := issue(t, task, certRole)

	s.resources(t, strings.Replace(catalog(limits{}, certRole), "max: 15m", "maximum: 15m", 1))
	d.signal(t, syscall.SIGHUP)
	d.says(t, "what was in force stays in force")
	if log := d.log(t); !strings.Contains(log, "all.yaml:") || !strings.Contains(log, "maximum") {
		t.Errorf("the refusal names neither the line nor the key:\n%s", tail(log))
	}
	issue(t, task, certRole)

	spare := strings.ReplaceAll(catalog(limits{}, certRole), certRole, "spare-api")
	s.resources(t, spare)
	d.signal(t, syscall.SIGHUP)
	d.says(t, `"msg":"reloaded"`)
	eventually(t, 10*time.Second, func() error {
		if l := s.ledger(t).leases[cert.Lease.GetName()]; !l.State.Final() || string(l.Cause) != "role_removed" {
			return errNotYet
		}
		return nil
	})
	if !s.revocations(t, "stepca/internal").holds(cert.Certificate.Chain[0]) {
		t.Error("the certificate of a removed role is not on the CRL")
	}
	if _, err := task.Issue(t.Context(), certRole, agent.IssueOptions{}); err == nil {
		t.Error("a removed role still issues")
	}
	issue(t, declare(t, client, 5*time.Minute, "spare-api"), "spare-api")
	s.record(t, `"event":"config.reloaded"`)
	s.record(t, `"event":"resource.deleted"`, "roles/"+certRole)

	if _, err := s.admin(t).Admin().Apply(t.Context(), &stintv1.ApplyRequest{Documents: []*stintv1.Document{{Yaml: spare}}}); agent.ReasonOf(err) != stintv1.Reason_REASON_RESOURCES_READ_ONLY {
		t.Errorf("apply beside a resources folder: %v, want RESOURCES_READ_ONLY", err)
	}
	write(t, s.file("stint.hcl"), string(read(t, s.file("stint.hcl")))+"\nsurprise = 1\n")
	d.signal(t, syscall.SIGHUP)
	d.says(t, "surprise")
}
