package reconcile

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// Why a CRL cannot be compared.
var (
	errNoCRL  = errors.New("the backend's CRL cannot be read")
	errOldCRL = errors.New("the backend's CRL is out of date")
)

// byCRL compares with a CA. A CA does not list what it has signed (an embedded one keeps nothing but the ledger's rows), but
// its CRL says what it believes to be revoked, and the serials are lease IDs. So what it has issued to others stays unseen,
// and is reported as a gap.
func (c *comparison) byCRL(ctx context.Context, publisher plugins.Publisher) error {
	c.inv.Source = "crl"
	c.inv.Gaps = append(c.inv.Gaps, Gap{
		Problem: "the CA does not list what it has signed; only revocations are compared", Permanent: true,
	})
	revoked, err := readCRL(ctx, publisher)
	if err != nil {
		c.gap("", err)
		return nil
	}
	c.inv.Held = len(revoked)
	leases, err := c.certificates(ctx)
	if err != nil {
		return err
	}
	var missing []lease.Lease
	for _, l := range leases {
		switch {
		case l.State == lease.Active && revoked[l.ID]:
			if err := c.gone(ctx, l, l.ID.String()); err != nil {
				return err
			}
		case revoked[l.ID]:
			c.inv.Matched++
		case l.State == lease.Revoked && !ending(l):
			missing = append(missing, l)
		}
	}
	return c.unrevoked(ctx, publisher, missing)
}

// unrevoked judges leases that have ended by the ledger and were not on the CRL. They may have ended after that was read; what
// is not on the one that is there now either was lost.
func (c *comparison) unrevoked(ctx context.Context, publisher plugins.Publisher, leases []lease.Lease) error {
	if len(leases) == 0 {
		return nil
	}
	revoked, err := readCRL(ctx, publisher)
	if err != nil {
		c.gap("", err)
		return nil
	}
	for _, l := range leases {
		if revoked[l.ID] {
			c.inv.Matched++
			continue
		}
		c.inv.Findings = append(c.inv.Findings, Finding{
			Kind: Ended, Role: l.Role, Key: l.ID.String(), PublicRef: l.PublicRef, IssuedAt: l.CreatedAt, NotAfter: l.NotAfter,
			Lease: &l, handle: l.Handle,
		})
	}
	return nil
}

// readCRL returns the serials that are revoked.
func readCRL(ctx context.Context, publisher plugins.Publisher) (map[lease.ID]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	der, err := publisher.CRL(ctx)
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCRL, err)
	}
	if list.NextUpdate.Before(time.Now()) {
		return nil, fmt.Errorf("%w since %s", errOldCRL, list.NextUpdate.UTC().Format(time.RFC3339))
	}
	revoked := map[lease.ID]bool{}
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Sign() > 0 && entry.SerialNumber.BitLen() <= 128 {
			var id lease.ID
			entry.SerialNumber.FillBytes(id[:])
			revoked[id] = true
		}
	}
	return revoked, nil
}

// lookBack is how long ago at least a certificate may have been issued to be compared, also by a role that is gone.
const lookBack = 24 * time.Hour

// certificates reads the leases that have not expired: ACTIVE ones, and those that were revoked by CRL.
func (c *comparison) certificates(ctx context.Context) ([]lease.Lease, error) {
	var out []lease.Lease
	now, longest := time.Now(), lookBack
	for _, role := range c.roles {
		longest = max(longest, role.MaxTTL)
	}
	err := c.cfg.Ledger.View(ctx, func(r ledger.Reader) error {
		out = nil
		f := ledger.LeaseFilter{States: []lease.State{lease.Active, lease.Revoked}, Limit: page}
		return eachLease(r, f, func(l lease.Lease) bool {
			if l.Backend == c.inv.Backend && l.NotAfter.After(now) && (l.State == lease.Active || l.Proof == plugins.OnCRL) {
				out = append(out, l)
			}
			return l.CreatedAt.After(now.Add(-longest - time.Hour)) // what is older has expired
		})
	})
	return out, err
}
