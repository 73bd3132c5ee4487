package ledger

import (
	"errors"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
)

// Errors of rows. Stores wrap them with %w.
var (
	// ErrNotFound: there is no such row.
	ErrNotFound = errors.New("not in the ledger")
	// ErrExists: a unique key is taken: an ID, a short name, a request ID of the same caller and method.
	ErrExists = errors.New("already in the ledger")
	// ErrStale: a conditional update found another state than it was made for.
	ErrStale = errors.New("changed meanwhile")
)

// Tasks are the rows of tasks.
type Tasks interface {
	// Task returns a task or ErrNotFound.
	Task(id task.ID) (task.Task, error)
	// FindTask returns the task that a key names, or ErrNotFound.
	FindTask(key TaskKey) (task.Task, error)
	// InsertTask adds a task, or answers ErrExists.
	InsertTask(t task.Task) error
	// UpdateTask replaces a task if it is still in the state from, else ErrStale.
	UpdateTask(t task.Task, from task.State) error
	// ListTasks returns a page, newest first.
	ListTasks(f TaskFilter) ([]task.Task, error)
}

// TaskKey names a task by one of its unique keys: the short name, or the agent with the request ID.
type TaskKey struct {
	ShortName        string
	Agent, RequestID string
}

// TaskFilter chooses tasks. Zero fields choose all.
type TaskFilter struct {
	Agent  string
	States []task.State
	// Before continues a listing: only tasks with a smaller ID.
	Before task.ID
	Limit  int // at least 1
}

// Leases are the rows of leases.
type Leases interface {
	// Lease returns a lease or ErrNotFound.
	Lease(id lease.ID) (lease.Lease, error)
	// FindLease returns the lease that a key names, or ErrNotFound.
	FindLease(key LeaseKey) (lease.Lease, error)
	// InsertLease adds a lease, or answers ErrExists.
	InsertLease(l lease.Lease) error
	// UpdateLease replaces a lease if state and claim are still those of from, else ErrStale.
	UpdateLease(l, from lease.Lease) error
	// ListLeases returns a page, newest first.
	ListLeases(f LeaseFilter) ([]lease.Lease, error)
}

// LeaseKey names a lease: agent and request ID, or a public reference or handle found somewhere (Ref matches either, or
// a part of a handle that is at least 8 characters long, such as a Vault accessor; the newest match wins).
type LeaseKey struct {
	Agent, RequestID string
	Ref              string
}

// LeaseFilter chooses leases. Zero fields choose all.
type LeaseFilter struct {
	Task   task.ID
	Agent  string
	Role   string
	States []lease.State
	// Stuck chooses only leases whose end is overdue.
	Stuck bool
	// Before continues a listing: only leases with a smaller ID.
	Before lease.ID
	Limit  int // at least 1; for a Task filter 0 means all
}

// Queue is the database as the timer of everything that has to happen.
type Queue interface {
	// DueTasks returns the ACTIVE tasks with NextAt at or before now that are not in except, earliest first. It reads no more of
	// them, so that one that is damaged hides no other.
	DueTasks(now time.Time, limit int, except ...task.ID) ([]task.ID, error)
	// DueLeases returns non-final leases of a lane with NextAt at or before now and no claim that holds, earliest
	// first, and none of the tasks in except. Whoever works on them claims them first with UpdateLease.
	DueLeases(lane string, now time.Time, limit int, except ...task.ID) ([]lease.Lease, error)
	// DueLanes returns the lanes that have due leases.
	DueLanes(now time.Time) ([]string, error)
	// NextDue returns when the next task or lease is due (a claim counts until it ends), or the zero time.
	NextDue() (time.Time, error)
}

// Counts answer in the time of what is alive, never of history.
type Counts interface {
	// LiveTasks counts an agent's tasks that are not CLOSED.
	LiveTasks(agent string) (int, error)
	// LiveLeases counts an agent's leases that are not final.
	LiveLeases(agent string) (int, error)
	// HasOpenLeases reports whether a task has a lease that is not final. It costs the same however many there are.
	HasOpenLeases(id task.ID) (bool, error)
	// Stats counts what is alive, for metrics.
	Stats() (Stats, error)
}

// Stats counts what is alive.
type Stats struct {
	TasksByState  map[task.State]int
	LeasesByState map[lease.State]int // non-final ones
	Stuck         int
	Overdue       int       // leases with NextAt in the past: the teardown backlog
	OldestDue     time.Time // of those; zero when there are none
}

// Resources are applied documents by name ("roles/orders-db-read").
type Resources interface {
	// Resources returns all, by name.
	Resources() ([]Resource, error)
	// PutResource adds or replaces one.
	PutResource(r Resource) error
	// DeleteResource removes one, or answers ErrNotFound.
	DeleteResource(name string) error
}

// Resource is an applied document.
type Resource struct {
	Name   string // "roles/orders-db-read"
	YAML   string
	Source string // "api" or a file's name
}

// Agents are the rows of agents whose state somebody has set. An agent without a row is ACTIVE.
type Agents interface {
	// Agent returns an agent by its SPIFFE ID, or ErrNotFound.
	Agent(id string) (Agent, error)
	// PutAgent adds or replaces one.
	PutAgent(a Agent) error
	// ListAgents returns a page, by ID.
	ListAgents(f AgentFilter) ([]Agent, error)
}

// AgentState is whether an agent may call.
type AgentState string

// The states.
const (
	AgentActive    AgentState = "ACTIVE"
	AgentSuspended AgentState = "SUSPENDED"
)

// Agent is a principal, as far as it has a state of its own.
type Agent struct {
	ID    string // SPIFFE ID
	State AgentState
	Since time.Time // when the state was set
	By    string    // who set it: a SPIFFE ID, or "uid:0"
	// Record is the index of the audit record of that.
	Record int64
}

// AgentFilter chooses agents. Zero fields choose all.
type AgentFilter struct {
	State AgentState
	// After continues a listing: only agents with a greater ID.
	After string
	Limit int // at least 1
}

// Rows is everything inside one transaction.
type Rows interface { //nolint:interfacebloat // the sum of small ones
	Tasks
	Leases
	Queue
	Counts
	Resources
	Agents
}
