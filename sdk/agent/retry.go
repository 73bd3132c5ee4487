package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	retries   = 2 // after the first try
	retryBase = 50 * time.Millisecond
)

// retry tries an idempotent call again, with the same request and so the same request ID, where the fault lies between
// here and the broker, where the outcome is not known, and where the connection was cut at the end of an SVID.
//
//nolint:revive // the shape is gRPC's
func retry(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	for try := 0; ; try++ {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err == nil || try == retries || !idempotent(method) || !retryable(err) {
			return err
		}
		wait := retryBase << try
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait + rand.N(wait)): //nolint:gosec // jitter is no secret
		}
	}
}

// retryable says whether the same call may do better at once.
func retryable(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Reason { //nolint:exhaustive // the others are answers
	case stintv1.Reason_REASON_UNSPECIFIED:
		return e.name == "" && e.Code == codes.Unavailable
	case stintv1.Reason_REASON_OUTCOME_UNKNOWN, stintv1.Reason_REASON_SVID_EXPIRED:
		return true
	default:
		return false
	}
}

// idempotent names the calls that may be sent twice: reads, calls with a request ID, and calls that end something.
func idempotent(method string) bool {
	switch method {
	case stintv1.AdminService_Apply_FullMethodName, stintv1.AdminService_DeleteResource_FullMethodName:
		return false
	}
	return strings.HasPrefix(method, "/stint.v1.")
}
