package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// TestClosedLine: what ended where it is used, or is on a CRL, needs no more words; of the rest the line says until when it could work.
func TestClosedLine(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	never := time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
	lease := func(proof string, usable time.Time) *stintv1.Lease {
		return &stintv1.Lease{State: stintv1.LeaseState_LEASE_STATE_REVOKED, Proof: proof, UsableUntil: timestamppb.New(usable)}
	}
	for name, tt := range map[string]struct {
		leases []*stintv1.Lease
		want   string // "" for nothing
	}{
		"seen":           {[]*stintv1.Lease{lease("read_back", now.Add(-time.Second)), lease("crl", now.Add(time.Minute))}, ""},
		"swept":          {[]*stintv1.Lease{lease("read_back", now), lease("swept", now.Add(time.Hour))}, "not seen to end where it is used, usable until 11:00:00Z at worst"},
		"gone at Consul": {[]*stintv1.Lease{lease("lost_at_backend", never), lease("swept", now.Add(time.Hour))}, "not seen to end where it is used, usable without a known end"},
	} {
		task := &stintv1.Task{State: stintv1.TaskState_TASK_STATE_CLOSED, ShortName: "t-7f3k", Teardown: &stintv1.TeardownSummary{Leases: 2, Final: 2}}
		got := closedLine(&stintv1.CompleteTaskResponse{Task: task, Leases: tt.leases}, now)
		if tt.want == "" && strings.Contains(got, "usable") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
