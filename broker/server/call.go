package server

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
)

// requestIDKey is under what name header and trailer of every answer hold the request ID, a UUIDv7.
const requestIDKey = "stint-request-id"

// call is one call on its way through the steps.
type call struct {
	method   string // "/stint.v1.TaskService/DeclareTask"
	rule     rule
	endpoint *Endpoint
	request  string // the request ID
	began    time.Time
	stream   bool
	message  any           // of a unary call
	caller   broker.Caller // zero until it is attested
	fault    *fault.Error  // what was answered, for the log; nil for success and for what has no reason
}

// step is one layer around a call. It calls next, or refuses.
type step func(ctx context.Context, c *call, next func(context.Context) error) error

// steps are the layers around every call, unary and stream alike, the outermost first.
func (s *Server) steps() []step {
	return []step{
		s.observe,   // one line in the log and one measurement a call, with what the caller was answered
		translate,   // every error becomes a status with reason, details and request ID
		recovered,   // a panic is an internal error, and ends this call only
		s.attest,    // who is calling: on every call, and again while a stream is open
		s.slow,      // who is refused all the time has to wait
		s.authorise, // who may call what: the one table
		s.validate,  // all invalid fields at once
	}
}

// run takes a call through the steps to its handler.
func (s *Server) run(ctx context.Context, c *call, handler func(context.Context) error) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err // no randomness, no service
	}
	c.request, c.began, c.rule = id.String(), time.Now(), s.access[c.method]
	md := metadata.Pairs(requestIDKey, c.request)
	// Both fail only where the answer can no longer be sent, and then nobody reads them.
	_ = grpc.SetHeader(ctx, md)
	_ = grpc.SetTrailer(ctx, md)

	next := handler
	for _, step := range slices.Backward(s.steps()) {
		inner := next
		next = func(ctx context.Context) error { return step(ctx, c, inner) }
	}
	return next(ctx)
}

// unary runs unary calls of an endpoint.
func (s *Server) unary(e *Endpoint) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		c := &call{method: info.FullMethod, endpoint: e, message: req}
		var answer any
		err := s.run(ctx, c, func(ctx context.Context) error {
			var err error
			answer, err = handler(ctx, req)
			return err
		})
		if err != nil {
			return nil, err
		}
		return answer, nil
	}
}

// stream runs streams of an endpoint.
func (s *Server) stream(e *Endpoint) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		c := &call{method: info.FullMethod, endpoint: e, stream: true}
		return s.run(stream.Context(), c, func(ctx context.Context) error {
			return handler(srv, &checkedStream{ServerStream: stream, ctx: ctx, check: s.check})
		})
	}
}

// checkedStream is a stream with the context of the steps, whose messages are validated as they come.
type checkedStream struct {
	grpc.ServerStream

	ctx   context.Context //nolint:containedctx // a gRPC stream carries its context
	check func(proto.Message) error
}

// Context implements [grpc.ServerStream].
func (s *checkedStream) Context() context.Context { return s.ctx }

// RecvMsg implements [grpc.ServerStream].
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if message, ok := m.(proto.Message); ok {
		return s.check(message)
	}
	return nil
}

// callerKey is the context's key of the caller.
type callerKey struct{}

// callerOf returns who is calling; the zero Caller outside of a call that was attested.
func callerOf(ctx context.Context) broker.Caller {
	c, _ := ctx.Value(callerKey{}).(broker.Caller)
	return c
}
