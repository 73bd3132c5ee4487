package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	restorePath = "database/creds/stint-orders-ro"
	// restoreHorizon is short, since what is unknown has to be older than it to count, and long enough for Vault to be set up on
	// a busy machine.
	restoreHorizon = 30 * time.Second
)

// restoring is an installation whose ledger goes back to an older copy while its backends do not.
type restoring struct {
	*site

	vault  *vaulttest.Fixture
	d      *daemon
	before [2]*agent.Task // of the copy: one that ends by its deadline, one that ends by silence
	lost   *agent.Task    // declared after the copy
	silent *agent.Client  // of the second task
	later  *agent.Client  // of the lost task
	// unknown is what was issued after the copy, by backend: Vault's leases, and serial numbers. certs are those certificates, kept
	// is Vault's lease of the silent task.
	unknown map[string][]string
	certs   []*agent.Credential
	kept    string
	size    int64 // of the log in the copy
}

// TestRestoreFromBackup and TestRestoreFromFiles: a broker that is started on an older copy of its ledger is held. Nothing is
// issued or ended, though tasks are due; reconcile names exactly what Vault holds and the CAs have signed, and the copy does not know; and after an
// administrator has confirmed it, everything ends, in an epoch of the log that verifies against all that was shipped away.
func TestRestoreFromBackup(t *testing.T) {
	t.Parallel()
	r := newRestoring(t)
	copied := r.file("copied")
	r.issueBefore(t)
	if code, _, errs := run(t, r.dir, "backup", "--config", r.file("stint.hcl"), "--out", copied); code != 0 {
		t.Fatalf("backup exits with %d: %s", code, errs)
	}
	r.issueAfter(t)
	r.d.kill(t)
	r.putBack(t, map[string]string{copied: sqlite.File})
	r.story(t, audit.FoundCopy)
}

func TestRestoreFromFiles(t *testing.T) {
	t.Parallel()
	r := newRestoring(t)
	r.issueBefore(t)
	r.d.kill(t)
	aside := map[string]string{}
	for _, name := range []string{sqlite.File, sqlite.File + "-wal"} {
		write(t, r.file("copied-"+name), string(read(t, r.file("data", name))))
		aside[r.file("copied-"+name)] = name
	}
	r.d = r.start(t)
	r.issueAfter(t)
	r.d.kill(t)
	r.putBack(t, aside)
	r.story(t, audit.FoundOlder)
}

func newRestoring(t *testing.T) *restoring {
	t.Helper()
	r := &restoring{unknown: map[string][]string{}}
	r.vault = vaultFor(t, servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: restoreHorizon}), servers.Postgres(t))
	r.site = newSite(t, "", vaultBackend(r.vault.Server, appRoleAuth(t, r.vault), `  max_request_duration = "`+restoreHorizon.String()+`"`)+embeddedCA+
		remoteCA(t, servertest.StartStepCA(t, servertest.StepCAOptions{})), catalog(limits{dbTTL: "{default: 10m, max: 10m}"}, dbRole, certRole, remoteRole))
	r.d = r.start(t)
	return r
}

// issueBefore makes what is in the copy.
func (r *restoring) issueBefore(t *testing.T) {
	t.Helper()
	r.before[0] = declare(t, r.agent(t, agentPath), time.Minute, dbRole, certRole)
	issue(t, r.before[0], dbRole)
	issue(t, r.before[0], certRole)
	first := r.vault.Leases(t, restorePath)
	silent := declaration(10*time.Minute, dbRole)
	silent.IdleTimeout = 20 * time.Second
	r.silent = r.agent(t, "/agent/silent")
	task, err := r.silent.Declare(t.Context(), silent)
	if err != nil {
		t.Fatal(err)
	}
	r.before[1] = task
	issue(t, task, dbRole)
	r.kept = added(t, r.vault, first)[0]
}

// issueAfter makes what the copy does not know, and ends what it takes for open.
func (r *restoring) issueAfter(t *testing.T) {
	t.Helper()
	known := r.vault.Leases(t, restorePath)
	r.later = r.agent(t, "/agent/lost")
	r.lost = declare(t, r.later, 10*time.Minute, dbRole, certRole, remoteRole)
	issue(t, r.lost, dbRole)
	issue(t, r.lost, dbRole)
	r.unknown["vault/main"] = added(t, r.vault, known)
	for role, backend := range map[string]string{certRole: "stepca/internal", remoteRole: "stepca/remote"} {
		cred := issue(t, r.lost, role)
		r.certs = append(r.certs, cred)
		r.unknown[backend] = []string{strings.TrimPrefix(cred.Lease.GetName(), "leases/")}
	}
	if err := r.before[0].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.record(t, `"event":"task.closed"`) // so that the lost end was exported
}

// added returns the leases that came since others were listed.
func added(t *testing.T, f *vaulttest.Fixture, known []string) []string {
	t.Helper()
	return slices.DeleteFunc(f.Leases(t, restorePath), func(id string) bool { return slices.Contains(known, id) })
}

// putBack replaces the ledger by a copy. The agent that will be silent is so from here on.
func (r *restoring) putBack(t *testing.T, files map[string]string) {
	t.Helper()
	if err := r.silent.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(r.file("data", sqlite.File+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for from, name := range files {
		write(t, r.file("data", name), string(read(t, from)))
	}
}

func (r *restoring) story(t *testing.T, found audit.Found) {
	t.Helper()
	admin := r.admin(t).Admin()
	seen := r.later.Checkpoint()
	r.d = r.start(t)
	held := r.isHeld(t, admin, found)
	r.reconcileNames(t, admin)
	r.endsNothing(t, admin, held)
	r.d.kill(t) // what it was found by is not needed again
	if err := os.Rename(r.file("log", "checkpoints.log"), r.file("log", "checkpoints.1")); err != nil {
		t.Fatal(err)
	}
	r.d = r.start(t)
	r.isHeld(t, admin, found)

	r.confirm(t, admin, held)
	r.endsAll(t, admin)
	r.clientIsTold(t, seen)
	r.d.stop(t)
	r.verifies(t)
}

// isHeld expects that a broker says everywhere that it is held, and refuses.
func (r *restoring) isHeld(t *testing.T, admin stintv1.AdminServiceClient, found audit.Found) *stintv1.Restore {
	t.Helper()
	r.d.says(t, `"msg":"the ledger was restored from an older copy; it is held`)
	var held *stintv1.Restore
	eventually(t, time.Minute, func() (err error) { // until the connection is tried again that broke
		held, err = admin.GetRestore(t.Context(), &stintv1.GetRestoreRequest{})
		return err
	})
	if !held.GetHeld() || held.GetFound() != string(found) || held.GetKnownSize() <= held.GetSize() || held.GetOpenTasks() != 2 {
		t.Fatalf("%v", held)
	}
	res, err := http.Get("http://" + r.http + "/readyz") //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if body := string(r.get(t, "/metrics")); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "stint_restore_unconfirmed 1") {
		t.Errorf("/readyz answers %d; metrics say that it is confirmed: %v", res.StatusCode, !strings.Contains(body, "stint_restore_unconfirmed 1"))
	}
	_, declared := r.agent(t, agentPath).Declare(t.Context(), declaration(time.Minute, certRole))
	var completed error
	eventually(t, time.Minute, func() error { // as above
		if _, completed = r.lost.Complete(t.Context(), 0); agent.ReasonOf(completed) == stintv1.Reason_REASON_UNSPECIFIED {
			return completed
		}
		return nil
	})
	_, stopped := admin.StopTask(t.Context(), &stintv1.StopTaskRequest{Name: "tasks/any"})
	_, revoked := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{RevokeUnknown: true})
	for what, err := range map[string]error{"declare": declared, "complete": completed, "stop": stopped, "revoke": revoked} {
		if agent.ReasonOf(err) != stintv1.Reason_REASON_RESTORE_UNCONFIRMED && !strings.Contains(fmt.Sprint(err), "RESTORE_UNCONFIRMED") &&
			!strings.Contains(fmt.Sprint(err), "restored from an older copy") {
			t.Errorf("%s while held: %v", what, err)
		}
	}
	return held
}

// reconcileNames expects exactly what was issued after the copy.
func (r *restoring) reconcileNames(t *testing.T, admin stintv1.AdminServiceClient) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error { // until it is older than the grace
		res, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{})
		if err != nil {
			return err
		}
		for _, inv := range res.GetInventories() {
			if want := r.unknown[inv.GetBackend()]; int(inv.GetUnknown()) < len(want) {
				return errNotYet
			} else if got := unknownOf(inv); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Errorf("unknown of %s are %v, want %v", inv.GetBackend(), got, want)
			}
		}
		return nil
	})
	for _, cred := range r.certs {
		if r.refused(t, cred) {
			t.Errorf("a certificate of %s was revoked by looking", cred.Lease.GetRole())
		}
	}
}

// unknownOf returns the leases of Vault and the serial numbers that are unknown, sorted.
func unknownOf(inv *stintv1.Inventory) []string {
	var unknown []string
	for _, d := range inv.GetDifferences() {
		if d.GetKind() == stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN {
			unknown = append(unknown, d.GetKey()[strings.LastIndex(d.GetKey(), " ")+1:])
		}
	}
	slices.Sort(unknown)
	return unknown
}

// refused reports whether a service that reads the CRLs which the broker serves refuses a certificate.
func (r *restoring) refused(t *testing.T, cred *agent.Credential) bool {
	t.Helper()
	return r.revocations(t, "stepca/internal", "stepca/remote").holds(cred.Certificate.Chain[0])
}

// endsNothing waits until both tasks of the copy are due, and expects that nothing has happened to them.
func (r *restoring) endsNothing(t *testing.T, admin stintv1.AdminServiceClient, held *stintv1.Restore) {
	t.Helper()
	due := r.before[0].Latest().GetNotAfter().AsTime()
	eventually(t, 3*time.Minute, func() error {
		if time.Now().Before(due.Add(2 * time.Second)) {
			return errNotYet
		}
		return nil
	})
	now, err := admin.GetRestore(t.Context(), &stintv1.GetRestoreRequest{})
	if err != nil || now.GetSize() != held.GetSize() || now.GetOverdueTasks() != 1 || now.GetOpenTasks() != 2 || now.GetOpenLeases() != 3 {
		t.Errorf("%v, %v", now, err)
	}
	if !alive(t, r.vault, r.kept) {
		t.Error("a credential of the copy was ended while the ledger was held")
	}
}

// confirm confirms over the admin socket, after a refusal to confirm another ledger than this one.
func (r *restoring) confirm(t *testing.T, admin stintv1.AdminServiceClient, held *stintv1.Restore) {
	t.Helper()
	r.size = held.GetSize()
	if _, err := admin.ConfirmRestore(t.Context(), &stintv1.ConfirmRestoreRequest{Size: r.size + 1}); err == nil {
		t.Error("a ledger was confirmed that nobody has looked at")
	}
	after, err := admin.ConfirmRestore(t.Context(), &stintv1.ConfirmRestoreRequest{Size: r.size, Comment: "the disk died"})
	if err != nil || after.GetHeld() || after.GetEpoch() != 2 {
		t.Fatalf("%v, %v", after, err)
	}
	r.d.says(t, `"msg":"the restore was confirmed; what is due is ended, and issuing goes on"`)
	said := r.record(t, `"event":"log.restored"`)
	if !strings.Contains(said, fmt.Sprintf(`"uid":%d`, os.Getuid())) || !strings.Contains(said, fmt.Sprintf(`"known_size":%d`, held.GetKnownSize())) {
		t.Errorf("the record is %s", said)
	}
}

// endsAll expects that everything of the copy ends by itself, and that what it did not know ends when told to.
func (r *restoring) endsAll(t *testing.T, admin stintv1.AdminServiceClient) {
	t.Helper()
	r.allClosed(t, r.admin(t))
	if alive(t, r.vault, r.kept) {
		t.Error("a credential of the copy is alive")
	}
	if _, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{RevokeUnknown: true}); err != nil {
		t.Fatal(err)
	}
	if left := r.vault.Leases(t, restorePath); len(left) > 0 {
		t.Errorf("Vault still holds %v", left)
	}
	for _, cred := range r.certs {
		if !r.refused(t, cred) {
			t.Errorf("a certificate of %s that was issued after the copy is accepted", cred.Lease.GetRole())
		}
		r.record(t, `"event":"stray.ended"`, `"kind":"crl"`, "serial "+strings.TrimPrefix(cred.Lease.GetName(), "leases/"))
	}
	task := declare(t, r.agent(t, agentPath), time.Minute, certRole)
	issue(t, task, certRole)
	if err := task.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// clientIsTold: who kept a checkpoint of the lost part is told so, and goes on once that is accepted.
func (r *restoring) clientIsTold(t *testing.T, kept string) {
	t.Helper()
	client := connect(t, agent.WithAddr(r.grpc), agent.WithSource(r.ca.source(t, agentPath)), agent.WithLogKey(r.key),
		agent.WithServerID("spiffe://"+trustDomain+stintPath), agent.WithCheckpoint(kept))
	err := client.VerifyLog(t.Context())
	if !errors.Is(err, agent.ErrRestored) || errors.Is(err, agent.ErrLog) {
		t.Errorf("a client with a checkpoint of what was lost: %v", err)
	}
	t.Logf("it is told: %v", err)
	client.AcceptRestore()
	if err := client.VerifyLog(t.Context()); err != nil {
		t.Errorf("after it accepted: %v", err)
	}
}

// verifies holds the log against every checkpoint that was exported before and after, and the receipts against the key.
func (r *restoring) verifies(t *testing.T) {
	t.Helper()
	shipped := string(read(t, r.file("log", "checkpoints.1"))) + string(read(t, r.file("log", "checkpoints.log")))
	write(t, r.file("shipped.log"), shipped)
	code, out, errs := run(t, r.dir, "audit", "verify", "--ledger", r.file("data", sqlite.File), "--pubkey", r.key,
		"--checkpoints", r.file("shipped.log"))
	t.Log(out)
	if code != 0 || !strings.Contains(out, fmt.Sprintf("restored: epoch 2 goes on from an older copy at record %d", r.size)) ||
		!strings.Contains(out, "known checkpoints are of lost records") {
		t.Errorf("audit verify exits with %d: %s", code, errs)
	}
	last := map[int64]int64{}
	for line := range strings.Lines(string(read(t, r.file("log", "audit.jsonl")))) {
		var at struct{ Epoch, Index int64 }
		if err := json.Unmarshal([]byte(line), &at); err != nil {
			t.Fatal(err)
		}
		if from, ok := last[at.Epoch]; ok && at.Index != from+1 {
			t.Errorf("in epoch %d of the copy, %d comes after %d", at.Epoch, at.Index, from)
		} else if !ok && at.Epoch > 0 && at.Index != r.size {
			t.Errorf("epoch %d of the copy begins at %d, want %d", at.Epoch, at.Index, r.size)
		}
		last[at.Epoch] = at.Index
	}
	if last[0] < r.size || last[2] <= r.size {
		t.Errorf("the copy ends at %v", last)
	}
	if left, err := filepath.Glob(r.file("data", "*.part")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
