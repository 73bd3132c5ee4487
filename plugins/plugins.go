// Package plugins is the contract between the broker and the systems that issue credentials.
//
// The words MUST, MUST NOT and MAY are those of RFC 2119. Package plugintest holds the suite that checks them.
//
// Concurrency: every method MAY be called from many goroutines at once, for different leases. For one lease the broker
// calls Prepare, then Issue at most once each, and Revoke any number of times, never two at a time; Revoke MAY come
// while an Issue of the same lease is still in flight.
//
// Deadlines: every context has one. A method MUST return soon after its context is done, and MUST NOT go on working in
// the background on behalf of the call. It MUST NOT retry an issue by itself.
//
// What a failed call may leave behind: Prepare MAY leave something that works as no credential and ends by itself.
// Issue MAY leave a working credential only if the handle it was given (Prepared.Handle, or for backends that choose
// handles from it, the lease ID) suffices for Revoke to end it; an error that wraps ErrNotIssued promises that nothing
// was made. CheckRole and Revoke leave nothing.
package plugins

import (
	"context"
	"encoding/hex"
	"iter"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins/secret"
)

// Backend is one configured plugin instance, such as vault/prod. Its constructor returns only when the configuration is
// valid; it MAY return before the system behind it answers, and then says ErrUnavailable per call.
type Backend interface {
	// Descriptor says what the backend can do. It MUST be constant for the life of the instance and do no I/O.
	Descriptor() Descriptor

	// CheckRole validates an operator's role and says what issuing by it will mean. It MUST do no I/O: it runs in
	// the decision path's snapshot. A role that cannot keep the promise that everything ends by the backend's own
	// clock MUST be refused, with an error that says which key to change.
	CheckRole(role Role) (RoleInfo, error)

	// Issue makes one credential. On success the Credential's Handle MUST suffice to end it. See the package
	// comment for what an error may leave behind.
	Issue(ctx context.Context, req Request) (Credential, error)

	// Revoke ends what Held names and proves it, or says why it could not yet. It MUST be idempotent: ending what
	// is gone already is a success, with the proof that it is gone. A nil error with an Ending of Pending means that
	// the backend cannot revoke this kind, which ends by itself at Ending.UsableUntil: the broker calls again then.
	// An answer that does not prove the end (a 403, a 5xx, a timeout, another node's view) MUST be an error.
	Revoke(ctx context.Context, held Held) (Ending, error)
}

// Preparer is implemented by backends whose Issue has effects before the broker sees the answer. The broker calls
// Prepare first, commits the returned handle durably, and only then calls Issue.
type Preparer interface {
	// Prepare makes what Issue needs. What it makes MUST NOT work as a credential and MUST end by itself.
	Prepare(ctx context.Context, req Request) (Prepared, error)
}

// Runner is implemented by backends with work of their own: logging in, renewing, signing a CRL on a timer.
type Runner interface {
	// Run works until ctx is done and returns nil then. A fault it can outlive is logged and retried, not returned.
	Run(ctx context.Context) error
}

// Checker is implemented by backends that can inspect their own configuration at the backend.
type Checker interface {
	// Check connects and reports what breaks or weakens the promise for these roles; nil where they are not known, which
	// is not the same as none. It changes nothing.
	Check(ctx context.Context, roles []Role) []Finding
}

// Prober is implemented by backends that can say whether they would answer now.
type Prober interface {
	// Healthy returns nil, or an error that wraps ErrUnavailable or ErrMisconfigured and names the cause.
	Healthy(ctx context.Context) error
}

// Lister is implemented by backends that can say what they hold, so that it can be compared with what the broker knows. It
// changes nothing at the backend.
type Lister interface {
	// List yields what the backend holds under what the role names there, whoever asked for it: each once, with Handle
	// and PublicRef; the other fields MAY be zero. It MUST NOT yield what was issued under anything else. What was alive
	// before the call and still is after it MUST be yielded, unless the last that is yielded is an error; the error
	// MUST wrap errors.ErrUnsupported where the role can never be listed. The caller MAY stop at any time.
	List(ctx context.Context, role Role) iter.Seq2[Found, error]

	// Find asks the backend for what a handle names, one of List or one that Issue returned, and returns all that there
	// is to know of it. The error MUST wrap ErrGone where the backend's answer proves that it is gone, and MUST NOT
	// wrap it where the answer does not (see Backend.Revoke).
	Find(ctx context.Context, handle Handle) (Found, error)

	// Key returns what a handle names, as comparable text: the handles of List and of Issue have the same key exactly
	// when they name the same credential. It MUST be empty for a handle by which List yields nothing, such as one that
	// was prepared before the backend named the credential. It MUST do no I/O.
	Key(handle Handle) string
}

// Publisher is implemented by backends that issue certificates: what a relying service needs to trust them.
type Publisher interface {
	// Bundle returns the CA certificates in DER, roots first. Never empty once the backend is ready.
	Bundle() [][]byte
	// CRL returns the newest signed CRL in DER (RFC 5280 section 5), or an error where the backend has none.
	CRL(ctx context.Context) ([]byte, error)
}

// Descriptor says what a backend can do.
type Descriptor struct {
	// Type is the plugin's name in configuration: "vault", "stepca".
	Type string
	// Section is the key of a role's spec that belongs to the plugin: "vault", "certificate".
	Section string
	// Horizon is for how long after its deadline an issue call may still bring something to life at the backend
	// (Vault: max_request_duration). An intent is never swept earlier. Zero where issuing has no side effects.
	Horizon time.Duration
	// HandleIsLeaseID says that the lease ID alone suffices to revoke, even when every answer was lost.
	HandleIsLeaseID bool
}

// LeaseID is the 128-bit ID of a lease, a UUIDv7 (RFC 9562). For certificates it is the serial number.
type LeaseID [16]byte

// String returns 32 upper-case hex digits, as `openssl x509 -serial` prints them.
func (id LeaseID) String() string { return strings.ToUpper(hex.EncodeToString(id[:])) }

// Handle is what ends a credential: public, opaque to the broker, at most 4 KiB. It MUST NOT hold a secret.
type Handle string

// Role is an operator's recipe as the plugin sees it.
type Role struct {
	Name    string
	Backend string // the instance: "vault/prod"
	// Config is the role's own section (Descriptor.Section) as JSON. Unknown keys MUST be refused.
	Config []byte
	MaxTTL time.Duration
	// AcceptPermanent is true where the operator accepted a credential that cannot be ended.
	AcceptPermanent bool
	// Parameters are the names that an agent may fill, already matched against their patterns.
	Parameters []string
}

// Ends is how a role's credentials end.
type Ends int

// The ways in which a credential can end, from best to worst.
const (
	EndsUnknown   Ends = iota // never valid
	EndsRevocable             // at once, by revoking
	EndsLapsing               // by itself at a known instant
	EndsNever                 // not at all: a static secret that was disclosed
)

// RoleInfo is what issuing by a role will mean.
type RoleInfo struct {
	Ends     Ends
	Exposure Exposure
	// MaxTTL is the most the backend can bind for this role; zero means no bound of its own.
	MaxTTL time.Duration
	// NeedsCSR is true for certificates: the agent keeps the key and sends a PKCS #10 request (RFC 2986).
	NeedsCSR bool
	// Lane names what fails together inside the backend (a database, a CA), for fair teardown:
	// "database/creds/stint-orders-ro".
	Lane string
	// Fields are the names of the secret fields that Issue returns, where they are known beforehand.
	Fields []string
}

// EndingTime is the longest that it takes to end a credential at a backend that answers, from the moment when its end was
// asked for: a commit, a claim, the calls, and what else has to end at that moment. It is part of an exposure. It is a
// promise of the broker's and not a timeout: nothing is given up when it has passed.
const EndingTime = 5 * time.Second

// Exposure is the longest time for which a credential could still work after teardown was asked for, while the backend
// answers. While it does not, the credential's own end is the bound.
type Exposure struct {
	// Bounded is false where no bound can be stated (Max is then meaningless).
	Bounded bool
	// Max is the bound, where the relying party checks revocation as the backend provides it.
	Max time.Duration
	// UntilExpiry is true where relying parties that check nothing accept the credential until it expires.
	UntilExpiry bool
	// Reason says in a few words where the numbers come from.
	Reason string
}

// Request is one wish for a credential. All of it was decided before; a plugin only carries it out.
type Request struct {
	Lease        LeaseID
	TaskID       string // UUIDv7
	TaskName     string // the short name for people
	Agent        string // SPIFFE ID
	ManifestHash [32]byte
	Role         Role
	Params       map[string]string
	// NotAfter is the credential's end. The backend MUST bind it, and MAY round it down by less than a second.
	NotAfter time.Time
	// CSR is a PKCS #10 request in DER; set exactly when RoleInfo.NeedsCSR.
	CSR []byte
	// Prepared is what Prepare returned, for a Preparer; else zero.
	Prepared Prepared
}

// Prepared is what Prepare made.
type Prepared struct {
	// Handle goes into the durable intent. It MUST suffice for Revoke to end whatever Issue may make.
	Handle Handle
	// State goes from Prepare to Issue in memory only, and is never stored.
	State secret.Value
	// NotAfter is when what was prepared ends by the backend's clock.
	NotAfter time.Time
	// UsableUntil is until when, at worst, what Issue makes could work if its answer is lost and the backend forgets it: the
	// same that a Swept ending says. Zero means that it is never later than the request's NotAfter.
	UsableUntil time.Time
}

// Credential is what Issue made.
type Credential struct {
	// Handle replaces the intent's; it MUST be able to end the credential.
	Handle Handle
	// Fields are the secret's named parts: "username", "password", "key". Nil for certificates.
	Fields map[string]secret.Value
	// Chain is the certificate chain in DER, leaf first; Bundle the roots to trust. Nil for secrets.
	Chain, Bundle [][]byte
	// PublicRef names the credential to people and backends without giving it away: a database user, a serial.
	PublicRef string
	// NotAfter is the end by the backend's own word, not what was asked for. Zero exactly for EndsNever.
	NotAfter time.Time
	// UsableUntil is until when, at worst, it could work if the backend never did anything more: what was made elsewhere ends
	// by the clock there, which MAY know another end, or none (NoEnd, as for EndsNever). Zero means NotAfter.
	UsableUntil time.Time
}

// NoEnd is the instant of what does not end by itself: RFC 5280 section 4.1.2.5 writes no well-defined end so.
func NoEnd() time.Time { return time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC) }

// Held is what is known of a credential that must end.
type Held struct {
	Lease    LeaseID
	Role     string // the role's name; it may no longer exist
	Handle   Handle
	IssuedAt time.Time // when issuing began
	NotAfter time.Time // zero where it was never known
	// Uncertain is true for an intent: whether anything was issued is not known, and its horizon has passed.
	Uncertain bool
	// NotIssued is true where Issue wrapped ErrNotIssued: only what Prepare made is left to end. The proof is then
	// NotIssued, and no sweep is needed.
	NotIssued bool
}

// Proof says how it is known that a credential has ended.
type Proof string

// The kinds of proof.
const (
	// ReadBack: the backend, asked for an ID that it knew before, said that it is gone.
	ReadBack Proof = "read_back"
	// OnCRL: the serial is in a CRL that the issuer signed.
	OnCRL Proof = "crl"
	// Lapsed: its last possible instant has passed by the backend's own rule.
	Lapsed Proof = "lapsed"
	// Swept: the token is gone, and the credential's ID was never known. Counted as usable until its maximum.
	Swept Proof = "swept"
	// LostAtBackend: the backend had ended it behind our back; read back.
	LostAtBackend Proof = "lost_at_backend"
	// NotIssued: the backend said, or the order of events proves, that nothing was ever issued.
	NotIssued Proof = "not_issued"
	// Disclosed: it cannot be ended at all. Not an end, only final.
	Disclosed Proof = "disclosed"
	// Pending: it cannot be revoked and ends by itself at UsableUntil. Not final.
	Pending Proof = "pending"
)

// Ending is how a credential ended.
type Ending struct {
	Proof Proof
	// At is when the end was established, by this machine's clock.
	At time.Time
	// UsableUntil is the last instant at which it could have worked where revocation is honoured; zero means At, and NoEnd
	// that nothing is known to end it.
	UsableUntil time.Time
	// UncheckedUntil is until when parties that check no revocation accept it; zero where there are none.
	UncheckedUntil time.Time
	// Detail is public and short: "Vault: invalid lease; token gone", "CRL 418".
	Detail string
}

// Severity says how bad a finding is.
type Severity string

// The severities of findings.
const (
	Breaks  Severity = "error"   // the promise cannot be kept
	Weakens Severity = "warning" // it can, with a longer exposure or more rights than needed
)

// Finding is one fault in a backend's set-up.
type Finding struct {
	Severity Severity
	// Code names the kind of fault for programs: "token-role-not-orphan". It does not change; texts may. Lower case
	// letters, digits and dashes.
	Code    string
	Subject string // what it is about: "token role stint", "role orders-db-read"
	Problem string // what was found
	Remedy  string // the exact command or line that mends it
}

// Found is something alive at a backend.
type Found struct {
	// Handle MUST suffice for Revoke to end it.
	Handle Handle
	// PublicRef names it to people: the Credential's PublicRef where the backend can tell it, else the part of the
	// handle that is its ID at the backend.
	PublicRef string
	// IssuedAt and NotAfter are by the backend's clock. NotAfter is zero where there is no end.
	IssuedAt, NotAfter time.Time
}
