package x509svid

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ErrServerID says that the server is not the one that was meant. It is found by [errors.Is] in what a TLS handshake
// returns; gRPC keeps only its text.
var ErrServerID = errors.New("the server is somebody else")

// ClientSource is what a client needs: its SVID and the bundles to verify the server with.
type ClientSource interface {
	x509svid.Source
	x509bundle.Source
}

// ClientConfig returns the TLS configuration of a client that shows its own SVID of the moment and talks to one
// server only. An error of another server prints both IDs.
func ClientConfig(source ClientSource, server spiffeid.ID) *tls.Config {
	config := tlsconfig.MTLSClientConfig(source, source, ExactServer(server))
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"h2"}
	return config
}

// TokenServerConfig returns the TLS configuration of a listener that takes JWT-SVIDs: it shows the own SVID of the
// moment and asks for no certificate. The connection says nothing about who calls.
func TokenServerConfig(source x509svid.Source) *tls.Config {
	config := tlsconfig.TLSServerConfig(source)
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	config.NextProtos = []string{"h2"}
	return config
}

// TokenClientConfig returns the TLS configuration of a client that shows no certificate to one server, for such a
// listener.
func TokenClientConfig(bundles x509bundle.Source, server spiffeid.ID) *tls.Config {
	config := tlsconfig.TLSClientConfig(bundles, ExactServer(server))
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"h2"}
	return config
}

// ExactServer authorizes one SPIFFE ID. It is tlsconfig.AuthorizeID with an error that says what to do.
func ExactServer(want spiffeid.ID) tlsconfig.Authorizer {
	return func(found spiffeid.ID, _ [][]*x509.Certificate) error {
		if found == want {
			return nil
		}
		return fmt.Errorf("%w: it is %s, expected %s (STINT_SERVER_ID)", ErrServerID, found, want)
	}
}
