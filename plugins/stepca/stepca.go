package stepca

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"math/big"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
)

// section is the key of a role's spec that belongs to this plugin.
const section = "certificate"

// lapseSkew is for how long after NotAfter a verifier with a slow clock may still accept a certificate.
const lapseSkew = time.Minute

// Backend issues certificates. It is safe for concurrent use. Besides plugins.Backend it is a Runner, a Checker, a
// Prober, a Publisher and a Register.
type Backend struct {
	settings *settings
	ca       authority
	health   inspector
	// horizon goes into the descriptor: zero for the embedded CA, which has no effect before its answer.
	horizon time.Duration
	// lapses is how long after its end a certificate needs no CRL any more.
	lapses time.Duration
}

// authority is what the two modes do differently.
type authority interface {
	// sign returns the chain in DER, leaf first. It may lower l.notAfter and raise l.notBefore.
	sign(ctx context.Context, l *leaf) ([][]byte, error)
	revoke(ctx context.Context, rev revocation) (revoked, error)
	crl(ctx context.Context) ([]byte, error)
	roots() [][]byte
	intermediates() [][]byte
}

// inspector is the rest of a mode.
type inspector interface {
	run(ctx context.Context) error
	issued(ctx context.Context) iter.Seq2[plugins.Found, error]
	healthy(ctx context.Context) error
	check(ctx context.Context, roles []plugins.Role) []plugins.Finding
}

// revoked is what a CRL says of a serial number.
type revoked struct {
	number     *big.Int
	notAfter   time.Time // the certificate's end, zero where it is not known
	olderUntil time.Time // until when a CRL without the serial may be used
}

// New makes a backend. In embedded mode it reads the data directory, and makes the CA there when it is new; in remote
// mode it asks nobody. Errors wrap plugins.ErrMisconfigured where an operator has to change something.
func New(cfg Config, logger *zap.Logger) (*Backend, error) {
	s, err := cfg.check()
	if err != nil {
		return nil, err
	}
	b := &Backend{settings: &s, lapses: lapseSkew}
	if s.Mode == Remote {
		ca, remoteErr := newRemote(&s, logger)
		if remoteErr != nil {
			return nil, fmt.Errorf("%w: %s: %w", plugins.ErrMisconfigured, cfg.Instance, remoteErr)
		}
		b.ca, b.health, b.horizon = ca, ca, remoteHorizon
		return b, nil
	}
	ca, err := openEmbedded(&s, logger)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", plugins.ErrMisconfigured, cfg.Instance, err)
	}
	b.ca, b.health, b.lapses = ca, ca, keepExpired
	return b, nil
}

// Descriptor says that the lease ID is the handle, and in remote mode that a call may have effects until the token
// that it carries is no longer accepted.
func (b *Backend) Descriptor() plugins.Descriptor {
	return plugins.Descriptor{Type: "stepca", Section: section, Horizon: b.horizon, HandleIsLeaseID: true}
}

// CheckRole reads the section "certificate": usages, common_name, dns_names.
func (b *Backend) CheckRole(r plugins.Role) (plugins.RoleInfo, error) {
	if _, err := parseRole(r.Config); err != nil {
		return plugins.RoleInfo{}, err
	}
	if r.MaxTTL > b.settings.MaxTTL {
		return plugins.RoleInfo{}, fmt.Errorf("%w: ttl.max is %s; the CA signs for at most %s", plugins.ErrInvalidRole, r.MaxTTL, b.settings.MaxTTL)
	}
	return plugins.RoleInfo{
		Ends: plugins.EndsRevocable, MaxTTL: b.settings.MaxTTL, NeedsCSR: true, Lane: "certificate/", Exposure: b.exposure(),
	}, nil
}

// exposure adds what a revocation takes: until then another one, or the timer, may sign a CRL that does not list the
// certificate, and a service may use that one for all its validity.
func (b *Backend) exposure() plugins.Exposure {
	validity := b.settings.CRLValidity
	return plugins.Exposure{
		Bounded: true, Max: validity + plugins.EndingTime, UntilExpiry: true,
		Reason: fmt.Sprintf("CRL valid %s, signed within %s; services that read no CRL accept it until it expires", validity, plugins.EndingTime),
	}
}

// Issue checks the request and has the certificate signed.
func (b *Backend) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	l, err := b.settings.newLeaf(req, time.Now())
	if err != nil {
		return plugins.Credential{}, err
	}
	chain, err := b.ca.sign(ctx, l)
	if err != nil {
		return plugins.Credential{}, fmt.Errorf("sign certificate: %w", err)
	}
	return plugins.Credential{
		Handle: plugins.Handle(l.lease.String()), Chain: chain, Bundle: b.ca.roots(), PublicRef: l.publicRef(), NotAfter: l.notAfter,
	}, nil
}

// Revoke puts the serial on the CRL. It says Lapsed instead when the certificate has expired: of the embedded CA an hour
// ago, for as long as its CRL keeps what has expired, so that a clock which is ahead by less ends nothing that still works.
func (b *Backend) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	ca, asks := b.ca.(*remote)
	if number, stranger := strangerNumber(held.Handle); stranger && asks {
		on, err := ca.revokeNumber(ctx, number, held.NotAfter)
		if err != nil {
			return plugins.Ending{}, fmt.Errorf("revoke certificate: %w", err)
		}
		return on.ending(held.NotAfter, time.Now()), nil
	}
	lease, err := leaseOf(held)
	if err != nil {
		return plugins.Ending{}, err
	}
	if now := time.Now(); !held.NotAfter.IsZero() && now.After(held.NotAfter.Add(b.lapses)) {
		return plugins.Ending{Proof: plugins.Lapsed, At: now, UsableUntil: held.NotAfter, Detail: "certificate expired"}, nil
	}
	on, err := b.ca.revoke(ctx, revocation{lease: lease, notAfter: held.NotAfter})
	if err != nil {
		return plugins.Ending{}, fmt.Errorf("revoke certificate: %w", err)
	}
	return on.ending(held.NotAfter, time.Now()), nil
}

// ending bounds what the CRL says by the certificate's own end.
func (r revoked) ending(notAfter, now time.Time) plugins.Ending {
	if notAfter.IsZero() {
		notAfter = r.notAfter
	}
	e := plugins.Ending{
		Proof: plugins.OnCRL, At: now, UsableUntil: r.olderUntil, UncheckedUntil: notAfter, Detail: "CRL " + r.number.String(),
	}
	if !notAfter.IsZero() && notAfter.Before(e.UsableUntil) {
		e.UsableUntil = notAfter
	}
	return e
}

// leaseOf returns the lease whose certificate is to end: the handle, or the lease itself where that was never known.
func leaseOf(held plugins.Held) (plugins.LeaseID, error) {
	lease := held.Lease
	if held.Handle != "" {
		raw, err := hex.DecodeString(string(held.Handle))
		if err != nil || len(raw) != len(lease) {
			return lease, fmt.Errorf("revoke certificate: %w", plugins.ErrUnknownHandle)
		}
		lease = plugins.LeaseID(raw)
	}
	if (lease == plugins.LeaseID{}) {
		return lease, fmt.Errorf("revoke certificate: %w", plugins.ErrUnknownHandle)
	}
	return lease, nil
}

// Issued yields what was signed and has not expired.
func (b *Backend) Issued(ctx context.Context) iter.Seq2[plugins.Found, error] {
	return b.health.issued(ctx)
}

// Run signs, or in remote mode fetches, the CRL on a timer until ctx is done.
func (b *Backend) Run(ctx context.Context) error { return b.health.run(ctx) }

// Healthy says whether certificates could be issued and revoked now.
func (b *Backend) Healthy(ctx context.Context) error { return b.health.healthy(ctx) }

// Check reports what is wrong with the set-up of the CA.
func (b *Backend) Check(ctx context.Context, roles []plugins.Role) []plugins.Finding {
	return b.health.check(ctx, roles)
}

// Bundle returns the CA certificates: roots, then intermediates as far as they are known.
func (b *Backend) Bundle() [][]byte { return append(b.ca.roots(), b.ca.intermediates()...) }

// CRL returns the newest CRL from memory. In remote mode it wraps ErrUnavailable until the first one was fetched.
func (b *Backend) CRL(ctx context.Context) ([]byte, error) { return b.ca.crl(ctx) }
