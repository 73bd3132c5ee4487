package server

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/broker/fault"
)

// Keys of the access line.
const (
	fieldMethod   = "method"
	fieldEndpoint = "endpoint"
	fieldCaller   = "caller"
	fieldPeer     = "peer"
	fieldCode     = "code"
	fieldReason   = "reason"
	fieldTook     = "took"
	fieldRequest  = "request"
)

// observe writes the access line and measures. It sees the status that the caller sees, and never a message.
func (s *Server) observe(ctx context.Context, c *call, next func(context.Context) error) error {
	err := next(ctx)
	code, took := status.Code(err), time.Since(c.began)
	fields := []zap.Field{
		zap.String(fieldMethod, c.method), zap.String(fieldEndpoint, c.endpoint.Name), zap.String(fieldCaller, name(c)),
		zap.Stringer(fieldCode, code), zap.Duration(fieldTook, took), zap.String(fieldRequest, c.request),
	}
	var reason fault.Reason
	if c.fault != nil {
		reason = c.fault.Reason
		fields = append(fields, zap.String(fieldReason, string(reason)), zap.String(fieldPeer, address(ctx)))
		if c.fault.Cause != nil {
			fields = append(fields, zap.Error(c.fault.Cause))
		}
	}
	s.cfg.Logger.Log(level(c, code), "call", fields...)
	s.cfg.Observer.Called(c.method, code, reason, took)
	return err
}

// level makes what the operator has to see stand out.
func level(c *call, code codes.Code) zapcore.Level {
	switch {
	case code == codes.Internal || code == codes.Unknown:
		return zap.ErrorLevel
	case code == codes.Unavailable:
		return zap.WarnLevel
	case c.rule.open && code == codes.OK:
		return zap.DebugLevel
	}
	return zap.InfoLevel
}

// name is how the log calls the caller.
func name(c *call) string {
	if c.caller.Identity.IsZero() {
		return nobody
	}
	return c.caller.Identity.String()
}

func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// translate turns every error into the status that the caller sees.
func translate(ctx context.Context, c *call, next func(context.Context) error) error {
	err := next(ctx)
	if err == nil {
		return nil
	}
	var st *status.Status
	st, c.fault = statusOf(err, c.request)
	return st.Err()
}

// recovered turns a panic into an error whose cause holds the place, but not the panic's value: it may hold a secret.
func recovered(ctx context.Context, _ *call, next func(context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fault.Wrap(fault.Internal, "internal error", fmt.Errorf("panic of type %T at %s", v, place(debug.Stack())))
		}
	}()
	return next(ctx)
}

// maxPlace is how much of a stack goes into the log, in bytes.
const maxPlace = 4 << 10

// place returns where a panic came from, as function names and lines without their arguments.
func place(stack []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(stack)) {
		if at, ok := strings.CutPrefix(line, "\t"); ok && b.Len() < maxPlace {
			b.WriteString(strings.TrimSpace(at) + "; ")
		}
	}
	return b.String()
}
