package reconcile

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
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

// byCRL compares with a CA: its CRL says what it believes to be revoked, its list, if it has one, what it has signed. The
// serials are lease IDs. As with byList, the CA tells first, and the ledger is read after it.
func (c *comparison) byCRL(ctx context.Context, publisher plugins.Publisher) error {
	c.inv.Source = "crl"
	issued := c.listIssued(ctx, publisher)
	revoked, err := readCRL(ctx, publisher)
	if err != nil {
		c.gap("", err)
		return nil
	}
	maps.DeleteFunc(issued.alive, func(serial string, _ plugins.Found) bool { return revoked[serial] })
	c.inv.Held = len(revoked) + len(issued.alive)
	leases, err := c.certificates(ctx)
	if err != nil {
		return err
	}
	var missing []lease.Lease
	for _, l := range leases {
		switch {
		case l.State == lease.Active && revoked[l.ID.String()]:
			if err := c.gone(ctx, l, l.ID.String()); err != nil {
				return err
			}
		case revoked[l.ID.String()]:
			c.inv.Matched++
		case l.State == lease.Revoked && !ending(l):
			missing = append(missing, l)
		}
	}
	if err := c.unrevoked(ctx, publisher, missing); err != nil {
		return err
	}
	issued.lacks(c, leases, revoked)
	return c.signed(ctx, publisher, issued.alive)
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
		if revoked[l.ID.String()] {
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

// readCRL returns the serials that are revoked, as plugins.Register writes them.
func readCRL(ctx context.Context, publisher plugins.Publisher) (map[string]bool, error) {
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
	revoked := map[string]bool{}
	for _, entry := range list.RevokedCertificateEntries {
		revoked[string(plugins.SerialHandle(entry.SerialNumber))] = true
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
