// Package lease is the state machine of one issued credential's tracking record. The credential itself is never in it.
package lease

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// IssueTimeout is the hard end of an issue call, preparing included.
const IssueTimeout = 10 * time.Second

// ID is a lease's identifier, a UUIDv7, written as 32 upper-case hex digits.
type ID = plugins.LeaseID

// NewID makes an ID. Its error is that of the system's source of randomness.
func NewID() (ID, error) {
	id, err := uuid.NewV7()
	return ID(id), err
}

// ParseID reads 32 hex digits; lower case and dashes are accepted.
func ParseID(s string) (ID, error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != 16 || len(s) > 36 {
		return ID{}, fmt.Errorf("lease id %q is not 32 hex digits", s)
	}
	return ID(raw), nil
}

// State is where a lease stands.
type State string

// The states. REVOKED, LAPSED and DISCLOSED are final.
const (
	Intent    State = "INTENT"
	Active    State = "ACTIVE"
	Revoking  State = "REVOKING"
	Revoked   State = "REVOKED"
	Lapsing   State = "LAPSING"
	Lapsed    State = "LAPSED"
	Disclosed State = "DISCLOSED"
)

// Final reports whether nothing more happens to a lease in this state.
func (s State) Final() bool { return s == Revoked || s == Lapsed || s == Disclosed }

// Cause is why the end of a lease was asked for.
type Cause string

// The causes.
const (
	TaskClosed  Cause = "task_closed"
	Expired     Cause = "expired"
	Requested   Cause = "requested"
	RoleRemoved Cause = "role_removed"
	// BackendRemoved: it is not configured any more.
	BackendRemoved Cause = "backend_removed"
	Stopped        Cause = "stopped"        // by an operator, with everything of its role or backend
	Missing        Cause = "missing"        // it was found to be gone at its backend
	Unreleased     Cause = "unreleased"     // its answer came too late, or was never committed
	IntentExpired  Cause = "intent_expired" // it was never heard whether anything was issued
)

// Lease tracks one credential. It is a value: the ledger holds the truth.
type Lease struct {
	ID       ID               `json:"-"`
	Task     task.ID          `json:"task"`
	TaskName string           `json:"task_name"`
	Agent    string           `json:"agent"`
	Role     string           `json:"role"`
	Backend  string           `json:"backend"`
	Lane     string           `json:"lane"` // what fails together: "vault/prod database/creds/stint-orders-ro"
	State    State            `json:"state"`
	Ends     plugins.Ends     `json:"ends"`
	Exposure plugins.Exposure `json:"exposure"`

	Handle      plugins.Handle    `json:"handle"`
	PublicRef   string            `json:"public_ref,omitempty"`
	Params      map[string]string `json:"params,omitempty"`
	RequestID   string            `json:"request_id"`
	RequestHash task.Hash         `json:"request_hash"`
	// Chain and Bundle are a certificate's, kept so that a lost answer can be given again. They are public.
	Chain  [][]byte `json:"chain,omitempty"`
	Bundle [][]byte `json:"bundle,omitempty"`

	CreatedAt time.Time `json:"created_at"`
	// NotAfter is the credential's own end; of an intent, the latest it could have. Zero where there is none.
	NotAfter time.Time `json:"not_after,omitzero"`
	// SweepAt is the issue deadline plus the backend's horizon: an intent is never swept earlier.
	SweepAt time.Time `json:"sweep_at,omitzero"`

	// NextAt is when teardown looks at the lease; zero once it is final.
	NextAt time.Time `json:"next_at,omitzero"`
	// ClaimUntil fences workers: until then the lease belongs to the one who set Claim.
	ClaimUntil time.Time `json:"claim_until,omitzero"`
	// Claim counts claims. A result is written only by the holder of the newest.
	Claim     int64     `json:"claim,omitempty"`
	Cause     Cause     `json:"cause,omitempty"`
	AskedAt   time.Time `json:"asked_at,omitzero"` // when its end was asked for
	Attempts  int       `json:"attempts,omitempty"`
	LastError string    `json:"last_error,omitempty"` // without secrets
	Stuck     bool      `json:"stuck,omitempty"`
	// Uncertain is true where the lease was torn down as an intent.
	Uncertain bool `json:"uncertain,omitempty"`
	// NotIssued is true where the issue call promised that nothing was made; what was prepared still has to end.
	NotIssued bool `json:"not_issued,omitempty"`

	Proof       plugins.Proof `json:"proof,omitempty"`
	ProofDetail string        `json:"proof_detail,omitempty"`
	RevokedAt   time.Time     `json:"revoked_at,omitzero"`
	// UsableUntil is the last instant at which it could work (plugins.NoEnd: none is known). Before the end is known it is set
	// only where that may be later than NotAfter: of an intent, whose answer may be lost (plugins.Prepared), of what has
	// another end where it is used than at the backend (plugins.Credential), and of what lapses by itself.
	UsableUntil    time.Time `json:"usable_until,omitzero"`
	UncheckedUntil time.Time `json:"unchecked_until,omitzero"`
}

// ErrState is returned for a transition that the state does not allow.
var ErrState = errors.New("lease is not in the state for this")

// Activate records that the credential exists and may be handed out. The caller commits the result on the condition that
// the lease is still INTENT (or not there) and its task ACTIVE. An intent whose end was asked for meanwhile is not
// activated: its answer came too late (see [Lease.Unreleased]).
func (l Lease) Activate(c plugins.Credential) (Lease, error) {
	if l.State != Intent {
		return l, l.wrong("activate")
	}
	if !l.AskedAt.IsZero() {
		return l, fmt.Errorf("activate a lease whose end was asked for (%s): %w", l.Cause, ErrState)
	}
	l.State, l.Handle, l.PublicRef, l.NotAfter = Active, c.Handle, c.PublicRef, c.NotAfter
	l.Chain, l.Bundle, l.NextAt, l.SweepAt = c.Chain, c.Bundle, c.NotAfter, time.Time{}
	l.UsableUntil = c.UsableUntil // that of an intent was about an answer that is lost
	return l, nil
}

// Unreleased records that a credential was issued but will not be handed out, and has to end by the handle that its answer
// brought. An answer may come even after its intent was swept, when the process was frozen: the lease is then ended again.
func (l Lease) Unreleased(c plugins.Credential, now time.Time) (Lease, error) {
	swept := l.State == Revoked && l.Proof == plugins.Swept
	if l.State != Intent && l.State != Revoking && !swept {
		return l, l.wrong("drop the credential of")
	}
	if l.AskedAt.IsZero() {
		l.Cause, l.AskedAt = Unreleased, now
	}
	l.State, l.Handle, l.PublicRef, l.NotAfter = Revoking, c.Handle, c.PublicRef, c.NotAfter
	l.Uncertain, l.NextAt, l.ClaimUntil = false, now, time.Time{}
	l.Proof, l.ProofDetail, l.RevokedAt, l.UsableUntil = "", "", time.Time{}, c.UsableUntil
	l.Claim++ // whoever is sweeping the intent is working on the wrong handle
	return l, nil
}

// Nothing records that the issue call promised that nothing was made: only what was prepared has to end.
func (l Lease) Nothing(now time.Time) (Lease, error) {
	if l.State != Intent {
		return l, l.wrong("give up")
	}
	l = l.AskEnd(now, Unreleased)
	l.State, l.NotIssued, l.NextAt, l.UsableUntil = Revoking, true, now, time.Time{}
	return l, nil
}

// AskEnd records that the lease must end, from now on. An INTENT keeps its horizon. Asking twice keeps the first cause.
func (l Lease) AskEnd(now time.Time, why Cause) Lease {
	if l.State.Final() {
		return l
	}
	if l.AskedAt.IsZero() {
		l.Cause, l.AskedAt = why, now
	}
	if l.State == Active {
		l.State, l.NextAt = Revoking, now
	}
	return l
}

// Begin turns a due lease into one that is being ended, as its first claim does.
func (l Lease) Begin(now time.Time) (Lease, error) {
	switch l.State {
	case Intent:
		if now.Before(l.SweepAt) {
			return l, fmt.Errorf("sweep an intent before its horizon: %w", ErrState)
		}
		l = l.AskEnd(now, IntentExpired)
		l.State, l.Uncertain = Revoking, true
	case Active:
		l = l.AskEnd(now, Expired)
	case Revoking, Lapsing:
	case Revoked, Lapsed, Disclosed:
		return l, l.wrong("begin to end")
	}
	return l, nil
}

// End records how the lease ended, or for a Pending ending that it lapses by itself.
func (l Lease) End(e plugins.Ending) (Lease, error) {
	if l.State != Revoking && l.State != Lapsing {
		return l, l.wrong("end")
	}
	next, err := stateAfter(e.Proof)
	if err != nil {
		return l, err
	}
	if next == Lapsing && e.UsableUntil.IsZero() {
		return l, fmt.Errorf("a pending end without its instant would never be looked at again: %w", ErrState)
	}
	l.State, l.Proof, l.ProofDetail = next, e.Proof, e.Detail
	l.UsableUntil, l.UncheckedUntil = e.UsableUntil, e.UncheckedUntil
	l.Attempts, l.LastError, l.Stuck, l.ClaimUntil = 0, "", false, time.Time{}
	if next == Lapsing {
		l.NextAt = e.UsableUntil
		return l, nil
	}
	switch {
	case next == Disclosed:
		l.UsableUntil = plugins.NoEnd()
	case l.UsableUntil.IsZero():
		l.UsableUntil = e.At
	}
	l.RevokedAt, l.NextAt = e.At, time.Time{}
	return l, nil
}

// stateAfter says where a proof leads. A proof that is not one of the known kinds proves nothing.
func stateAfter(p plugins.Proof) (State, error) {
	switch p {
	case plugins.ReadBack, plugins.OnCRL, plugins.Swept, plugins.LostAtBackend, plugins.NotIssued:
		return Revoked, nil
	case plugins.Lapsed:
		return Lapsed, nil
	case plugins.Disclosed:
		return Disclosed, nil
	case plugins.Pending:
		return Lapsing, nil
	default:
		return "", fmt.Errorf("proof %q is none: %w", p, ErrState)
	}
}

// Retry records a failed attempt to end the lease and when the next one is due. The lease is stuck if its end has been
// due since before stuckSince: since it was asked for, or for one that lapses by itself, since its instant.
func (l Lease) Retry(next time.Time, why string, stuckSince time.Time) (Lease, error) {
	if l.State != Revoking && l.State != Lapsing {
		return l, l.wrong("retry")
	}
	l.Attempts++
	l.NextAt, l.LastError, l.ClaimUntil = next, why, time.Time{}
	due := l.AskedAt
	if l.State == Lapsing {
		due = l.UsableUntil
	}
	l.Stuck = due.Before(stuckSince)
	return l, nil
}

func (l Lease) wrong(what string) error {
	return fmt.Errorf("%s a lease that is %s: %w", what, l.State, ErrState)
}

// Held is what a backend is told in order to end the lease.
func (l Lease) Held() plugins.Held {
	return plugins.Held{
		Lease: l.ID, Role: l.Role, Handle: l.Handle, IssuedAt: l.CreatedAt, NotAfter: l.NotAfter,
		Uncertain: l.Uncertain, NotIssued: l.NotIssued,
	}
}

// Summarise counts how leases ended.
func Summarise(leases []Lease) task.Summary {
	sum := task.Summary{ByProof: map[plugins.Proof]int{}}
	for _, l := range leases {
		sum.Leases++
		if l.Stuck {
			sum.Stuck++
		}
		if l.State.Final() {
			sum.Final++
			sum.ByProof[l.Proof]++
		}
		until := l.UsableUntil
		if !l.State.Final() && until.IsZero() {
			until = l.NotAfter
		}
		if until.After(sum.UsableUntil) {
			sum.UsableUntil = until
		}
		if l.UncheckedUntil.After(sum.UncheckedUntil) {
			sum.UncheckedUntil = l.UncheckedUntil
		}
	}
	return sum
}
