package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// hundreds is an installation with a Vault of its own, whose one-time passwords and certificates are issued by the hundred.
type hundreds struct {
	*site

	vault *vaulttest.Fixture
}

// many issues n one-time passwords and n certificates for a new task.
func (h hundreds) many(t *testing.T, n int) (*agent.Task, []*agent.Credential) {
	t.Helper()
	task := declare(t, h.agent(t, agentPath), 10*time.Minute, otpRole, certRole)
	out := make([]*agent.Credential, 2*n)
	var g errgroup.Group
	g.SetLimit(8)
	for i := range out {
		g.Go(func() error {
			var err error
			out[i], err = task.Issue(t.Context(), []string{otpRole, certRole}[i%2], agent.IssueOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return task, out
}

// gone fails the test unless nothing of these works.
func (h hundreds) gone(t *testing.T, issued []*agent.Credential) {
	t.Helper()
	if left := h.vault.Leases(t, "ssh/creds/stint-otp"); len(left) != 0 {
		t.Errorf("Vault has %d leases left", len(left))
	}
	crl := h.revocations(t, "stepca/internal")
	for _, c := range issued {
		if c.Certificate != nil && !crl.holds(c.Certificate.Chain[0]) {
			t.Errorf("the certificate of %s is not on the CRL", c.Lease.GetName())
		}
	}
}

// TestHundreds completes a task with 100 Vault leases and 100 certificates: none is left, and the summary says how each
// was proven. With Vault down, another says that it is closing, what is still usable, until when, and what is waited
// for; it finishes by itself when Vault is back.
func TestHundreds(t *testing.T) {
	t.Parallel()
	server := servertest.StartVault(t, servertest.VaultOptions{OnDisk: true})
	f := vaulttest.Setup(t, server)
	f.SSH(t)
	auth, _ := tokenAuth(t, f)
	h := hundreds{vault: f, site: newSite(t, "", vaultBackend(server, auth)+embeddedCA, catalog(limits{}, otpRole, certRole))}
	h.start(t)

	task, issued := h.many(t, 100)
	done, err := task.Complete(t.Context(), time.Minute)
	sum := done.GetTask().GetTeardown()
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSED || sum.GetFinal() != 200 ||
		sum.GetByProof()[string(plugins.ReadBack)] != 100 || sum.GetByProof()[string(plugins.OnCRL)] != 100 {
		t.Fatalf("completed: %v, %v, %v", done.GetTask().GetState(), sum, err)
	}
	h.gone(t, issued)
	h.unchecked(t, task, issued, sum)

	task, issued = h.many(t, 100)
	server.Kill(t)
	done, err = task.Complete(t.Context(), 3*time.Second)
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSING {
		t.Fatalf("completed with Vault down: %v, %v", done.GetTask().GetState(), err)
	}
	h.stillUsable(t, task, 100)
	server.Restart(t)
	h.allClosed(t, h.admin(t))
	h.gone(t, issued)
}

// unchecked expects the summary to say until when services that read no CRL accept the certificates: over the API, in the
// record of the closed task, and in its receipt, there for each certificate too.
func (h hundreds) unchecked(t *testing.T, task *agent.Task, issued []*agent.Credential, sum *stintv1.TeardownSummary) {
	t.Helper()
	var last time.Time
	for _, c := range issued {
		if c.Certificate != nil && c.Certificate.Chain[0].NotAfter.After(last) {
			last = c.Certificate.Chain[0].NotAfter
		}
	}
	if got := sum.GetUncheckedUntil().AsTime(); !got.Equal(last) {
		t.Errorf("the summary says that who reads no CRL accepts a certificate until %s, and the last ends %s", got, last)
	}
	h.record(t, `"event":"task.closed"`, strings.TrimPrefix(task.Name(), "tasks/"), `"unchecked_until":"`+last.UTC().Format(time.RFC3339))
	h.receipt(t, task, issued, last)
}

// receipt expects the receipt of a closed task to verify, and to say until when services that read no CRL accept each of its
// certificates, and the last of them.
func (h hundreds) receipt(t *testing.T, task *agent.Task, issued []*agent.Credential, last time.Time) {
	t.Helper()
	answer, err := h.agent(t, agentPath).Audit().GetReceipt(t.Context(), &stintv1.GetReceiptRequest{Task: task.Name()})
	if err != nil {
		t.Fatal(err)
	}
	report, err := audit.VerifyReceipt(answer.GetJson(), h.key)
	if err != nil || !report.Closed {
		t.Errorf("the receipt: closed %t, %v", report.Closed, err)
	}
	said := false
	for line := range bytes.Lines(answer.GetJson()) { // a record is on one
		said = said || bytes.Contains(line, []byte(`\"event\":\"task.closed\"`)) &&
			bytes.Contains(line, []byte(`\"unchecked_until\":\"`+last.UTC().Format(time.RFC3339)))
	}
	if !said {
		t.Errorf("the receipt's summary does not say that who reads no CRL accepts a certificate until %s", last)
	}
	until := map[string]time.Time{}
	for _, l := range report.Leases {
		if l.Proof != nil {
			until["leases/"+l.Lease] = l.Proof.UncheckedUntil
		}
	}
	for _, c := range issued {
		var want time.Time
		if c.Certificate != nil {
			want = c.Certificate.Chain[0].NotAfter
		}
		if got, ok := until[c.Lease.GetName()]; !ok || !got.Equal(want) {
			t.Errorf("the receipt says of %s until %s, want %s", c.Lease.GetName(), got, want)
		}
	}
}

// stillUsable reads what a task that is closing says of the leases that Vault still holds.
func (h hundreds) stillUsable(t *testing.T, task *agent.Task, open int) {
	t.Helper()
	var got *stintv1.Task
	var leases []*stintv1.Lease
	client := h.agent(t, agentPath)
	eventually(t, time.Minute, func() error {
		var err error
		if got, err = client.Tasks().GetTask(t.Context(), &stintv1.GetTaskRequest{Name: task.Name()}); err != nil {
			return err
		}
		answer, err := client.Credentials().ListLeases(t.Context(), &stintv1.ListLeasesRequest{Task: task.Name(), PageSize: 200})
		if leases = answer.GetLeases(); err == nil && slices.ContainsFunc(leases, func(l *stintv1.Lease) bool {
			return l.GetState() == stintv1.LeaseState_LEASE_STATE_REVOKING && l.GetLastError() == ""
		}) {
			err = errNotYet
		}
		return err
	})
	if until := got.GetTeardown().GetUsableUntil(); !until.AsTime().After(time.Now()) {
		t.Errorf("the task says that nothing is usable after %v", until.AsTime())
	}
	h.waited(t, leases, open)
}

// waited looks at what the leases say that Vault still holds, and holds it against the ledger.
func (h hundreds) waited(t *testing.T, leases []*stintv1.Lease, open int) {
	t.Helper()
	waiting := 0
	for _, l := range leases {
		if l.GetState() == stintv1.LeaseState_LEASE_STATE_REVOKED {
			continue
		}
		waiting++
		if l.GetLastError() != plugins.ErrUnavailable.Error() || l.GetNextAttempt() == nil || l.GetNotAfter() == nil {
			t.Errorf("lease %s of %s is %v: last error %q, next attempt %v", l.GetName(), l.GetRole(), l.GetState(), l.GetLastError(), l.GetNextAttempt())
		}
	}
	if inLedger := h.site.ledger(t).open(); waiting != open || inLedger != open {
		t.Errorf("%d leases are waited for, the ledger has %d open; want %d", waiting, inLedger, open)
	}
	for _, l := range h.site.ledger(t).leases {
		if l.Role == certRole && l.State != lease.Revoked {
			t.Errorf("a certificate waits for Vault: %s", l.State)
		}
	}
}

// TestPostgresDown completes a task while one of two databases behind one mount of Vault is down. Its one-time passwords, its
// certificates and its users of the other database end at once; those of the dead one, when it is back. So many wait for it
// that its lane is held.
func TestPostgresDown(t *testing.T) {
	t.Parallel()
	server, pg, other := servertest.StartVault(t, servertest.VaultOptions{}), servertest.StartPostgres(t), servertest.StartPostgres(t)
	f := vaultFor(t, server, pg)
	f.OtherDatabase(t, other, "stint-slow")
	auth, _ := tokenAuth(t, f)
	h := hundreds{vault: f, site: newSite(t, "", vaultBackend(server, auth)+embeddedCA, catalog(limits{}, dbRole, slowRole, otpRole, certRole))}
	h.start(t)
	task := declare(t, h.agent(t, agentPath), 10*time.Minute, dbRole, slowRole, otpRole, certRole)
	for range 40 {
		issue(t, task, dbRole)
	}
	for range 4 {
		for _, role := range []string{slowRole, otpRole, certRole} {
			issue(t, task, role)
		}
	}
	pg.Stop(t)
	done, err := task.Complete(t.Context(), 5*time.Second)
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSING {
		t.Errorf("completed with PostgreSQL down: %v, %v", done.GetTask().GetState(), err)
	}
	eventually(t, 20*time.Second, func() error {
		for _, l := range h.site.ledger(t).leases {
			waits := l.State == lease.Revoking && l.LastError == plugins.ErrUnavailable.Error()
			if l.State.Final() == (l.Role == dbRole) || waits != (l.Role == dbRole) {
				return h.unfinished(t)
			}
		}
		return nil
	})
	if n := users(t, other, "v-%"); n != 0 {
		t.Errorf("the database that answers has %d users left", n)
	}
	pg.Restart(t)
	h.allClosed(t, h.admin(t))
	if n := users(t, pg, "v-%"); n != 0 {
		t.Errorf("PostgreSQL has %d users left", n)
	}
}
