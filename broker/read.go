package broker

import (
	"context"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// TaskRef names a task by its ID or its short name.
type TaskRef struct {
	ID        task.ID
	ShortName string
}

// ParseTaskRef reads "tasks/<UUID>" or "tasks/<short name>"; the collection may be left out.
func ParseTaskRef(s string) (TaskRef, error) {
	s = strings.TrimPrefix(s, "tasks/")
	if id, err := task.ParseID(s); err == nil {
		return TaskRef{ID: id}, nil
	}
	if s == "" || strings.Contains(s, "/") {
		return TaskRef{}, errNotYours("task")
	}
	return TaskRef{ShortName: s}, nil
}

// findTask reads a task; with an agent, only that agent's.
func findTask(r ledger.Reader, ref TaskRef, agent string) (task.Task, error) {
	var t task.Task
	var err error
	if ref.ShortName != "" {
		t, err = r.FindTask(ledger.TaskKey{ShortName: ref.ShortName})
	} else {
		t, err = r.Task(ref.ID)
	}
	if err == nil && agent != anyAgent && t.Agent != agent {
		return task.Task{}, ledger.ErrNotFound
	}
	return t, err
}

// anyAgent is no SPIFFE ID; it stands for everybody's in reads of administrators.
const anyAgent = "*"

// Task returns one of the caller's tasks, with its teardown as it stands, and counts as hearing of its agent.
func (b *Broker) Task(ctx context.Context, c Caller, ref TaskRef) (task.Task, error) {
	t, err := b.readTask(ctx, ref, c.agent())
	b.heard(t, err)
	return t, err
}

// plainTask is Task without the teardown, which costs as much as the task has leases.
func (b *Broker) plainTask(ctx context.Context, c Caller, ref TaskRef) (task.Task, error) {
	var t task.Task
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		t, err = findTask(r, ref, c.agent())
		return err
	})
	b.heard(t, err)
	return t, storeFault(err)
}

// heard notes that the agent of a task was heard of, unless it could not be read.
func (b *Broker) heard(t task.Task, err error) {
	if err == nil && t.State == task.Active {
		b.presence.Touch(t.ID, time.Now())
	}
}

// AnyTask returns anybody's task, for administrators.
func (b *Broker) AnyTask(ctx context.Context, ref TaskRef) (task.Task, error) {
	return b.readTask(ctx, ref, anyAgent)
}

func (b *Broker) readTask(ctx context.Context, ref TaskRef, agent string) (task.Task, error) {
	var t task.Task
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		if t, err = findTask(r, ref, agent); err != nil || t.State == task.Closed {
			return err
		}
		leases, err := r.ListLeases(ledger.LeaseFilter{Task: t.ID})
		t.Summary = lease.Summarise(leases)
		return err
	})
	return t, storeFault(err)
}

// Tasks returns a page of the caller's tasks, newest first.
func (b *Broker) Tasks(ctx context.Context, c Caller, f ledger.TaskFilter) ([]task.Task, error) {
	f.Agent = c.agent()
	if f.Agent == "" {
		return nil, nil
	}
	return b.AllTasks(ctx, f)
}

// AllTasks returns a page of everybody's tasks, for administrators.
func (b *Broker) AllTasks(ctx context.Context, f ledger.TaskFilter) ([]task.Task, error) {
	var tasks []task.Task
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		tasks, err = r.ListTasks(f)
		return err
	})
	return tasks, storeFault(err)
}

// Lease returns one of the caller's leases.
func (b *Broker) Lease(ctx context.Context, c Caller, id lease.ID) (lease.Lease, error) {
	var l lease.Lease
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		if l, err = r.Lease(id); err == nil && l.Agent != c.agent() && c.Admin == "" {
			return ledger.ErrNotFound
		}
		return err
	})
	return l, storeFault(err)
}

// Leases returns a page of the caller's leases, newest first; with a task, only that task's.
func (b *Broker) Leases(ctx context.Context, c Caller, ref *TaskRef, f ledger.LeaseFilter) ([]lease.Lease, error) {
	f.Agent = c.agent()
	if f.Agent == "" {
		return nil, nil
	}
	return b.listLeases(ctx, ref, f.Agent, f)
}

// AllLeases returns a page of everybody's leases, for administrators.
func (b *Broker) AllLeases(ctx context.Context, ref *TaskRef, f ledger.LeaseFilter) ([]lease.Lease, error) {
	return b.listLeases(ctx, ref, anyAgent, f)
}

func (b *Broker) listLeases(ctx context.Context, ref *TaskRef, agent string, f ledger.LeaseFilter) ([]lease.Lease, error) {
	var leases []lease.Lease
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		if ref != nil {
			t, err := findTask(r, *ref, agent)
			if err != nil {
				return err
			}
			f.Task = t.ID
		}
		var err error
		leases, err = r.ListLeases(f)
		return err
	})
	return leases, storeFault(err)
}

// WhoIs finds the task and lease behind what was found somewhere: a lease ID or serial, a task, a database user, a
// Vault lease ID or accessor, the SPIFFE ID of a task's certificate. The lease is nil where a task was named.
func (b *Broker) WhoIs(ctx context.Context, query string) (task.Task, *lease.Lease, error) {
	var t task.Task
	var found *lease.Lease
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		l, err := lookUpLease(r, query)
		if err == nil {
			found = &l
			t, err = r.Task(l.Task)
			return err
		}
		if _, id, ok := strings.Cut(query, "/task/"); ok {
			query = id
		}
		ref, refErr := ParseTaskRef(query)
		if refErr != nil {
			return refErr
		}
		t, err = findTask(r, ref, anyAgent)
		return err
	})
	return t, found, storeFault(err)
}

func lookUpLease(r ledger.Reader, query string) (lease.Lease, error) {
	plain := strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(query, "leases/"), "serial="), ":", "")
	if id, err := lease.ParseID(plain); err == nil {
		if l, err := r.Lease(id); err == nil {
			return l, nil
		}
	}
	return r.FindLease(ledger.LeaseKey{Ref: query})
}

// Watch calls send with the task as it stands and after every change, until it is CLOSED, send fails, or ctx is done. An
// open watch counts as hearing of the agent.
func (b *Broker) Watch(ctx context.Context, c Caller, ref TaskRef, send func(task.Task) error) error {
	t, err := b.plainTask(ctx, c, ref)
	if err != nil {
		return err
	}
	changed, done := b.ledger.Subscribe(t.ID)
	defer done()
	if t.State == task.Active {
		seen := b.presence.Watch(t.ID)
		defer func() { seen(time.Now()) }()
	}
	for {
		if t, err = b.readTask(ctx, TaskRef{ID: t.ID}, c.agent()); err != nil {
			return err
		}
		if err = send(t); err != nil || t.State == task.Closed {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// LastSeen returns when the agent of a task was last heard of: by this process, or else as it was last written.
func (b *Broker) LastSeen(t task.Task) time.Time {
	if heard, ok := b.presence.Heard(t.ID, time.Now()); ok {
		return heard
	}
	return t.LastSeen
}
