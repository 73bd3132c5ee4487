package audit

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker/task"
)

// ErrReceipt means that a receipt does not verify. The error is a *Faults that says where.
var ErrReceipt = errors.New("receipt does not verify")

// ErrLog means that a log does not verify. The error is a *Faults that says where.
var ErrLog = errors.New("audit log does not verify")

// Whole is the index of a fault that concerns the whole document or log, not one record.
const Whole int64 = -1

// Fault is one thing that is wrong.
type Fault struct {
	Index   int64  `json:"index"` // of the record, or Whole
	Problem string `json:"problem"`
}

// String names the record and the problem.
func (f Fault) String() string {
	if f.Index == Whole {
		return f.Problem
	}
	return fmt.Sprintf("record %d: %s", f.Index, f.Problem)
}

// Faults is the error of a verification: everything that was found wrong.
type Faults struct { //nolint:errname // it is a list of faults; an error a fault would not name them all
	What error // ErrReceipt or ErrLog
	List []Fault
}

// Error names every fault, up to ten.
func (f *Faults) Error() string {
	const most = 10
	said := make([]string, 0, most+1)
	for i, x := range f.List {
		if i == most {
			said = append(said, fmt.Sprintf("and %d more", len(f.List)-most))
			break
		}
		said = append(said, x.String())
	}
	return f.What.Error() + ": " + strings.Join(said, "; ")
}

// Unwrap returns ErrReceipt or ErrLog.
func (f *Faults) Unwrap() error { return f.What }

// Report is what a receipt says about a task. It is told only from records that verified.
type Report struct {
	Task     string     `json:"task"`
	TaskName string     `json:"task_name"`
	Agent    string     `json:"agent"`
	Owner    string     `json:"owner,omitempty"`
	Sponsor  string     `json:"sponsor,omitempty"`
	Purpose  string     `json:"purpose"`
	Manifest *task.Hash `json:"manifest,omitempty"`

	Origin  string `json:"origin"` // the log's name
	Size    int64  `json:"size"`   // of the log at the checkpoint
	Records int    `json:"records"`
	// Restores are the epochs that began while the task was open: the log went on from an older copy, so that records of
	// the task from just before then may be lost, with credentials that they told of.
	Restores []Epoch `json:"restores,omitempty"`
	// Texts is how many free texts are shown, Erased how many only their hash is left of.
	Texts  int `json:"texts"`
	Erased int `json:"erased"`

	DeclaredAt  time.Time `json:"declared_at,omitzero"`
	Closed      bool      `json:"closed"`
	ClosedAt    time.Time `json:"closed_at,omitzero"`
	CloseReason string    `json:"close_reason,omitempty"`
	// Leases are all that the task was given, in the order in which they began.
	Leases []LeaseReport `json:"leases"`

	Faults []Fault `json:"faults,omitempty"`
}

// LeaseReport is what a receipt says about one lease.
type LeaseReport struct {
	Lease   string `json:"lease"`
	Role    string `json:"role"`
	Backend string `json:"backend"`
	Ref     string `json:"ref,omitempty"`
	// Issued is true where the credential was released to the agent.
	Issued bool `json:"issued"`
	Ended  bool `json:"ended"`
	// Proof is how the end is known; nil while there is none.
	Proof *Proof `json:"proof,omitempty"`
}

// Open returns how many leases the receipt shows no end of.
func (r *Report) Open() int {
	n := 0
	for _, l := range r.Leases {
		if !l.Ended {
			n++
		}
	}
	return n
}

// lease returns the entry of a lease, which it adds if it is new.
func (r *Report) lease(rec *Record) *LeaseReport {
	for i := range r.Leases {
		if r.Leases[i].Lease == rec.Lease {
			return &r.Leases[i]
		}
	}
	r.Leases = append(r.Leases, LeaseReport{Lease: rec.Lease, Role: rec.Role, Backend: rec.Backend})
	return &r.Leases[len(r.Leases)-1]
}

// fault notes what is wrong.
func (r *Report) fault(index int64, format string, args ...any) {
	r.Faults = append(r.Faults, Fault{Index: index, Problem: fmt.Sprintf(format, args...)})
}
