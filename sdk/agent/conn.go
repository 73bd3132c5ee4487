package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	maxReceive    = 16 << 20 // a receipt of a long task is the largest answer
	pingAfter     = 30 * time.Second
	pingTimeout   = 10 * time.Second
	userAgent     = "stint-go"
	unixPrefix    = "unix:"
	retries       = 2 // after the first try
	retryBase     = 50 * time.Millisecond
	remoteTLSText = "remote error: tls: " // crypto/tls, when the other side refuses the handshake
)

// identity is what the client proves itself with and trusts.
type identity interface {
	x509svid.Source
	x509bundle.Source
}

// dial makes the one connection of a client. It does no I/O.
func dial(o options, id identity, log *checkpoints) (*grpc.ClientConn, error) {
	handshake := &handshakes{}
	creds := insecure.NewCredentials() // the admin socket: the kernel says who is calling
	if id != nil {
		config := tlsconfig.MTLSClientConfig(id, id, authorize(o.serverID))
		creds = &watched{TransportCredentials: credentials.NewTLS(config), seen: handshake}
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent(userAgent),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceive)),
		experimental.WithBufferPool(clearing{mem.DefaultBufferPool()}),
		grpc.WithDisableServiceConfig(), // no retry but ours
		grpc.WithDisableRetry(),
		grpc.WithChainUnaryInterceptor(retry, handshake.explain, log.unary),
		grpc.WithStreamInterceptor(handshake.explainStream),
	}
	conn, err := grpc.NewClient(o.addr, append(opts, o.dial...)...)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrNoAddress, o.addr, err)
	}
	return conn, nil
}

// clearing is a buffer pool that forgets: receive buffers hold secrets.
type clearing struct{ mem.BufferPool }

// Put clears the whole buffer before it is used again.
func (c clearing) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	c.BufferPool.Put(b)
}

// authorize accepts the broker only, and names both IDs otherwise.
func authorize(want spiffeid.ID) tlsconfig.Authorizer {
	return func(got spiffeid.ID, _ [][]*x509.Certificate) error {
		if got == want {
			return nil
		}
		return fmt.Errorf("%w: it is %s, expected %s; set STINT_SERVER_ID if it is the right one", ErrServerID, got, want)
	}
}

// handshakes keeps why the last handshake failed: gRPC reports it as text only.
type handshakes struct{ fault atomic.Pointer[error] }

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
	w.seen.fault.Store(nil)
	return conn, info, nil
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
	if e.name != "" || e.Code != codes.Unavailable {
		return e
	}
	if fault := h.fault.Load(); fault != nil {
		e.cause, e.Message = *fault, (*fault).Error()
		if errors.Is(*fault, ErrServerID) {
			e.Code = codes.FailedPrecondition
		}
		return e
	}
	// With TLS 1.3 a client learns only after its handshake that the server did not accept it.
	if _, alert, ok := strings.Cut(e.Message, remoteTLSText); ok {
		e.Code, e.Reason = codes.Unauthenticated, stintv1.Reason_REASON_UNAUTHENTICATED
		e.Message = "the broker refused this identity in the TLS handshake: " + strings.Trim(alert, `"`)
	}
	return e
}

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
