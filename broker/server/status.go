package server

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/broker/fault"
)

// ErrorDomain is the domain of every google.rpc.ErrorInfo.
const ErrorDomain = "stint.dev"

// A status travels in the trailer, and clients bound theirs.
const (
	maxText   = 2 << 10 // bytes of a message
	maxFields = 64      // of a BadRequest
)

// codeOf is the one table from reason to status code. A reason that is not in it is Unknown, which a test forbids.
func codeOf(r fault.Reason) codes.Code {
	switch r {
	case fault.Internal:
		return codes.Internal
	case fault.Unauthenticated, fault.SVIDExpired:
		return codes.Unauthenticated
	case fault.AdminRoleRequired, fault.AgentSuspended, fault.NoProfile, fault.RoleOutsideProfile, fault.PurposeOutsideProfile,
		fault.PolicyDenied, fault.PolicyError, fault.TTLTooLong, fault.ApprovalUnavailable, fault.RoleNotInTask:
		return codes.PermissionDenied
	case fault.TooManyTasks, fault.TooManyLeases, fault.RateLimited:
		return codes.ResourceExhausted
	case fault.InvalidArgument, fault.CSRInvalid, fault.ParameterInvalid, fault.ResourceInvalid:
		return codes.InvalidArgument
	case fault.RequestIDReused, fault.AlreadyIssued:
		return codes.AlreadyExists
	case fault.NotFound:
		return codes.NotFound
	case fault.ResourcesReadOnly, fault.TaskClosed, fault.TaskExpired, fault.DeadlineTooClose, fault.BackendMisconfigured:
		return codes.FailedPrecondition
	case fault.BackendUnavailable, fault.LedgerUnavailable, fault.OutcomeUnknown, fault.ShuttingDown,
		fault.RestoreUnconfirmed:
		return codes.Unavailable
	}
	return codes.Unknown
}

// statusOf turns an error into what the caller sees, and returns the fault for the log; nil where there is none.
func statusOf(err error, request string) (*status.Status, *fault.Error) {
	f, isFault := errors.AsType[*fault.Error](err)
	if !isFault {
		if st, ok := foreign(err, request); ok {
			return st, nil
		}
		f = fault.As(err)
	}
	message := f.Message
	if f.Reason == fault.Internal {
		message += "; tell your operator the request ID, " + request
	}
	return detailed(status.New(codeOf(f.Reason), clip(message)), details(f, request)...), f
}

// foreign keeps the errors that are not the broker's: of the caller's context, and statuses of gRPC's own services.
func foreign(err error, request string) (*status.Status, bool) {
	info := &errdetails.RequestInfo{RequestId: request}
	switch st, ok := status.FromError(err); {
	case ok && st.Code() != codes.Unknown:
		return detailed(st, info), true
	case errors.Is(err, context.Canceled):
		return detailed(status.New(codes.Canceled, "the call was cancelled"), info), true
	case errors.Is(err, context.DeadlineExceeded):
		return detailed(status.New(codes.DeadlineExceeded, "the call's deadline passed"), info), true
	}
	return nil, false
}

func details(f *fault.Error, request string) []protoadapt.MessageV1 {
	all := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: string(f.Reason), Domain: ErrorDomain, Metadata: f.Metadata},
		&errdetails.RequestInfo{RequestId: request},
	}
	if len(f.Fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, field := range f.Fields[:min(len(f.Fields), maxFields)] {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: clip(field.Name), Description: clip(field.Problem),
			})
		}
		all = append(all, bad)
	}
	if f.RetryAfter > 0 {
		all = append(all, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	return all
}

// detailed adds details. What cannot be encoded is left out: the code alone still says the truth.
func detailed(st *status.Status, all ...protoadapt.MessageV1) *status.Status {
	if with, err := st.WithDetails(all...); err == nil {
		return with
	}
	return st
}

// clip makes text valid UTF-8 of bounded length.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxText {
		return text
	}
	cut := maxText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + " …"
}
