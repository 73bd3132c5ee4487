package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/stint-dev/stint/attestor/source"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// handshakes keeps why the last connection came to nothing: gRPC reports it as text only.
type handshakes struct {
	addr  string // what was dialled, for messages
	fault atomic.Pointer[error]
}

// watched are transport credentials that report how handshakes went.
type watched struct {
	credentials.TransportCredentials

	seen *handshakes
}

// ClientHandshake implements [credentials.TransportCredentials].
func (w *watched) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		w.seen.fault.Store(&err)
		return nil, nil, err //nolint:wrapcheck // gRPC looks at the error's own methods
	}
	return &watchedConn{Conn: conn, seen: w.seen}, info, nil
}

// watchedConn looks for the alert by which a server refuses a client: with TLS 1.3 it comes after the client's handshake.
type watchedConn struct {
	net.Conn

	seen *handshakes
}

// Read implements [net.Conn].
func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.seen.fault.Store(nil)
	}
	c.note(err)
	return n, err //nolint:wrapcheck // a connection's errors are compared
}

// Write implements [net.Conn]. Where the server is gone, the alert may still wait to be read.
func (c *watchedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && c.SetReadDeadline(time.Now().Add(alertWait)) == nil {
		_, alert := c.Conn.Read(make([]byte, 1))
		c.note(alert)
	}
	return n, err //nolint:wrapcheck // a connection's errors are compared
}

func (c *watchedConn) note(err error) {
	if refusedByPeer(err) {
		c.seen.fault.Store(&err)
	}
}

// refusedByPeer knows the alerts of the other side by how crypto/tls wraps them.
func refusedByPeer(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// Clone implements [credentials.TransportCredentials].
func (w *watched) Clone() credentials.TransportCredentials {
	return &watched{TransportCredentials: w.TransportCredentials.Clone(), seen: w.seen}
}

// explain turns the error of a unary call into an *Error.
//
//nolint:revive // the shape is gRPC's
func (h *handshakes) explain(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	var trailer metadata.MD
	err := invoke(ctx, method, req, reply, conn, append(opts, grpc.Trailer(&trailer))...)
	if err == nil {
		return nil
	}
	return h.convert(err, trailer)
}

// explainStream does the same for what a stream receives.
//
//nolint:revive // the shape is gRPC's
func (h *handshakes) explainStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	stream, err := streamer(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, h.convert(err, nil)
	}
	return &explained{ClientStream: stream, handshakes: h}, nil
}

type explained struct {
	grpc.ClientStream

	handshakes *handshakes
}

// RecvMsg passes io.EOF on as it is: it is the good end of a stream.
func (s *explained) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || errors.Is(err, errEOF) {
		return err //nolint:wrapcheck // the end of a stream is compared by ==
	}
	return s.handshakes.convert(err, s.Trailer())
}

func (h *handshakes) convert(err error, trailer metadata.MD) error {
	e := fromStatus(err, strings.Join(trailer.Get(requestIDKey), ","))
	if e.name != "" || e.RequestID != "" { // the broker said it
		return e
	}
	switch e.Code { //nolint:exhaustive // the others are not about the connection
	case codes.DeadlineExceeded:
		e.Message = fmt.Sprintf("the broker at %s did not answer in time", h.addr)
	case codes.Unavailable:
		h.unavailable(e, source.Plain(err))
	}
	return e
}

// unavailable says why there is no connection: what the handshake found, else gRPC's text.
func (h *handshakes) unavailable(e *Error, text string) {
	fault := h.fault.Load()
	switch {
	case fault == nil:
		e.Message = fmt.Sprintf("the connection to the broker at %s failed: %s", h.addr, text)
	case errors.Is(*fault, ErrServerID):
		e.Code, e.cause, e.Message = codes.FailedPrecondition, *fault, (*fault).Error()
	case refusedByPeer(*fault):
		e.Code, e.Reason, e.cause = codes.Unauthenticated, stintv1.Reason_REASON_UNAUTHENTICATED, *fault
		e.Message = "the broker refused this identity in the TLS handshake: " + (*fault).Error()
	default:
		e.cause, e.Message = *fault, fmt.Sprintf("the TLS handshake with the broker at %s failed: %v", h.addr, *fault)
	}
}
