// Package config reads the daemon's configuration, HCL2 or its JSON form, into one typed value in which every default is
// filled in and every fault was found.
//
// Unknown keys are faults. All faults are reported at once, each with file and line ([Error]). Secrets are references
// ([SecretRef]), never values. What a backend block holds is known to its plugin alone: it stays a [Backend] until
// somebody who knows the plugin calls [DecodeBackend]. Reading a configuration opens no file but the configuration.
package config

import (
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
)

// Config is the whole configuration. docs/configuration.md explains each key; a test keeps the two alike.
type Config struct {
	// DataDir is where the ledger and an embedded CA live: absolute, mode 0700, locked by one process.
	DataDir string
	// TaskTrustDomain is the trust domain of issued certificates. Agents never come from it.
	TaskTrustDomain spiffeid.TrustDomain
	// Resources is a folder of YAML documents; "" means that resources are applied over the API.
	Resources string

	Listen    Listen
	Identity  Identity
	Admins    []Admin
	Ledger    Ledger
	Audit     Audit
	Limits    Limits
	Teardown  Teardown
	Reconcile Reconcile
	Log       Log
	// Backends stand in the order of the file.
	Backends []Backend
}

// Listen holds the addresses of the listeners. Of an address that is "", nothing listens.
type Listen struct {
	GRPC string // host:port; mTLS with X.509-SVIDs; never ""
	HTTP string // host:port; status, no secrets, no authentication
	// Admin is the absolute path of the local admin socket, without "unix://".
	Admin string
	JWT   string // host:port; server TLS with JWT-SVIDs; off by default
	// Reflection offers gRPC server reflection on GRPC and Admin.
	Reflection bool
}

// Identity says where the broker's own SVID and the bundles come from: WorkloadAPI, or the three files.
type Identity struct {
	WorkloadAPI string // unix:///path or tcp://ip:port

	CertFile   string // PEM: the SVID and its intermediates
	KeyFile    string // PEM, PKCS #8
	BundleFile string // PEM: the authorities of the own trust domain

	// SPIFFEID picks the broker's own SVID; zero takes the first that the Workload API hands out.
	SPIFFEID spiffeid.ID
	// TrustDomains are those that agents may come from, besides the broker's own.
	TrustDomains []spiffeid.TrustDomain
}

// Admin gives an administration role to the SPIFFE IDs of a pattern.
type Admin struct {
	Pattern attestor.Pattern
	Role    attestor.AdminRole
	Range   hcl.Range // where it stands
}

// Ledger says how state is stored.
type Ledger struct {
	Type string // "sqlite"
	// StopIssuingBelow is the free disk space under which nothing is issued; revoking goes on.
	StopIssuingBelow ByteSize
}

// Audit says where the audit log's key and copies are.
type Audit struct {
	Origin  string // the log's name in checkpoints and receipts (C2SP tlog-checkpoint)
	KeyFile string // absolute; signs checkpoints; never in DataDir
	// File takes a copy of each record as a line of JSON; "" writes none.
	File string
	// Checkpoints takes each signed checkpoint, appended; "" writes none.
	Checkpoints string
}

// Limits bound what callers can use up.
type Limits struct {
	ConnectionMaxAge     time.Duration // then the connection is asked to end (GOAWAY)
	ConnectionGrace      time.Duration // and so long after, it is closed
	HandshakeTimeout     time.Duration // from accept to the end of the TLS handshake
	MaxConcurrentStreams int           // of one connection
	MaxMessage           ByteSize      // of one request
}

// Teardown tunes the loop that ends leases.
type Teardown struct {
	StuckAfter time.Duration // a lease whose end was asked for so long ago is flagged
}

// Reconcile says when backends are compared with the ledger.
type Reconcile struct {
	Every time.Duration // zero is never
}

// Log says what is logged and how.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // json, console
}

// Default returns the configuration of an empty file. It is not valid: what has no default is zero.
func Default() Config {
	return Config{
		DataDir: "/var/lib/stint",
		Listen:  Listen{GRPC: "0.0.0.0:7846", HTTP: "0.0.0.0:7847", Admin: "/run/stint/admin.sock"},
		Ledger:  Ledger{Type: "sqlite", StopIssuingBelow: 512 * MiB},
		Audit: Audit{
			KeyFile:     "/etc/stint/audit.key",
			File:        "/var/log/stint/audit.jsonl",
			Checkpoints: "/var/log/stint/checkpoints.log",
		},
		Limits: Limits{
			ConnectionMaxAge:     10 * time.Minute,
			ConnectionGrace:      75 * time.Second, // above the longest wait of a call, 60 s
			HandshakeTimeout:     10 * time.Second,
			MaxConcurrentStreams: 128,
			MaxMessage:           256 * KiB,
		},
		Teardown:  Teardown{StuckAfter: 10 * time.Minute},
		Reconcile: Reconcile{Every: time.Hour},
		Log:       Log{Level: "info", Format: "json"},
	}
}

// Domains returns which trust domains agents may come from, for a broker whose own SVID is of the trust domain own.
// The task trust domain among them is an error.
func (c Config) Domains(own spiffeid.TrustDomain) (attestor.Domains, error) {
	return attestor.NewDomains(own, c.TaskTrustDomain, c.Identity.TrustDomains...)
}
