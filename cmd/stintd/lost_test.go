package main

import (
	"maps"
	"slices"
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

func newLost(t *testing.T) lost {
	t.Helper()
	l := lost{ca: servertest.StartStepCA(t, servertest.StepCAOptions{CRLValidity: 9 * time.Second}), ended: map[string]certified{}}
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
	l := newLost(t)
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
// CRL. It compares with the ledger: what the CRL has lost is reported, and revoked again when told to.
func TestStepCAWasLostMeanwhile(t *testing.T) {
	t.Parallel()
	l := newLost(t)
	l.d.stop(t)
	l.ca.RestartEmpty(t)
	l.accepted(t, true)
	l.start(t)
	var found []*stintv1.Difference
	eventually(t, 30*time.Second, func() error { // until the broker has fetched the CRL
		if found = l.differences(t, &stintv1.ReconcileRequest{}); len(found) == 0 {
			return errNotYet
		}
		return nil
	})
	var names []string
	for _, d := range found {
		names = append(names, d.GetLease().GetName())
		if d.GetKind() != stintv1.DifferenceKind_DIFFERENCE_KIND_ENDED_ALIVE {
			t.Errorf("%v", d)
		}
	}
	if slices.Sort(names); !slices.Equal(names, slices.Sorted(maps.Keys(l.ended))) {
		t.Errorf("reconcile finds %v, want %v", names, l.ended)
	}
	l.differences(t, &stintv1.ReconcileRequest{RevokeUnknown: true})
	l.accepted(t, false)
	l.record(t, `"event":"stray.ended"`, `"kind":"crl"`)
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
