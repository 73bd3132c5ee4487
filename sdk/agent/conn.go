package agent

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

const (
	maxReceive  = 16 << 20 // a receipt of a long task is the largest answer
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second

	firstReconnect = 100 * time.Millisecond
	lastReconnect  = 3 * time.Second
	connectTimeout = 10 * time.Second
	userAgent      = "stint-go"
	unixPrefix     = "unix:"
	alertWait      = 100 * time.Millisecond
)

// identity is what the client proves itself with and trusts.
type identity interface {
	x509svid.Source
	x509bundle.Source
}

// dial makes the one connection of a client. It does no I/O.
func dial(o options, id identity, log *checkpoints) (*grpc.ClientConn, error) {
	handshake := &handshakes{addr: o.addr}
	creds := insecure.NewCredentials() // the admin socket: the kernel says who is calling
	if id != nil {
		config := tlsconfig.MTLSClientConfig(id, id, authorize(o.serverID))
		creds = &watched{TransportCredentials: credentials.NewTLS(config), seen: handshake}
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent(userAgent),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect(), MinConnectTimeout: connectTimeout}),
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

// reconnect is how long to wait between attempts to connect: far less than the shortest usual idle timeout, or a broker
// that is back after minutes would close tasks whose agents still wait (gRPC's own goes up to two minutes).
func reconnect() backoff.Config {
	return backoff.Config{BaseDelay: firstReconnect, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastReconnect}
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
