// Package stop is the choice and the count of the kill switch: which tasks and leases are everything of a task, an agent, a
// profile, a role, a backend, or of everybody, and what has become of them. It ends nothing by itself: package teardown
// does, as it ends everything.
package stop

import (
	"errors"
	"slices"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/broker/teardown"
)

// Kind is what an order names.
type Kind string

// The kinds. Tasks, agents, profiles and All close tasks; roles and backends end leases, and tasks stay open.
const (
	Task    Kind = "tasks"
	Agent   Kind = "agents"
	Profile Kind = "profiles"
	Role    Kind = "roles"
	Backend Kind = "backends"
	All     Kind = "all"
)

// How much one transaction closes, so that the writer is never held for long.
const (
	taskPage  = 128
	leasePage = 256
)

// Target says of what everything is meant.
type Target struct {
	Kind Kind
	// Name is the agent's SPIFFE ID, or the name of the profile, role or backend. Empty for a task and for All.
	Name string
	// Task is the task's ID.
	Task task.ID
}

// String returns the target as a resource name: "agents/spiffe://example.org/agent/a", "all".
func (t Target) String() string {
	switch t.Kind {
	case All:
		return string(All)
	case Task:
		return string(Task) + "/" + t.Task.String()
	case Agent, Profile, Role, Backend:
	}
	return string(t.Kind) + "/" + t.Name
}

// ofLeases reports whether the target is leases rather than tasks.
func (t Target) ofLeases() bool { return t.Kind == Role || t.Kind == Backend }

// Stop chooses page by page, newest first, and counts. It is used by one goroutine. What is declared or issued after its
// first page is not chosen.
type Stop struct {
	target Target
	count  count

	beforeTask  task.ID
	beforeLease lease.ID
}

// New makes a Stop that has chosen nothing yet.
func New(t Target) *Stop { return &Stop{target: t, count: newCount()} }

// page is what one step chose.
type page struct {
	tasks  []task.Task
	leases []lease.Lease // whose end is not known
	more   bool
}

// End chooses the next page and asks for its end in the caller's transaction. It returns the tasks it closed, and whether
// there may be more. After an error, or a commit that failed, the Stop is of no more use.
func (s *Stop) End(tx *ledger.Tx, cause teardown.Cause) (closed []task.ID, more bool, err error) {
	p, err := s.next(tx)
	if err != nil {
		return nil, false, err
	}
	if s.target.ofLeases() {
		return nil, p.more, teardown.EndLeases(tx, p.leases, cause)
	}
	for _, t := range p.tasks {
		switch err := teardown.Close(tx, t.ID, cause); {
		case errors.Is(err, task.ErrState): // closing already; its leases count all the same
		case err != nil:
			return nil, false, err
		default:
			closed = append(closed, t.ID)
		}
	}
	return closed, p.more, nil
}

// Look chooses the next page, changes nothing, and reports whether there may be more.
func (s *Stop) Look(r ledger.Rows) (more bool, err error) {
	p, err := s.next(r)
	return p.more, err
}

// next reads the next page and counts it.
func (s *Stop) next(r ledger.Rows) (page, error) {
	read := s.nextTasks
	if s.target.ofLeases() {
		read = s.nextLeases
	}
	p, err := read(r)
	if err != nil {
		return page{}, err
	}
	s.count.tasks += len(p.tasks)
	for _, l := range p.leases {
		s.count.add(l)
	}
	return p, nil
}

func (s *Stop) nextTasks(r ledger.Rows) (page, error) {
	listed, err := s.listTasks(r)
	if err != nil {
		return page{}, err
	}
	p := page{more: len(listed) == taskPage}
	for _, t := range listed {
		s.beforeTask = t.ID
		if t.State == task.Closed || (s.target.Kind == Profile && t.Profile != s.target.Name) {
			continue
		}
		leases, err := r.ListLeases(ledger.LeaseFilter{Task: t.ID, States: open()})
		if err != nil {
			return page{}, err
		}
		p.tasks, p.leases = append(p.tasks, t), append(p.leases, leases...)
	}
	return p, nil
}

func (s *Stop) listTasks(r ledger.Rows) ([]task.Task, error) {
	if s.target.Kind == Task {
		t, err := r.Task(s.target.Task)
		return []task.Task{t}, err
	}
	f := ledger.TaskFilter{States: []task.State{task.Active, task.Closing}, Before: s.beforeTask, Limit: taskPage}
	if s.target.Kind == Agent {
		f.Agent = s.target.Name
	}
	return r.ListTasks(f)
}

func (s *Stop) nextLeases(r ledger.Rows) (page, error) {
	f := ledger.LeaseFilter{States: open(), Before: s.beforeLease, Limit: leasePage}
	if s.target.Kind == Role {
		f.Role = s.target.Name
	}
	listed, err := r.ListLeases(f)
	if err != nil {
		return page{}, err
	}
	p := page{more: len(listed) == leasePage}
	if p.more {
		s.beforeLease = listed[len(listed)-1].ID
	}
	p.leases = slices.DeleteFunc(listed, func(l lease.Lease) bool {
		return s.target.Kind == Backend && l.Backend != s.target.Name
	})
	return p, nil
}

// open are the states of leases whose end is not known.
func open() []lease.State {
	return []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}
}
