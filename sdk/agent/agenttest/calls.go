package agenttest

import (
	"context"
	"path"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const localCaller = "local:uid:0"

func ageOption(age time.Duration) []grpc.ServerOption {
	if age == 0 {
		return nil
	}
	return []grpc.ServerOption{grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: age, MaxConnectionAgeGrace: age})}
}

// intercept counts calls, names the request, and loses the answers that Fail asked for.
func (b *Broker) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	b.mu.Lock()
	b.calls[path.Base(info.FullMethod)]++
	n := b.calls[path.Base(info.FullMethod)]
	refused := b.suspended(caller(ctx))
	b.mu.Unlock()
	if err := grpc.SetTrailer(ctx, metadata.Pairs("stint-request-id", path.Base(info.FullMethod)+"-"+strconv.Itoa(n))); err != nil {
		return nil, err
	}
	if refused != nil {
		return nil, refused
	}
	answer, err := handle(ctx, req)
	if _, ok := req.(interface{ GetRequestId() string }); !ok || err != nil {
		return answer, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) == 0 {
		return answer, nil
	}
	lost := b.faults[0]
	b.faults = b.faults[1:]
	return nil, lost
}

// caller returns the SPIFFE ID of the other side.
func caller(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return localCaller
	}
	id, err := x509svid.IDFromCert(info.State.PeerCertificates[0])
	if err != nil {
		return ""
	}
	return id.String()
}

// Refusal makes an error as the broker sends it: code, reason without prefix, message, metadata.
func Refusal(code codes.Code, reason, message string, meta map[string]string) error {
	return refusal(code, message, &errdetails.ErrorInfo{Reason: reason, Domain: "stint.dev", Metadata: meta})
}

func refusal(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	s, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return err
	}
	return s.Err()
}

func invalid(field, problem string) error {
	return refusal(codes.InvalidArgument, field+": "+problem,
		&errdetails.ErrorInfo{Reason: "INVALID_ARGUMENT", Domain: "stint.dev"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: problem}}})
}

// noAgent is what administrators get where only agents have something.
func noAgent() error {
	return Refusal(codes.PermissionDenied, "NO_PROFILE", "this caller administers and is no agent", nil)
}

func notFound(name string) error {
	return Refusal(codes.NotFound, "NOT_FOUND", "there is no "+name+", or it is somebody else's", nil)
}

// notify wakes everybody who waits for a change. The caller holds the lock.
func (b *Broker) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// await waits, at most so long, until done says so. It is called without the lock and calls done with it.
func (b *Broker) await(ctx context.Context, wait time.Duration, done func() bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		b.mu.Lock()
		ok, changed := done(), b.changed
		b.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-changed:
		}
	}
}

func closed(task *stintv1.Task) bool { return task.GetState() == stintv1.TaskState_TASK_STATE_CLOSED }
