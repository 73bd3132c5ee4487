package broker_test

import (
	"testing"
	"testing/synctest"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// TestStory is the whole story for each kind of backend: what commits it takes, that the credential works, and that it is
// gone with proof once the task is completed.
func TestStory(t *testing.T) {
	for _, tc := range []struct {
		role    string
		commits int
		proof   plugins.Proof
	}{
		{"plain", 1, plugins.ReadBack},
		{"plain-cert", 1, plugins.ReadBack},
		{"horizon", 2, plugins.ReadBack},
		{"horizon-cert", 2, plugins.ReadBack},
		{"vault", 2, plugins.ReadBack},
		{"lapsing", 1, plugins.Lapsed},
		{"static", 2, plugins.Disclosed},
	} {
		t.Run(tc.role, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				work := h.declare(tc.role)
				h.store.count()
				out := h.issue(work, tc.role)
				if n := h.store.count(); n != tc.commits {
					t.Errorf("%d commits, want %d", n, tc.commits)
				}
				if out.Lease.State != lease.Active || len(out.Checkpoint) == 0 || h.alive() != 1 || h.meter.issued != 1 {
					t.Errorf("issued %+v, %d alive", out.Lease, h.alive())
				}
				ended := h.complete(work)
				if ended.Task.Summary.ByProof[tc.proof] != 1 || ended.Leases[0].Proof != tc.proof || len(ended.Checkpoint) == 0 {
					t.Errorf("ended %+v, want the proof %s", ended.Leases, tc.proof)
				}
				endless(t, ended.Task.Summary, tc.proof)
				rec := h.recorded(audit.LeaseEnded, out.Lease.ID.String())
				if len(rec) != 1 || rec[0].Proof.Kind != tc.proof || rec[0].Proof.At.IsZero() {
					t.Errorf("records of the end: %+v", rec)
				}
				if tc.proof != plugins.Disclosed {
					h.gone()
				}
				if h.task(work.ID).CloseReason != task.Completed {
					t.Errorf("task %+v", h.task(work.ID))
				}
			})
		})
	}
}

// endless expects that what was disclosed counts as usable without end, and nothing else does.
func endless(t *testing.T, sum task.Summary, proof plugins.Proof) {
	t.Helper()
	if got := sum.UsableUntil.Equal(plugins.NoEnd()); got != (proof == plugins.Disclosed) {
		t.Errorf("ended by %s, the task says usable until %s", proof, sum.UsableUntil)
	}
}
