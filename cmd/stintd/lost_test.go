package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// lost is an installation whose step-ca loses its database after certificates were revoked.
type lost struct {
	*site

	d     *daemon
	ca    *servertest.StepCA
	ended map[string]certified // revoked before, by the lease
}

func newLost(t *testing.T, validity time.Duration) lost {
	t.Helper()
	l := lost{ca: servertest.StartStepCA(t, servertest.StepCAOptions{CRLValidity: validity}), ended: map[string]certified{}}
	l.site = newSite(t, "", remoteCA(t, l.ca), catalog(limits{}, remoteRole))
	l.d = l.start(t)
	task := declare(t, l.agent(t, agentPath), 10*time.Minute, remoteRole)
	for range 3 {
		cred := issue(t, task, remoteRole)
		l.ended[cred.Lease.GetName()] = certificateOf(t, cred)
	}
	l.completes(t, task, len(l.ended))
	l.accepted(t, false)
	return l
}

// completes expects every end to be claimed with the CRL.
func (l lost) completes(t *testing.T, task *agent.Task, n int) {
	t.Helper()
	done, err := task.Complete(t.Context(), 30*time.Second)
	sum := done.GetTask().GetTeardown()
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSED || int(sum.GetByProof()[string(plugins.OnCRL)]) != n {
		t.Fatalf("complete: %v, %v", done, err)
	}
}

// accepted expects that a service which fetches the CRL accepts what was revoked, or refuses it.
func (l lost) accepted(t *testing.T, want bool) { //revive:disable-line:flag-parameter // what is expected
	t.Helper()
	service := verifier{fetch: l.ca.CRL}
	for name, c := range l.ended {
		if got := service.accepts(t, c); got != want {
			t.Errorf("%s is accepted: %t, want %t", name, got, want)
		}
	}
}

// TestStepCALosesItsDatabase lets step-ca forget its revocations under a running broker: services accept again what was
// revoked. The broker sees it by the CRL's number, and revokes again. An end is claimed only with the serial in the CRL as it is
// served.
func TestStepCALosesItsDatabase(t *testing.T) {
	t.Parallel()
	l := newLost(t, 9*time.Second)
	task := declare(t, l.agent(t, agentPath), 10*time.Minute, remoteRole)
	cred := issue(t, task, remoteRole)
	l.ca.RestartEmpty(t)
	l.completes(t, task, 1)
	if !lists(l.ca.CRL(t), certificateOf(t, cred).chain[0]) {
		t.Error("an end was claimed, and step-ca's CRL does not have the serial")
	}
	l.d.says(t, `"msg":"what step-ca had lost is revoked again"`)
	l.accepted(t, false)
	l.completes(t, again(t, l.site), 1)
	if found := l.differences(t, &stintv1.ReconcileRequest{}); len(found) != 0 {
		t.Errorf("reconcile finds %v", found)
	}
}

// again issues one more certificate, for a task of its own.
func again(t *testing.T, s *site) *agent.Task {
	t.Helper()
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, remoteRole)
	issue(t, task, remoteRole)
	return task
}

// TestStepCAWasLostMeanwhile lets step-ca forget its revocations while the broker is stopped, so that it cannot see it by the
// CRL. It compares with the ledger soon after its start, and revokes again what the CRL has lost, without being told to.
func TestStepCAWasLostMeanwhile(t *testing.T) {
	t.Parallel()
	l := newLost(t, time.Minute)
	l.d.stop(t)
	l.ca.RestartEmpty(t)
	l.accepted(t, true)
	d := l.start(t)
	d.says(t, "a backend held what should not be alive; it was ended")
	l.endedAgain(t)
	l.accepted(t, false)
	if found := l.differences(t, &stintv1.ReconcileRequest{}); len(found) != 0 {
		t.Errorf("reconcile finds %v", found)
	}
}

// endedAgain expects a record with proof for every certificate that was revoked before.
func (l lost) endedAgain(t *testing.T) {
	t.Helper()
	for name := range l.ended {
		l.record(t, `"event":"stray.ended"`, `"kind":"crl"`, strings.TrimPrefix(name, "leases/"))
	}
}

// TestEmbeddedCRLWasLost takes away the CRL file of the embedded CA while the broker is stopped. The next start is loud, and
// revokes again what the ledger has as revoked.
func TestEmbeddedCRLWasLost(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, certRole)
	cred := issue(t, task, certRole)
	if done, err := task.Complete(t.Context(), 30*time.Second); err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSED {
		t.Fatalf("complete: %v, %v", done, err)
	}
	d.stop(t)
	if err := os.Remove(s.file("data", "ca", "internal", "crl.der")); err != nil {
		t.Fatal(err)
	}
	d = s.start(t)
	d.says(t, "revocation state lost")
	s.record(t, `"event":"stray.ended"`, `"kind":"crl"`, strings.TrimPrefix(cred.Lease.GetName(), "leases/"))
	leaf := certificateOf(t, cred).chain[0]
	eventually(t, 10*time.Second, func() error { // until it is served
		if !s.revocations(t, "stepca/internal").holds(leaf) {
			return errNotYet
		}
		return nil
	})
}

// differences compares what step-ca holds with the ledger.
func (l lost) differences(t *testing.T, req *stintv1.ReconcileRequest) []*stintv1.Difference {
	t.Helper()
	res, err := l.admin(t).Admin().Reconcile(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return res.GetInventories()[0].GetDifferences()
}
