// Package attestor is the contract for saying who is calling: evidence of a call goes in, an [Identity] or a
// refusal comes out. The kinds of evidence live in the packages below it; this one knows none of them, no broker
// and no backend.
package attestor

import (
	"context"
	"crypto/tls"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Method is the kind of evidence by which an identity was established. Policies see it as context.method.
type Method string

// The methods that there are. The values are part of the audit record and of the policy schema.
const (
	MethodX509  Method = "x509-svid" // an X.509-SVID over mTLS
	MethodJWT   Method = "jwt-svid"  // a JWT-SVID; never for administration or approval
	MethodLocal Method = "local"     // the peer credential of the admin socket; no SPIFFE ID
)

// Local is what the kernel says of the process at the other end of the admin socket.
type Local struct {
	UID uint32 // user ID of the peer when it connected
	GID uint32 // its primary group
	PID int32  // its process ID when it connected; for records only, it may have been reused since
}

// PeerCredential is what the connection's auth information implements where the peer is a local process. Transport
// code finds the peer by this interface and needs to know no concrete package.
type PeerCredential interface {
	// Local returns the peer's credential as it was when the connection was made.
	Local() Local
}

// Evidence is everything one call brought along by which its caller may be known. An attestor looks at its own
// kind only and never falls back to another. It holds a token: never log or format it.
type Evidence struct {
	TLS   *tls.ConnectionState // state of the connection; nil without TLS
	Token string               // the JWT-SVID of this call, without "Bearer "; "" without one
	Local *Local               // the peer credential of a local socket; nil elsewhere
}

// Attestor turns evidence into an identity. It is called for every call, not once per connection, from many
// goroutines at once.
type Attestor interface {
	// Attest returns the identity that the evidence proves now. Otherwise it returns an [*Error] whose kind is one
	// of the sentinels, and the zero Identity. The context bounds nothing but what an implementation has to fetch.
	Attest(ctx context.Context, e Evidence) (Identity, error)
}

// Identity is an attested caller. It is a value, comparable, and valid only until NotAfter.
type Identity struct {
	ID        spiffeid.ID // the SPIFFE ID; zero for MethodLocal
	Method    Method      // how it was established
	NotBefore time.Time   // start of the evidence's validity (X.509 NotBefore, JWT iat); zero for MethodLocal
	NotAfter  time.Time   // end of it (X.509 NotAfter, JWT exp); zero for MethodLocal, which does not end
	Local     Local       // the local peer; zero unless MethodLocal
}

// String returns the SPIFFE ID, or "uid:1000" for a local peer. It is what records and logs call the caller.
func (id Identity) String() string {
	if id.Method == MethodLocal {
		return "uid:" + strconv.FormatUint(uint64(id.Local.UID), 10)
	}
	return id.ID.String()
}

// IsZero says whether the identity is the zero value, which is nobody.
func (id Identity) IsZero() bool { return id.Method == "" }

// Age returns how long ago the evidence was issued; 0 for a local peer and for a clock that is behind the issuer's.
func (id Identity) Age(now time.Time) time.Duration {
	if id.NotBefore.IsZero() {
		return 0
	}
	return max(0, now.Sub(id.NotBefore))
}

// CheckTime returns nil if the identity is valid at now, else an [*Error] of kind [ErrExpired] or [ErrNotYetValid]
// that says by how much. Whoever holds an identity for longer than one call asks again.
func (id Identity) CheckTime(now time.Time) error {
	if id.Method == MethodLocal {
		return nil
	}
	return CheckValidity(id.NotBefore, id.NotAfter, now)
}
