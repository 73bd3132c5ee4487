package stepca

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
)

// follows reports whether a CRL is the one that is known, or one that came after it.
func (c *crl) follows(known *crl) bool {
	return known == nil || c.number.Cmp(known.number) > 0 || bytes.Equal(c.der, known.der)
}

// anew reports whether a CRL is of a step-ca that has lost its database since it signed the one that is known: it was signed
// no earlier, and does not follow it. One that was signed earlier comes out of a cache, or from another server.
func (c *crl) anew(known *crl) bool { return !c.follows(known) && !c.signed.Before(known.signed) }

// lose notes the revocations of the known CRL that step-ca has lost, but for those of certificates that have expired since.
func (r *remote) lose(known, c *crl) {
	for lease, e := range known.entries {
		if !c.holds(lease) && time.Since(e.revokedAt) < r.settings.MaxTTL {
			r.lost[lease] = e
		}
	}
	if len(r.lost) > 0 {
		r.logger.Error("step-ca counts its CRLs anew: its database was lost; what was revoked is revoked again",
			zap.Stringer("crl", c.number), zap.Stringer("known", known.number), zap.Int("lost", len(r.lost)))
	}
}

// regain asks for the revocations that were lost, and returns a CRL that holds them. What it does not come to is asked for by
// the next fetch; until then no end is believed.
func (r *remote) regain(ctx context.Context, c *crl) (*crl, error) {
	for lease, e := range r.lost {
		if c.holds(lease) || time.Since(e.revokedAt) >= r.settings.MaxTTL {
			delete(r.lost, lease)
			continue
		}
		if _, err := r.askRevoke(ctx, serial(lease)); err != nil {
			return nil, fmt.Errorf("revoke again what step-ca has lost: %w", err)
		}
	}
	if len(r.lost) == 0 {
		return c, nil
	}
	c, err := r.download(ctx)
	if err != nil {
		return nil, err
	}
	for lease := range r.lost {
		if !c.holds(lease) {
			return nil, fmt.Errorf("%w: CRL %s does not hold what was revoked again", plugins.ErrNotProven, c.number)
		}
	}
	clear(r.lost)
	r.logger.Info("what step-ca had lost is revoked again", zap.Stringer("crl", c.number))
	return c, nil
}
