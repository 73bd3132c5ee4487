// Package peercred is the identity of local processes: a unix socket whose peers are known by the credential that
// the kernel keeps for them. It serves the admin socket, which works while every identity provider is down. Linux
// only (SO_PEERCRED, unix(7)); elsewhere each connection is refused with [ErrUnsupported].
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/stint-dev/stint/attestor"
)

// ErrUnsupported says that this platform has no peer credential that could be read.
var ErrUnsupported = errors.New("peer credentials of unix sockets are supported on linux only")

// AuthType is what [AuthInfo.AuthType] returns.
const AuthType = "unix-peer"

// AuthInfo is the peer's credential as gRPC's peer information carries it. It implements
// [attestor.PeerCredential].
type AuthInfo struct {
	credentials.CommonAuthInfo

	local attestor.Local
}

// AuthType implements [credentials.AuthInfo].
func (AuthInfo) AuthType() string { return AuthType }

// Local implements [attestor.PeerCredential].
func (i AuthInfo) Local() attestor.Local { return i.local }

// Credentials are the gRPC transport credentials of a unix socket: no encryption, and the peer's credential in
// [AuthInfo]. The zero value is ready.
type Credentials struct{}

// ServerHandshake reads the credential of the process that connected. A connection without one is closed.
func (Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(conn)
}

// ClientHandshake reads the credential of the process that listens, which a client may want to check.
func (Credentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(conn)
}

// Info implements [credentials.TransportCredentials].
func (Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: AuthType}
}

// Clone implements [credentials.TransportCredentials].
func (c Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements [credentials.TransportCredentials]; a unix socket has no server name.
func (Credentials) OverrideServerName(string) error { return nil }

func handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	local, err := Of(conn)
	if err != nil {
		return nil, nil, err
	}
	// A unix socket never leaves the machine, so it counts as private and whole, as in grpc's own local credentials.
	common := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return conn, AuthInfo{CommonAuthInfo: common, local: local}, nil
}

// Attestor attests local peers. The zero value is ready.
type Attestor struct{}

// Attest returns the local identity of the peer, or refuses evidence without one.
func (Attestor) Attest(_ context.Context, e attestor.Evidence) (attestor.Identity, error) {
	if e.Local == nil {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrNoEvidence, "this socket is for local processes", nil)
	}
	return attestor.Identity{Method: attestor.MethodLocal, Local: *e.Local}, nil
}

// Of returns the credential of the process at the other end of a unix socket, as it was when it connected (or, for
// the connecting side, when the other began to listen).
func Of(conn net.Conn) (attestor.Local, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return attestor.Local{}, fmt.Errorf("peer credential of a %T: not a unix socket", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return attestor.Local{}, fmt.Errorf("peer credential: %w", err)
	}
	return read(raw)
}
