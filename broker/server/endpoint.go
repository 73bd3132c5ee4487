package server

import (
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	"github.com/stint-dev/stint/attestor"
)

// Endpoint is one way in.
type Endpoint struct {
	Name     string // for the log: "grpc", "jwt", "admin"
	Listener net.Listener
	// Credentials are the transport's. A connection whose SVID ended should be cut by them; calls are checked either way.
	Credentials credentials.TransportCredentials
	// Attestor says who is calling, for every call. It looks at its own kind of evidence only.
	Attestor attestor.Attestor
	// Changed returns a channel that is closed when what Attestor verifies against next changes: callers of open streams
	// are then attested again. Nil where nothing changes.
	Changed func() <-chan struct{}
	// MaxMessage is the largest message that a client may send, in bytes; zero means DefaultMaxMessage.
	MaxMessage int
}

// What clients may send, in bytes. The largest valid declaration has about 170 KiB.
const (
	DefaultMaxMessage = 256 << 10
	// AdminMaxMessage suits endpoints over which resources are applied.
	AdminMaxMessage = 4 << 20
)

// Limits bounds what a client can make the server hold. Zero fields mean the defaults.
type Limits struct {
	// MaxConnectionAge is when a connection is told to go away, give or take a tenth; 10 minutes. It must stay well under
	// the lifetime of the SVIDs that are served, so that no stock client meets the end of one.
	MaxConnectionAge time.Duration
	// MaxConnectionAgeGrace is how long calls may go on after that; 75 seconds, above the longest wait of a call.
	MaxConnectionAgeGrace time.Duration
	// ConnectionTimeout bounds the handshake; 10 seconds.
	ConnectionTimeout time.Duration
	// MaxConcurrentStreams bounds the calls of one connection at a time; 100.
	MaxConcurrentStreams uint32
	// DrainTimeout is how long calls in flight may go on once the server stops; 15 seconds, above the longest issue.
	DrainTimeout time.Duration
}

const (
	// pingAfter and pingTimeout find peers that are gone: an open watch counts as hearing of its agent, so a dead one
	// must not stay.
	pingAfter   = 20 * time.Second
	pingTimeout = 10 * time.Second
	// minPing is how often clients may ping.
	minPing = 10 * time.Second
	// maxHeader bounds the metadata of a call, in bytes. A JWT-SVID has less than one kilobyte.
	maxHeader = 16 << 10
)

func (l Limits) withDefaults() Limits {
	l.MaxConnectionAge = or(l.MaxConnectionAge, 10*time.Minute)
	l.MaxConnectionAgeGrace = or(l.MaxConnectionAgeGrace, 75*time.Second)
	l.ConnectionTimeout = or(l.ConnectionTimeout, 10*time.Second)
	l.MaxConcurrentStreams = or(l.MaxConcurrentStreams, 100)
	l.DrainTimeout = or(l.DrainTimeout, 15*time.Second)
	return l
}

// or returns v, or the default where v is zero or less.
func or[T time.Duration | uint32 | int](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// options are the gRPC options of an endpoint.
func (s *Server) options(e *Endpoint) []grpc.ServerOption {
	l := s.cfg.Limits
	pool := clearing{mem.DefaultBufferPool()}
	return []grpc.ServerOption{
		grpc.Creds(e.Credentials),
		grpc.UnaryInterceptor(s.unary(e)),
		grpc.StreamInterceptor(s.stream(e)),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: l.MaxConnectionAge, MaxConnectionAgeGrace: l.MaxConnectionAgeGrace,
			Time: pingAfter, Timeout: pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(l.ConnectionTimeout),
		grpc.MaxConcurrentStreams(l.MaxConcurrentStreams),
		grpc.MaxRecvMsgSize(or(e.MaxMessage, DefaultMaxMessage)),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ForceServerCodecV2(codec{pool: pool}),
		grpc.WaitForHandlers(true),
		experimental.BufferPool(pool),
	}
}
