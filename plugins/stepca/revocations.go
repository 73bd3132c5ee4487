package stepca

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
)

// keepExpired is for how long an entry stays after its certificate's end, so that a clock which jumps forward and back
// by less loses none.
const keepExpired = time.Hour

// revocation asks for a serial number to be on the CRL.
type revocation struct {
	lease    plugins.LeaseID
	notAfter time.Time // zero where it is not known
}

// revocations is the embedded CA's only state: the newest CRL, in memory and in a file. Many revocations share one
// signature and one write.
type revocations struct {
	settings *settings
	issuer   *issuer
	signer   apiv1.CertificateAuthorityCRLGenerator
	logger   *zap.Logger
	path     string

	current atomic.Pointer[crl]
	group   *group[revocation]
}

// open reads the CRL file, or begins a new one, and signs once, so that a fresh CRL is there from the start.
func (r *revocations) open(now time.Time) error {
	der, err := os.ReadFile(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read CRL: %w", err)
	}
	known, cause := &crl{number: new(big.Int)}, errors.New("crl.der is missing")
	if err == nil {
		known, cause = readCRL(der, r.settings.arc, r.issuer.cert)
		if cause != nil && !r.issuer.used {
			known, cause = &crl{number: new(big.Int)}, nil // left by a start that did not come to its end
		}
	} else if !r.issuer.used {
		cause = nil
	}
	if cause != nil {
		if known, err = r.lose(cause, der, now); err != nil {
			return err
		}
	}
	r.current.Store(known)
	return r.publish(nil)
}

// lose begins anew after the revocations were lost, and keeps what is there of the file.
func (r *revocations) lose(cause error, der []byte, now time.Time) (*crl, error) {
	r.logger.Error("revocation state lost: certificates revoked before now may be accepted again until they are revoked again or expire",
		zap.Error(cause), zap.Time("until", now.Add(r.settings.MaxTTL)))
	if len(der) > 0 {
		aside := fmt.Sprintf("%s.damaged-%d", r.path, now.Unix())
		if err := r.settings.writeFile(aside, der); err != nil {
			return nil, fmt.Errorf("keep damaged CRL: %w", err)
		}
	}
	return &crl{number: big.NewInt(now.Unix()), lostAt: now}, nil
}

// add puts a serial number on the CRL and returns its entry and the number of a CRL that holds it, durable and served.
func (r *revocations) add(ctx context.Context, rev revocation) (entry, *big.Int, error) {
	if c := r.current.Load(); c.holds(rev.lease) {
		return c.entries[rev.lease], c.number, nil
	}
	if err := r.group.do(ctx, r.publish, rev); err != nil {
		return entry{}, nil, err
	}
	c := r.current.Load()
	e, ok := c.entries[rev.lease]
	if !ok { // pruned since: its certificate has expired
		return entry{}, nil, fmt.Errorf("%w: serial left the CRL", plugins.ErrNotProven)
	}
	return e, c.number, nil
}

// resign signs again although nothing changed.
func (r *revocations) resign(ctx context.Context) error { return r.group.do(ctx, r.publish) }

// publish signs the next CRL, writes it and serves it. Only one runs at a time: open, then the group.
func (r *revocations) publish(added []revocation) error {
	now := time.Now()
	next := r.current.Load().next(now, r.settings)
	for _, rev := range added {
		if !next.holds(rev.lease) {
			next.entries[rev.lease] = entry{revokedAt: now, notAfter: r.latest(rev, now)}
		}
	}
	list, err := next.list(r.settings.arc)
	if err != nil {
		return err
	}
	signed, err := r.signer.CreateCRL(&apiv1.CreateCRLRequest{RevocationList: list})
	if err != nil {
		return fmt.Errorf("%w: sign CRL: %w", plugins.ErrUnavailable, err)
	}
	next.der = signed.CRL
	if err := r.settings.writeFile(r.path, next.der); err != nil {
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, err)
	}
	r.current.Store(next)
	return nil
}

// latest is the last instant at which a revoked certificate can be valid.
func (r *revocations) latest(rev revocation, now time.Time) time.Time {
	if rev.notAfter.IsZero() {
		return now.Add(r.settings.MaxTTL)
	}
	return rev.notAfter
}

// next copies what is still needed into a CRL with the next number, not signed yet.
func (c *crl) next(now time.Time, s *settings) *crl {
	n := &crl{
		number:     new(big.Int).Add(c.number, big.NewInt(1)),
		signed:     now,
		nextUpdate: now.Add(s.CRLValidity).Truncate(time.Second),
		entries:    make(map[plugins.LeaseID]entry, len(c.entries)+1),
	}
	maps.Copy(n.entries, c.entries)
	maps.DeleteFunc(n.entries, func(_ plugins.LeaseID, e entry) bool {
		return !e.notAfter.IsZero() && now.After(e.notAfter.Add(keepExpired))
	})
	if !c.lostAt.IsZero() && now.Before(c.lostAt.Add(s.MaxTTL)) {
		n.lostAt = c.lostAt
	}
	return n
}

func (c *crl) holds(lease plugins.LeaseID) bool {
	_, ok := c.entries[lease]
	return ok
}

// keep returns nil when a CRL that can be used is there, which it signs if need be. Without one nothing may be issued.
func (r *revocations) keep(ctx context.Context, now time.Time) error {
	if now.Before(r.current.Load().nextUpdate) {
		return nil
	}
	return r.resign(ctx)
}

// run signs at a third of the CRL's validity until ctx is done.
func (r *revocations) run(ctx context.Context) error {
	ticker := time.NewTicker(r.settings.CRLValidity / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := r.resign(ctx); err != nil && ctx.Err() == nil {
				r.logger.Error("sign CRL", zap.Error(err), zap.Time("next_update", r.current.Load().nextUpdate))
			}
		}
	}
}

// healthy reports lost revocations and a CRL that could not be signed again.
func (r *revocations) healthy(now time.Time) error {
	c := r.current.Load()
	if now.After(c.nextUpdate) {
		return fmt.Errorf("%w: the CRL ran out at %s; it could not be signed or written", plugins.ErrUnavailable, c.nextUpdate.Format(time.RFC3339))
	}
	if until := c.lostAt.Add(r.settings.MaxTTL); !c.lostAt.IsZero() && now.Before(until) {
		return fmt.Errorf("%w: revocations from before %s were lost with %s; until %s certificates revoked then may be accepted again",
			plugins.ErrMisconfigured, c.lostAt.Format(time.RFC3339), filepath.Base(r.path), until.Format(time.RFC3339))
	}
	return nil
}
