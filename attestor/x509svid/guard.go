package x509svid

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// sweepEvery is how often all connections are looked at even when nothing changed: timers do not count the time that a
// machine sleeps, nor see its clock being set.
const sweepEvery = time.Minute

// Credentials are gRPC transport credentials of a server that cut a connection at the moment its peer's SVID ends,
// and when a change of the bundles leaves it unverified. They are for one server; Run must run beside it.
type Credentials struct {
	credentials.TransportCredentials // of the TLS configuration

	attestor *Attestor
	refused  func(net.Addr, error)

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

// Credentials returns the transport credentials of a listener with [Attestor.ServerConfig]. Each handshake that fails
// is told to refused, which may be nil; the error is an [*attestor.Error] where the certificate was the reason.
func (a *Attestor) Credentials(refused func(remote net.Addr, err error)) *Credentials {
	if refused == nil {
		refused = func(net.Addr, error) {}
	}
	return &Credentials{
		TransportCredentials: credentials.NewTLS(a.ServerConfig()),
		attestor:             a,
		refused:              refused,
		conns:                make(map[*conn]struct{}),
	}
}

// Clone returns the same credentials: what they guard is one set of connections.
func (c *Credentials) Clone() credentials.TransportCredentials { return c }

// ServerHandshake does the TLS handshake and guards the connection from then on.
func (c *Credentials) ServerHandshake(inner net.Conn) (net.Conn, credentials.AuthInfo, error) {
	guarded := &conn{Conn: inner, guard: c}
	tlsConn, info, err := c.TransportCredentials.ServerHandshake(guarded)
	if err != nil {
		c.refused(inner.RemoteAddr(), err)
		return nil, nil, err
	}
	if err := c.admit(guarded, info); err != nil {
		c.refused(inner.RemoteAddr(), err)
		return nil, nil, errors.Join(err, guarded.Close())
	}
	return tlsConn, info, nil
}

// admit begins to guard a connection. It attests once more after the connection is listed: a bundle that changed
// after the handshake is either seen here or by the sweep.
func (c *Credentials) admit(guarded *conn, info credentials.AuthInfo) error {
	state, ok := stateOf(info)
	if !ok {
		return errors.New("no tls state after the handshake")
	}
	guarded.chain = state.PeerCertificates
	c.mu.Lock()
	c.conns[guarded] = struct{}{}
	c.mu.Unlock()
	now := time.Now()
	_, until, err := c.attestor.attest(guarded.chain, now)
	if err != nil {
		return err
	}
	guarded.arm(until.Sub(now))
	return nil
}

func stateOf(info credentials.AuthInfo) (tls.ConnectionState, bool) {
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok || len(tlsInfo.State.PeerCertificates) == 0 {
		return tls.ConnectionState{}, false
	}
	return tlsInfo.State, true
}

// Run drops the peers that a change of the bundles leaves unverified, until ctx is done; then it returns nil.
func (c *Credentials) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		changed := c.attestor.source.Changed()
		c.sweep()
		select {
		case <-changed:
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sweep closes every connection whose peer is not attested now.
func (c *Credentials) sweep() {
	for _, guarded := range c.list() {
		if _, _, err := c.attestor.attest(guarded.chain, time.Now()); err != nil {
			_ = guarded.Close() // the transport above finds it closed and reports
		}
	}
}

// Conns returns how many connections are guarded, for metrics.
func (c *Credentials) Conns() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns)
}

func (c *Credentials) list() []*conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*conn, 0, len(c.conns))
	for guarded := range c.conns {
		all = append(all, guarded)
	}
	return all
}

func (c *Credentials) drop(guarded *conn) {
	c.mu.Lock()
	_, listed := c.conns[guarded]
	delete(c.conns, guarded)
	c.mu.Unlock()
	if listed {
		c.attestor.forget(guarded.chain[0])
	}
}

// conn is the plain connection under the TLS one, so that closing it is hard: nothing is written any more.
type conn struct {
	net.Conn

	guard *Credentials
	chain []*x509.Certificate // set before it is listed

	mu     sync.Mutex // guards what follows
	timer  *time.Timer
	closed bool
}

// arm closes the connection after d.
func (c *conn) arm(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.timer = time.AfterFunc(d, func() { _ = c.Close() })
	}
}

// Close ends the connection and its guarding.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.guard.drop(c)
	return c.Conn.Close()
}
