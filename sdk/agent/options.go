package agent

import (
	"fmt"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
)

// Environment variables that [New] reads where no option says otherwise.
const (
	EnvAddr     = "STINT_ADDR"      // the broker: host:port, or unix:///path of the admin socket
	EnvServerID = "STINT_SERVER_ID" // the broker's SPIFFE ID; spiffe://<own trust domain>/stint unless set
	EnvSPIFFEID = "STINT_SPIFFE_ID" // which of the SVIDs that the Workload API hands out is the agent's
)

// Option changes how [New] connects.
type Option func(*options) error

type options struct {
	addr        string
	serverID    spiffeid.ID
	spiffeID    spiffeid.ID
	workloadAPI string
	source      identity
	log         *zap.Logger
	verifier    note.Verifier
	checkpoint  string
	dial        []grpc.DialOption
}

// WithAddr names the broker: host:port, or unix:///path of the admin socket. It comes before STINT_ADDR; "" is as unset.
func WithAddr(addr string) Option {
	return func(o *options) error {
		if addr != "" {
			o.addr = addr
		}
		return nil
	}
}

// WithServerID names the broker's SPIFFE ID. It comes before STINT_SERVER_ID; "" is as unset.
func WithServerID(id string) Option {
	return func(o *options) error { return setID(&o.serverID, "server ID", id) }
}

// WithSPIFFEID picks one of the SVIDs of the Workload API. It comes before STINT_SPIFFE_ID; "" is as unset.
func WithSPIFFEID(id string) Option {
	return func(o *options) error { return setID(&o.spiffeID, "SPIFFE ID", id) }
}

// WithWorkloadAPI names the Workload API. It comes before SPIFFE_ENDPOINT_SOCKET; "" is as unset.
func WithWorkloadAPI(addr string) Option {
	return func(o *options) error {
		o.workloadAPI = addr
		return nil
	}
}

// WithSource uses an SVID source of the caller's, such as a workloadapi.X509Source, which stays the caller's to close.
func WithSource[S interface {
	x509svid.Source
	x509bundle.Source
}](source S) Option {
	return func(o *options) error {
		o.source = source
		return nil
	}
}

// WithLogger takes what happens in the background: reconnects and rotations. Nothing secret is logged. Unset is silent.
func WithLogger(log *zap.Logger) Option {
	return func(o *options) error {
		o.log = log
		return nil
	}
}

// WithLogKey gives the verifier key of the audit log (C2SP signed-note vkey), as `stint audit pubkey` prints it. Every
// checkpoint is then checked against it, and [Client.VerifyLog] can be used.
func WithLogKey(key string) Option {
	return func(o *options) error {
		verifier, err := note.NewVerifier(strings.TrimSpace(key))
		if err != nil {
			return invalid("audit log key: %v", err)
		}
		o.verifier = verifier
		return nil
	}
}

// WithCheckpoint gives a checkpoint that [Client.Checkpoint] returned in an earlier run.
func WithCheckpoint(signed string) Option {
	return func(o *options) error {
		o.checkpoint = signed
		return nil
	}
}

// WithDialOptions adds to how gRPC connects: a dialer, statistics.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(o *options) error {
		o.dial = append(o.dial, opts...)
		return nil
	}
}

// gather reads the environment, then the options, which come before it.
func gather(opts []Option) (options, error) {
	o := options{addr: os.Getenv(EnvAddr), log: zap.NewNop()}
	all := append([]Option{WithServerID(os.Getenv(EnvServerID)), WithSPIFFEID(os.Getenv(EnvSPIFFEID))}, opts...)
	for _, opt := range all {
		if err := opt(&o); err != nil {
			return options{}, err
		}
	}
	if o.addr == "" {
		return options{}, fmt.Errorf("%w: %s is not set (host:port of the broker; dev: source .stint/env)", ErrNoAddress, EnvAddr)
	}
	return o, nil
}

func setID(target *spiffeid.ID, what, text string) error {
	if text == "" {
		return nil
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return invalid("%s %q: %v", what, text, err)
	}
	*target = id
	return nil
}
