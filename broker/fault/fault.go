// Package fault is the one error type that leaves the broker's domain: a reason, a message for the caller, and a
// private cause for the log.
package fault

import (
	"errors"
	"time"
)

// Reason is why a call was refused. Clients match on it; the names are those of stint.v1.Reason without the prefix.
type Reason string

// The reasons. broker/server maps each to one status code, and a test walks them all.
const (
	Internal              Reason = "INTERNAL"
	Unauthenticated       Reason = "UNAUTHENTICATED"
	SVIDExpired           Reason = "SVID_EXPIRED"
	AdminRoleRequired     Reason = "ADMIN_ROLE_REQUIRED"
	AgentSuspended        Reason = "AGENT_SUSPENDED"
	NoProfile             Reason = "NO_PROFILE"
	RoleOutsideProfile    Reason = "ROLE_OUTSIDE_PROFILE"
	PurposeOutsideProfile Reason = "PURPOSE_OUTSIDE_PROFILE"
	PolicyDenied          Reason = "POLICY_DENIED"
	PolicyError           Reason = "POLICY_ERROR"
	TTLTooLong            Reason = "TTL_TOO_LONG"
	ApprovalUnavailable   Reason = "APPROVAL_UNAVAILABLE"
	RoleNotInTask         Reason = "ROLE_NOT_IN_TASK"
	TooManyTasks          Reason = "TOO_MANY_TASKS"
	TooManyLeases         Reason = "TOO_MANY_LEASES"
	InvalidArgument       Reason = "INVALID_ARGUMENT"
	CSRInvalid            Reason = "CSR_INVALID"
	ParameterInvalid      Reason = "PARAMETER_INVALID"
	RequestIDReused       Reason = "REQUEST_ID_REUSED"
	AlreadyIssued         Reason = "ALREADY_ISSUED"
	ResourceInvalid       Reason = "RESOURCE_INVALID"
	ResourcesReadOnly     Reason = "RESOURCES_READ_ONLY"
	NotFound              Reason = "NOT_FOUND"
	TaskClosed            Reason = "TASK_CLOSED"
	TaskExpired           Reason = "TASK_EXPIRED"
	DeadlineTooClose      Reason = "DEADLINE_TOO_CLOSE"
	BackendUnavailable    Reason = "BACKEND_UNAVAILABLE"
	BackendMisconfigured  Reason = "BACKEND_MISCONFIGURED"
	LedgerUnavailable     Reason = "LEDGER_UNAVAILABLE"
	OutcomeUnknown        Reason = "OUTCOME_UNKNOWN"
	ShuttingDown          Reason = "SHUTTING_DOWN"
	RateLimited           Reason = "RATE_LIMITED"
	RestoreUnconfirmed    Reason = "RESTORE_UNCONFIRMED"
)

// Field is one invalid field of a request.
type Field struct {
	Name    string // as the API spells it: "roles[1].ttl"
	Problem string
}

// Error is a refusal. Everything but Cause is written for the caller.
type Error struct {
	Reason  Reason
	Message string
	// Fields are the invalid fields, all of them.
	Fields []Field
	// Metadata is machine-readable detail: "policies", "lease", "profile", "record".
	Metadata map[string]string
	// RetryAfter is set where trying again may help.
	RetryAfter time.Duration
	// Cause is for the log and never sent.
	Cause error
}

// New makes an Error with a message for the caller.
func New(r Reason, message string) *Error { return &Error{Reason: r, Message: message} }

// Wrap makes an Error with a message for the caller and a cause for the log.
func Wrap(r Reason, message string, cause error) *Error {
	return &Error{Reason: r, Message: message, Cause: cause}
}

// With adds one piece of metadata and returns the same Error.
func (e *Error) With(key, value string) *Error {
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[key] = value
	return e
}

// Retry says after how long trying again may help and returns the same Error.
func (e *Error) Retry(after time.Duration) *Error {
	e.RetryAfter = after
	return e
}

// Error returns reason and message, without the cause.
func (e *Error) Error() string { return string(e.Reason) + ": " + e.Message }

// Unwrap returns the private cause, for errors.Is within the broker.
func (e *Error) Unwrap() error { return e.Cause }

// ReasonOf returns the reason of the first Error in err's chain, Internal for any other error, and "" for nil.
func ReasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return Internal
}

// As returns the first Error in err's chain; any other error becomes an Internal one with err as its cause.
func As(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Wrap(Internal, "internal error", err)
}
