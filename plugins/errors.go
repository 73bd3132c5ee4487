package plugins

import (
	"errors"
	"fmt"
)

// Sentinels that plugins wrap with %w. An error MUST NOT hold a request, a response, a token or a DSN.
var (
	// ErrUnavailable: the backend cannot answer now (unreachable, sealed, overloaded). Trying later may help.
	ErrUnavailable = errors.New("backend unavailable")
	// ErrSealed is an ErrUnavailable: the backend answers, and says that it is locked until somebody opens it.
	ErrSealed = fmt.Errorf("%w: sealed", ErrUnavailable)
	// ErrMisconfigured: the backend refuses what an operator set up. Only an operator can mend it.
	ErrMisconfigured = errors.New("backend misconfigured")
	// ErrNotIssued: certainly nothing was made. Issue wraps it beside one of the others.
	ErrNotIssued = errors.New("nothing was issued")
	// ErrNotProven: the backend answered, and the answer does not prove the end.
	ErrNotProven = errors.New("end not proven")
	// ErrUnknownHandle: the handle was not made by this backend, or is damaged.
	ErrUnknownHandle = errors.New("unknown handle")
	// ErrGone: the backend, asked for what it knew before, says that it is gone.
	ErrGone = errors.New("gone at the backend")
	// ErrInvalidRole: CheckRole refuses the role.
	ErrInvalidRole = errors.New("invalid role")
)

// RejectedError says that the caller's own input (a CSR, a parameter) was refused and why. Its text is sent to the
// caller. Nothing was issued.
type RejectedError struct {
	Field   string // "csr", "parameters.ip"
	Problem string // "RSA key of 1024 bits; allowed are P-256, P-384, Ed25519, RSA 2048 to 4096"
}

// Error returns the field and the problem.
func (e *RejectedError) Error() string { return e.Field + ": " + e.Problem }

// Is makes a rejection count as ErrNotIssued.
func (*RejectedError) Is(target error) bool { return target == ErrNotIssued }
