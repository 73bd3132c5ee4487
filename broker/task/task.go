// Package task is the state machine of a declared, bounded unit of work: ACTIVE, then CLOSING, then CLOSED.
package task

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/stint-dev/stint/plugins"
)

// ID is a task's identifier, a UUIDv7 (RFC 9562).
type ID uuid.UUID

// NewID makes an ID. Its error is that of the system's source of randomness.
func NewID() (ID, error) {
	id, err := uuid.NewV7()
	return ID(id), err
}

// ParseID reads the canonical form, 36 characters.
func ParseID(s string) (ID, error) {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return ID{}, fmt.Errorf("task id %q is not a UUID", s)
	}
	return ID(id), nil
}

// String returns the canonical form.
func (id ID) String() string { return uuid.UUID(id).String() }

// MarshalText returns the canonical form.
func (id ID) MarshalText() ([]byte, error) { return uuid.UUID(id).MarshalText() }

// UnmarshalText reads the canonical form.
func (id *ID) UnmarshalText(b []byte) error {
	parsed, err := ParseID(string(b))
	*id = parsed
	return err
}

// shortAlphabet has no letters that look alike.
const shortAlphabet = "23456789abcdefghjkmnpqrstuvwxyz"

// ShortLength is how many characters a short name ends in, unless that name is taken.
const ShortLength = 4

// ShortName returns a name for people: the purpose and so many characters, at most 12, from the ID's random end.
func ShortName(purpose string, id ID, length int) string {
	n := binary.BigEndian.Uint64(id[8:])
	var b strings.Builder
	b.WriteString(purpose)
	b.WriteByte('-')
	for range length {
		b.WriteByte(shortAlphabet[n%uint64(len(shortAlphabet))])
		n /= uint64(len(shortAlphabet))
	}
	return b.String()
}

// State is where a task stands.
type State string

// The states.
const (
	Active  State = "ACTIVE"
	Closing State = "CLOSING"
	Closed  State = "CLOSED"
)

// CloseReason is why a task closed.
type CloseReason string

// The reasons.
const (
	Completed      CloseReason = "completed"
	Failed         CloseReason = "failed"
	Cancelled      CloseReason = "cancelled"
	Expired        CloseReason = "expired"
	Abandoned      CloseReason = "abandoned"
	Stopped        CloseReason = "stopped"
	AgentSuspended CloseReason = "agent_suspended"
)

// Grant is the decision about one role of a task.
type Grant struct {
	Role     string            `json:"role"`
	TTL      time.Duration     `json:"ttl"` // of each credential, in nanoseconds
	Params   map[string]string `json:"params,omitempty"`
	Policies []string          `json:"policies,omitempty"`
	Exposure plugins.Exposure  `json:"exposure"`
}

// Summary counts how the leases of a task ended.
type Summary struct {
	Leases         int                   `json:"leases"`
	Final          int                   `json:"final"`
	ByProof        map[plugins.Proof]int `json:"by_proof,omitempty"`
	Stuck          int                   `json:"stuck"`
	UsableUntil    time.Time             `json:"usable_until,omitzero"`
	UncheckedUntil time.Time             `json:"unchecked_until,omitzero"`
}

// Task is a declared, bounded unit of work. It is a value: the ledger holds the truth.
type Task struct {
	ID          ID                `json:"id"`
	ShortName   string            `json:"short_name"`
	Agent       string            `json:"agent"` // SPIFFE ID
	Profile     string            `json:"profile"`
	Owner       string            `json:"owner"`
	Sponsor     string            `json:"sponsor"`
	Purpose     string            `json:"purpose"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Grants      []Grant           `json:"grants,omitempty"`

	State       State         `json:"state"`
	CloseReason CloseReason   `json:"close_reason,omitempty"`
	NotAfter    time.Time     `json:"not_after"`
	IdleTimeout time.Duration `json:"idle_timeout,omitempty"`
	CreatedAt   time.Time     `json:"created_at"`
	ClosingAt   time.Time     `json:"closing_at,omitzero"`
	ClosedAt    time.Time     `json:"closed_at,omitzero"`
	// LastSeen is when the agent was heard of, as it was last written: now and then, and not at every call.
	LastSeen time.Time `json:"last_seen,omitzero"`
	// NextAt is when the task is looked at again: its deadline, or earlier when it may be idle. Zero once CLOSING.
	NextAt time.Time `json:"next_at,omitzero"`

	ManifestHash Hash   `json:"manifest_hash"`
	RequestID    string `json:"request_id"`
	RequestHash  Hash   `json:"request_hash"`
	PolicySet    string `json:"policy_set"`
	// Record is the index of the audit record of the declaration.
	Record  int64   `json:"record"`
	Summary Summary `json:"summary"` // as of CLOSED; zero before
}

// ErrState is returned for a transition that the state does not allow.
var ErrState = errors.New("task is not in the state for this")

// Close begins the end. The caller commits the result on the condition that the task is still ACTIVE.
func (t Task) Close(now time.Time, why CloseReason) (Task, error) {
	if t.State != Active {
		return t, fmt.Errorf("close a task that is %s: %w", t.State, ErrState)
	}
	t.State, t.CloseReason, t.ClosingAt, t.NextAt = Closing, why, now, time.Time{}
	return t, nil
}

// Finish ends the task: every lease is final, and sum says how.
func (t Task) Finish(now time.Time, sum Summary) (Task, error) {
	if t.State != Closing {
		return t, fmt.Errorf("finish a task that is %s: %w", t.State, ErrState)
	}
	if sum.Final != sum.Leases {
		return t, fmt.Errorf("finish a task with %d of %d leases final: %w", sum.Final, sum.Leases, ErrState)
	}
	t.State, t.ClosedAt, t.Summary = Closed, now, sum
	return t, nil
}

// Grant returns the decision about a role.
func (t Task) Grant(role string) (Grant, bool) {
	for _, g := range t.Grants {
		if g.Role == role {
			return g, true
		}
	}
	return Grant{}, false
}
