package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// TestServe follows one task through real backends: a database user, certificates of both kinds of CA and a one-time
// password; after it nothing of them is left at any backend, the record is complete, and no secret is anywhere.
func TestServe(t *testing.T) {
	t.Parallel()
	f, pg, ca := sharedVault(t), servers.Postgres(t), servers.StepCA(t)
	auth, tokenFile := tokenAuth(t, f)
	s := newSite(t, "", vaultBackend(f.Server, auth)+embeddedCA+remoteCA(t, ca), catalog(limits{}, dbRole, otpRole, certRole, remoteRole))
	d := s.start(t)
	var hidden secrets
	hidden = append(hidden, []byte(strings.TrimSpace(string(read(t, tokenFile)))))

	client := s.agent(t, agentPath)
	task := declare(t, client, 5*time.Minute, dbRole, otpRole, certRole, remoteRole)
	db, otp, cert, remote := issue(t, task, dbRole), issue(t, task, otpRole), issue(t, task, certRole), issue(t, task, remoteRole)
	hidden.add(db)
	hidden.add(otp)

	user := string(db.Fields["username"].Expose())
	session, err := login(t.Context(), pg, db)
	if err != nil {
		t.Fatalf("log in with the issued user: %v", err)
	}
	var item string
	if err := session.QueryRow(t.Context(), "SELECT item FROM orders").Scan(&item); err != nil || item != "bolt" {
		t.Fatalf("read with the issued user: %q, %v", item, err)
	}
	if _, err := session.Exec(t.Context(), "DELETE FROM orders"); err == nil {
		t.Error("the issued user may write")
	}
	if report := string(s.get(t, "/readyz")); !strings.Contains(report, "ok") || strings.Contains(report, "not ready") {
		t.Errorf("/readyz says:\n%s", report)
	}
	if got := string(s.get(t, "/metrics")); !strings.Contains(got, "stint_") || !strings.Contains(got, dbRole) {
		t.Errorf("/metrics has nothing of role %s", dbRole)
	}
	lease := s.ledger(t).leases[db.Lease.GetName()]
	if lease.PublicRef != user && !strings.Contains(lease.PublicRef, user) {
		t.Errorf("the ledger's reference is %q, the user %q", lease.PublicRef, user)
	}
	who, err := s.admin(t).Admin().WhoIs(t.Context(), &stintv1.WhoIsRequest{Query: user})
	if err != nil || who.GetTask().GetName() != task.Name() {
		t.Errorf("whois %s: %v, %v", user, who, err)
	}

	done, err := task.Complete(t.Context(), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := done.GetTask(); got.GetState() != stintv1.TaskState_TASK_STATE_CLOSED || got.GetTeardown().GetFinal() != 4 {
		t.Fatalf("the task is %v, teardown %v", got.GetState(), got.GetTeardown())
	}
	for _, l := range done.GetLeases() {
		want := plugins.ReadBack
		if l.GetRole() == certRole || l.GetRole() == remoteRole {
			want = plugins.OnCRL
		}
		if l.GetProof() != string(want) {
			t.Errorf("%s ended with proof %q (%s), want %q", l.GetRole(), l.GetProof(), l.GetProofDetail(), want)
		}
	}
	if n := users(t, pg, user); n != 0 {
		t.Errorf("PostgreSQL still has %s", user)
	}
	if err := session.Ping(t.Context()); err == nil {
		t.Error("the open session was not cut")
	}
	for _, path := range []string{"database/creds/stint-orders-ro/", "ssh/creds/stint-otp/"} {
		for _, l := range f.Leases(t, strings.TrimSuffix(path, "/")) {
			if strings.Contains(string(s.ledger(t).leases[db.Lease.GetName()].Handle), l) || strings.Contains(string(s.ledger(t).leases[otp.Lease.GetName()].Handle), l) {
				t.Errorf("Vault still has %s", l)
			}
		}
	}
	if _, err := f.Root.Logical().WriteWithContext(t.Context(), "ssh/verify", map[string]any{"otp": string(otp.Fields["key"].Expose())}); err == nil {
		t.Error("the one-time password is still good")
	}
	crl := s.revocations(t, "stepca/internal", "stepca/remote")
	if !crl.holds(cert.Certificate.Chain[0]) || !crl.holds(remote.Certificate.Chain[0]) {
		t.Error("/crl.pem does not hold both certificates")
	}
	s.record(t, `"event":"task.closed"`, strings.TrimPrefix(task.Name(), "tasks/"), `"read_back":2`, `"crl":2`)
	if !strings.Contains(string(read(t, s.file("log", "checkpoints.log"))), "stint.example.org/audit") {
		t.Error("no checkpoint was shipped")
	}
	if err := client.VerifyLog(t.Context()); err != nil {
		t.Errorf("the agent verifies the log: %v", err)
	}
	hidden.absent(t, s)
	d.stop(t)
	d.says(t, "open tasks stay open")
	s.record(t, `"event":"server.stopped"`)
}
