package brokertest

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/admin"        //nolint:depguard // a house is made of concrete things
	"github.com/stint-dev/stint/attestor/attestortest" //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/jwtsvid"      //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/peercred"     //nolint:depguard // as above
	"github.com/stint-dev/stint/attestor/x509svid"     //nolint:depguard // as above
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/server"
)

// bufferSize is that of a connection in memory, in bytes.
const bufferSize = 1 << 20

// endpoints are the ways into a house.
type endpoints struct{ mtls, token, admin way }

// way is a listener and how to reach it.
type way struct {
	net.Listener

	dial func(context.Context) (net.Conn, error)
}

// inMemory listens in memory.
func inMemory() way {
	l := bufconn.Listen(bufferSize)
	return way{Listener: l, dial: l.DialContext}
}

// onLoopback listens on a port of its own.
func onLoopback(tb testing.TB) way {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(context.WithoutCancel(tb.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	return reached(l)
}

func reached(l net.Listener) way {
	at := l.Addr()
	return way{Listener: l, dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, at.Network(), at.String())
	}}
}

// serve runs the server on all endpoints.
func (h *House) serve(tb testing.TB, cfg Config, admins *admin.Roles) {
	tb.Helper()
	adminCreds := credentials.TransportCredentials(localPeer{})
	if cfg.Listen {
		path := filepath.Join(h.Domain.Dir(), "admin.sock") // a short path: unix sockets take 107 bytes
		socket, err := peercred.Listen(context.WithoutCancel(tb.Context()), path)
		if err != nil {
			tb.Fatalf("listen: %v", err)
		}
		h.endpoints = endpoints{mtls: onLoopback(tb), token: onLoopback(tb), admin: reached(socket)}
		h.Addr, h.AdminSocket = h.endpoints.mtls.Addr().String(), "unix://"+path
		adminCreds = peercred.Credentials{}
	} else {
		h.endpoints = endpoints{mtls: inMemory(), token: inMemory(), admin: inMemory()}
	}
	domains := attestortest.Domains(tb, h.Domain)
	certified := x509svid.New(h.Source, domains)
	mtls := certified.Credentials(server.HandshakeRefused(h.Broker, "grpc"))
	tokens, err := jwtsvid.New(h.Source, domains, h.ServerID().String())
	if err != nil {
		tb.Fatalf("make jwt attestor: %v", err)
	}
	h.Server, err = server.New(server.Config{
		Broker: h.Broker, Ledger: h.Ledger, Reconciler: h.Reconciler, Admins: admin.NewCurrent(admins), Limits: cfg.Limits, Observer: noObserver{}, Logger: cfg.Logger,
		VerifierKey: h.Key.Text, Version: Version, ServerID: h.ServerID().String(), Reflect: cfg.Reflect,
		Endpoints: []server.Endpoint{
			{Name: "grpc", Listener: h.endpoints.mtls, Credentials: mtls, Attestor: certified, Changed: h.Source.Changed, MaxMessage: 1 << 20},
			{
				Name: "jwt", Listener: h.endpoints.token, Attestor: tokens, Changed: h.Source.Changed,
				Credentials: credentials.NewTLS(x509svid.TokenServerConfig(h.Source)),
			},
			{Name: "admin", Listener: h.endpoints.admin, Credentials: adminCreds, Attestor: peercred.Attestor{}, MaxMessage: server.AdminMaxMessage},
		},
	})
	if err != nil {
		tb.Fatalf("make server: %v", err)
	}
	h.run(tb, "connections", mtls.Run)
	h.run(tb, "server", h.Server.Run)
}

// noObserver measures nothing.
type noObserver struct{}

func (noObserver) Called(string, codes.Code, fault.Reason, time.Duration) {}

// localPeer are transport credentials for connections in memory: every peer is LocalUID.
type localPeer struct{}

type localInfo struct{ credentials.CommonAuthInfo }

func (localInfo) AuthType() string { return "in-memory-peer" }

// Local implements [attestor.PeerCredential].
func (localInfo) Local() attestor.Local { return attestor.Local{UID: LocalUID, GID: LocalUID, PID: 1} }

func handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, localInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// ServerHandshake implements [credentials.TransportCredentials].
func (localPeer) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(conn)
}

// ClientHandshake implements [credentials.TransportCredentials].
func (localPeer) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(conn)
}

// Info implements [credentials.TransportCredentials].
func (localPeer) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "in-memory-peer"}
}

// Clone implements [credentials.TransportCredentials].
func (l localPeer) Clone() credentials.TransportCredentials { return l }

// OverrideServerName implements [credentials.TransportCredentials].
func (localPeer) OverrideServerName(string) error { return nil }
