package main

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// served is one task with a credential of every kind.
type served struct {
	*site

	vault   *vaulttest.Fixture
	pg      *servertest.Postgres
	client  *agent.Client
	task    *agent.Task
	issued  map[string]*agent.Credential // by role
	session *pgx.Conn                    // of the issued database user
}

// TestServe follows one task through real backends: a database user, certificates of both kinds of CA and a one-time
// password; after it nothing of them is left at any backend, the record is complete, and no secret is anywhere.
func TestServe(t *testing.T) {
	t.Parallel()
	f, ca := sharedVault(t), servers.StepCA(t)
	auth, tokenFile := tokenAuth(t, f)
	roles := []string{dbRole, otpRole, certRole, remoteRole}
	v := served{
		site:  newSite(t, "", vaultBackend(f.Server, auth)+embeddedCA+remoteCA(t, ca), catalog(limits{}, roles...)),
		vault: f, pg: servers.Postgres(t), issued: map[string]*agent.Credential{},
	}
	d := v.start(t)
	v.client = v.agent(t, agentPath)
	v.task = declare(t, v.client, 5*time.Minute, roles...)
	hidden := secrets{[]byte(strings.TrimSpace(string(read(t, tokenFile))))}
	for _, role := range roles {
		v.issued[role] = issue(t, v.task, role)
		hidden = hidden.with(v.issued[role])
	}
	v.works(t)
	v.isSeen(t)
	v.ends(t)
	v.isGone(t)
	v.isRecorded(t)
	hidden.absent(t, v.site)
	d.stop(t)
	d.says(t, "open tasks stay open")
	v.record(t, `"event":"server.stopped"`)
}

// works uses the database user for what it is for, and for what it is not.
func (v *served) works(t *testing.T) {
	t.Helper()
	var err error
	if v.session, err = login(t.Context(), v.pg, v.issued[dbRole]); err != nil {
		t.Fatalf("log in with the issued user: %v", err)
	}
	var item string
	if err = v.session.QueryRow(t.Context(), "SELECT item FROM orders").Scan(&item); err != nil || item != "bolt" {
		t.Fatalf("read with the issued user: %q, %v", item, err)
	}
	if _, err = v.session.Exec(t.Context(), "DELETE FROM orders"); err == nil {
		t.Error("the issued user may write")
	}
}

// isSeen looks at what operators see while the task runs.
func (v *served) isSeen(t *testing.T) {
	t.Helper()
	if report := string(v.get(t, "/readyz")); !strings.Contains(report, "vault/main") || strings.Contains(report, "not ready") {
		t.Errorf("/readyz says:\n%s", report)
	}
	v.isMeasured(t)
	user := string(v.issued[dbRole].Fields["username"].Expose())
	if ref := v.ledger(t).leases[v.issued[dbRole].Lease.GetName()].PublicRef; !strings.Contains(ref, user) {
		t.Errorf("the ledger's reference is %q, the user %q", ref, user)
	}
	var handle struct{ Accessor, Lease string }
	l := v.ledger(t).leases[v.issued[dbRole].Lease.GetName()]
	if err := json.Unmarshal([]byte(l.Handle), &handle); err != nil {
		t.Fatal(err)
	}
	operator := v.admin(t).Admin()
	for _, found := range []string{user, handle.Accessor, handle.Lease} {
		who, err := operator.WhoIs(t.Context(), &stintv1.WhoIsRequest{Query: found})
		if found == "" || err != nil || who.GetTask().GetName() != v.task.Name() || who.GetLease().GetName() != v.issued[dbRole].Lease.GetName() {
			t.Errorf("whois %q: %v, %v", found, who, err)
		}
	}
}

// isMeasured reads the metrics by name, after one denial: each is of this daemon, and none is what an empty one has.
func (v *served) isMeasured(t *testing.T) {
	t.Helper()
	_, err := v.client.Declare(t.Context(), agent.Declaration{Purpose: "launder-money"})
	if got := agent.ReasonOf(err); got != stintv1.Reason_REASON_PURPOSE_OUTSIDE_PROFILE {
		t.Fatalf("a purpose of nobody: %v", err)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(v.get(t, "/metrics"))) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.Contains(line, "{") {
			name, text, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		if value, err := strconv.ParseFloat(text, 64); err == nil {
			values[name] = value
		}
	}
	for _, name := range []string{
		`stint_credentials_issued_total{backend="vault/main",role="` + dbRole + `"`, `stint_denied_total{reason="PURPOSE_OUTSIDE_PROFILE"`,
		`stint_leases{state="ACTIVE"`, `stint_tasks{state="ACTIVE"`, "stint_commit_seconds_count", `stint_backend_up{backend="vault/main"`,
		`stint_backend_up{backend="stepca/remote"`, "stint_audit_size", "stint_free_disk_bytes", "stint_svid_expiry_seconds",
		`stint_ca_expiry_seconds{backend="stepca/internal"`, "stint_ready", "stint_ledger_readable",
	} {
		if values[name] < 1 {
			t.Errorf("/metrics has %s as %v, want at least 1", name, values[name])
		}
	}
}

// ends completes the task, and reads how each lease ended.
func (v *served) ends(t *testing.T) {
	t.Helper()
	done, err := v.task.Complete(t.Context(), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := done.GetTask(); got.GetState() != stintv1.TaskState_TASK_STATE_CLOSED || int(got.GetTeardown().GetFinal()) != len(v.issued) {
		t.Fatalf("the task is %v, teardown %v", got.GetState(), got.GetTeardown())
	}
	for _, l := range done.GetLeases() {
		want := plugins.ReadBack
		if v.issued[l.GetRole()].Certificate != nil {
			want = plugins.OnCRL
		}
		if l.GetProof() != string(want) {
			t.Errorf("%s ended with proof %q (%s), want %q", l.GetRole(), l.GetProof(), l.GetProofDetail(), want)
		}
	}
}

// isGone asks the backends.
func (v *served) isGone(t *testing.T) {
	t.Helper()
	if user := string(v.issued[dbRole].Fields["username"].Expose()); users(t, v.pg, user) != 0 {
		t.Errorf("PostgreSQL still has %s", user)
	}
	if err := v.session.Ping(t.Context()); err == nil {
		t.Error("the open session was not cut")
	}
	left := slices.Concat(v.vault.Leases(t, "database/creds/stint-orders-ro"), v.vault.Leases(t, "ssh/creds/stint-otp"))
	for _, role := range []string{dbRole, otpRole} {
		handle := string(v.ledger(t).leases[v.issued[role].Lease.GetName()].Handle)
		if !strings.Contains(handle, "/creds/stint-") {
			t.Errorf("the ledger's handle of %s names no lease of Vault's: %s", role, handle)
		}
		if slices.ContainsFunc(left, func(lease string) bool { return strings.Contains(handle, lease) }) {
			t.Errorf("Vault still has the lease of %s", role)
		}
	}
	otp := string(v.issued[otpRole].Fields["key"].Expose())
	if _, err := v.vault.Root.Logical().WriteWithContext(t.Context(), "ssh/verify", map[string]any{"otp": otp}); err == nil {
		t.Error("the one-time password is still good")
	}
	crl := v.revocations(t, "stepca/internal", "stepca/remote")
	for _, role := range []string{certRole, remoteRole} {
		if !crl.holds(v.issued[role].Certificate.Chain[0]) {
			t.Errorf("the certificate of %s is not on the CRL", role)
		}
	}
}

// isRecorded looks at the copies of the log, and proves it from the agent's side.
func (v *served) isRecorded(t *testing.T) {
	t.Helper()
	v.record(t, `"event":"task.closed"`, strings.TrimPrefix(v.task.Name(), "tasks/"), `"read_back":2`, `"crl":2`)
	if !strings.Contains(string(read(t, v.file("log", "checkpoints.log"))), "stint.example.org/audit") {
		t.Error("no checkpoint was shipped")
	}
	if err := v.client.VerifyLog(t.Context()); err != nil {
		t.Errorf("the agent verifies the log: %v", err)
	}
}
