package stop

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// rows answers what a Stop lists, newest first, as a store does.
type rows struct {
	ledger.Rows

	tasks  []task.Task
	leases []lease.Lease
	asked  []ledger.TaskFilter
}

func (r *rows) ListTasks(f ledger.TaskFilter) ([]task.Task, error) {
	r.asked = append(r.asked, f)
	return r.tasks[min(len(r.tasks), (len(r.asked)-1)*f.Limit):min(len(r.tasks), len(r.asked)*f.Limit)], nil
}

func (r *rows) ListLeases(f ledger.LeaseFilter) ([]lease.Lease, error) {
	var out []lease.Lease
	for _, l := range r.leases {
		if (f.Task == task.ID{} || l.Task == f.Task) && (f.Role == "" || l.Role == f.Role) && !l.State.Final() {
			out = append(out, l)
		}
	}
	return out, nil
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for want, target := range map[string]Target{
		"all": {Kind: All},
		"tasks/01000000-0000-0000-0000-000000000000": {Kind: Task, Task: task.ID{1}},
		"agents/spiffe://example.org/a":              {Kind: Agent, Name: "spiffe://example.org/a"},
		"profiles/p":                                 {Kind: Profile, Name: "p"},
		"roles/r":                                    {Kind: Role, Name: "r"},
		"backends/vault/prod":                        {Kind: Backend, Name: "vault/prod"},
	} {
		if got := target.String(); got != want {
			t.Errorf("%+v is %q, want %q", target, got, want)
		}
	}
}

// Every page is chosen once, and only what matches is counted.
func TestPages(t *testing.T) {
	t.Parallel()
	r := &rows{}
	for n := range 2*taskPage + 3 {
		row := task.Task{ID: task.ID{byte(n), byte(n >> 8)}, State: task.Active, Profile: []string{"p", "q"}[n%2]}
		r.tasks = append(r.tasks, row)
		r.leases = append(r.leases, lease.Lease{ID: lease.ID(row.ID), Task: row.ID, State: lease.Active})
	}
	s := New(Target{Kind: Profile, Name: "q"})
	pages := 1
	for more := true; more; pages++ {
		var err error
		if more, err = s.Look(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Progress(time.Now()); pages != 4 || got.Tasks != taskPage+1 || got.Leases != taskPage+1 || got.Open != taskPage+1 {
		t.Errorf("%d pages, %+v", pages-1, got)
	}
	if last := r.asked[len(r.asked)-1]; last.Before != r.tasks[2*taskPage-1].ID {
		t.Errorf("the last page was asked for with %+v", last)
	}
}

// The count is of what may still work: until its own end, or the end that a backend stated, whichever is known.
func TestCount(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(m int) time.Time { return now.Add(time.Duration(m) * time.Minute) }
	r := &rows{leases: []lease.Lease{
		{ID: lease.ID{1}, State: lease.Active, NotAfter: at(5), Exposure: plugins.Exposure{UntilExpiry: true}},
		{ID: lease.ID{2}, State: lease.Lapsing, NotAfter: at(9), UsableUntil: at(7)},
		{ID: lease.ID{3}, State: lease.Revoking, Stuck: true},
		{ID: lease.ID{4}, State: lease.Intent, NotAfter: at(1)},
		{ID: lease.ID{5}, State: lease.Active, NotAfter: at(1), UsableUntil: plugins.NoEnd()},
	}}
	s := New(Target{Kind: Role, Name: ""})
	if _, err := s.Look(r); err != nil {
		t.Fatal(err)
	}
	wantProgress(t, s, now, Progress{Leases: 5, Open: 5, Stuck: 1, Unbounded: 2, UsableUntil: at(7), UncheckedUntil: at(5)})

	s.count.settle(lease.Lease{ID: lease.ID{1}, State: lease.Revoked, Proof: plugins.OnCRL, UsableUntil: now, UncheckedUntil: at(5)})
	s.count.settle(lease.Lease{ID: lease.ID{2}, State: lease.Lapsed, Proof: plugins.Lapsed, RevokedAt: at(7), UsableUntil: at(7)})
	s.count.settle(lease.Lease{ID: lease.ID{3}, State: lease.Disclosed, Proof: plugins.Disclosed, UsableUntil: plugins.NoEnd()})
	wantProgress(t, s, at(2), Progress{
		Leases: 5, Open: 2, Unbounded: 1, UsableUntil: at(7), UncheckedUntil: at(5),
		ByProof: map[plugins.Proof]int{plugins.OnCRL: 1, plugins.Lapsed: 1, plugins.Disclosed: 1},
	})
	s.count.settle(lease.Lease{ID: lease.ID{4}, State: lease.Revoked, Proof: plugins.Swept, UsableUntil: at(1)})
	wantProgress(t, s, at(0), Progress{
		Leases: 5, Open: 1, Unbounded: 1, Unseen: 1, UsableUntil: at(7), UncheckedUntil: at(5),
		ByProof: map[plugins.Proof]int{plugins.OnCRL: 1, plugins.Lapsed: 1, plugins.Disclosed: 1, plugins.Swept: 1},
	})
	s.count.settle(lease.Lease{ID: lease.ID{5}, State: lease.Revoked, Proof: plugins.ReadBack, RevokedAt: at(8), UsableUntil: at(8)})
	wantProgress(t, s, at(8), Progress{
		Leases: 5, ByProof: map[plugins.Proof]int{plugins.OnCRL: 1, plugins.Lapsed: 1, plugins.Disclosed: 1, plugins.Swept: 1, plugins.ReadBack: 1},
	})
}

func wantProgress(t *testing.T, s *Stop, now time.Time, want Progress) {
	t.Helper()
	if want.ByProof == nil {
		want.ByProof = map[plugins.Proof]int{}
	}
	if diff := cmp.Diff(want, s.Progress(now)); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}
