package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	errorDomain  = "stint.dev"
	reasonPrefix = "REASON_"
	requestIDKey = "stint-request-id" // trailer of every answer
)

// Errors of the client itself, which wrap into an [*Error] or come from [New].
var (
	// ErrServerID says that the other end of the connection is not the broker that was expected.
	ErrServerID = errors.New("the server is not the expected broker")
	// ErrNoAddress says that nothing names the broker.
	ErrNoAddress = errors.New("no broker address")
	// ErrManifest says that the broker stored another declaration than the one that was sent.
	ErrManifest = errors.New("the broker's manifest is not the one that was declared")
	// ErrLog says that the broker's audit log is not the one that was seen before: its signature, size or hashes differ.
	ErrLog = errors.New("the audit log does not continue what was seen before")
	// ErrRestored says that the broker's audit log says of itself that it was restored from an older copy, and that some of what
	// was seen before is lost. Ask its operator, who has confirmed it; then [Client.AcceptRestore].
	ErrRestored = errors.New("the audit log was restored from an older copy")
	// ErrCredential says that what was issued does not fit the request. Its lease was revoked.
	ErrCredential = errors.New("the issued credential does not fit the request")
	// ErrUsage says that a declaration or an option cannot be meant.
	ErrUsage = errors.New("invalid use")
)

// FieldViolation is one fault of a request.
type FieldViolation struct {
	Field       string // path in the request: "roles[1].ttl"
	Description string // what is wrong with it
}

// Error is every failure of a call. Match on Reason, never on text:
//
//	errors.Is(err, &agent.Error{Reason: stintv1.Reason_REASON_TASK_CLOSED})
type Error struct {
	Code       codes.Code        // the gRPC status code
	Reason     stintv1.Reason    // REASON_UNSPECIFIED where the broker gave none: the fault lies between here and there
	Message    string            // for people; may hold text of others: strip control characters before a terminal sees it
	RequestID  string            // what the broker's log has it under; "" where the call did not reach the broker
	Fields     []FieldViolation  // all faults of the request, for INVALID_ARGUMENT
	RetryAfter time.Duration     // when to try again; 0 where the broker did not say
	Metadata   map[string]string // what the reason comes with, see docs/errors.md; never nil for errors of the broker

	name  string // the reason as sent, also when this client does not know it
	cause error
}

// Error returns reason, message and request ID.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.ReasonName())
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.RequestID != "" {
		b.WriteString(" (request " + e.RequestID + ")")
	}
	return b.String()
}

// ReasonName returns the reason as docs/errors.md writes it ("TASK_CLOSED"), also one that this client does not know
// yet; without a reason the canonical name of the status code ("FAILED_PRECONDITION").
func (e *Error) ReasonName() string {
	switch {
	case e.name != "":
		return e.name
	case e.Reason != stintv1.Reason_REASON_UNSPECIFIED:
		return strings.TrimPrefix(e.Reason.String(), reasonPrefix)
	}
	return code.Code(e.Code).String() //nolint:gosec // codes are small
}

// Is makes [errors.Is] match an *Error of the same reason, or, where the target has none, of the same code.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	if !ok {
		return false
	}
	if other.Reason == stintv1.Reason_REASON_UNSPECIFIED {
		return other.Code == e.Code
	}
	return other.Reason == e.Reason
}

// Unwrap returns the cause on this side: a context error, [ErrServerID]; nil where the broker answered.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus lets [status.Code] see the code.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// ReasonOf returns the reason of an error, or REASON_UNSPECIFIED where it is not an [*Error].
func ReasonOf(err error) stintv1.Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return stintv1.Reason_REASON_UNSPECIFIED
}

// fromStatus turns a gRPC error into an *Error.
func fromStatus(err error, requestID string) *Error {
	s := status.Convert(err)
	e := &Error{Code: s.Code(), Message: s.Message(), RequestID: requestID}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			e.setReason(d)
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Fields = append(e.Fields, FieldViolation{Field: v.GetField(), Description: v.GetDescription()})
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		case *errdetails.RequestInfo:
			e.RequestID = d.GetRequestId()
		}
	}
	if e.name == "" {
		e.cause = contextCause(s.Code())
	}
	return e
}

func (e *Error) setReason(info *errdetails.ErrorInfo) {
	if info.GetDomain() != errorDomain {
		return
	}
	e.name = info.GetReason()
	e.Reason = stintv1.Reason(stintv1.Reason_value[reasonPrefix+e.name])
	e.Metadata = info.GetMetadata()
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
}

// contextCause gives back what gRPC took apart, so that errors.Is finds the context's own errors.
func contextCause(code codes.Code) error {
	switch code { //nolint:exhaustive // only two codes stand for errors of a context
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// invalid is an error of this side that no broker needs to be asked about.
func invalid(format string, args ...any) error {
	return &Error{
		Code: codes.InvalidArgument, Reason: stintv1.Reason_REASON_INVALID_ARGUMENT,
		Message: fmt.Sprintf(format, args...), cause: ErrUsage,
	}
}
