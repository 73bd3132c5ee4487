package broker

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// undo ends a credential whose commit failed. Only a certificate that is in the ledger after all is left alone: the same
// request is given it, and its task ends it. A secret is lost with this answer either way.
func (b *Broker) undo(ctx context.Context, is *issue, cause error) {
	if errors.Is(cause, ledger.ErrOutcomeUnknown) && is.lease.Chain != nil && b.isActive(ctx, is.lease.ID) {
		return
	}
	b.discard(ctx, is)
}

// isActive reports whether the ledger, asked again, holds a lease as ACTIVE.
func (b *Broker) isActive(ctx context.Context, id lease.ID) bool {
	active := false
	err := b.ledger.View(context.WithoutCancel(ctx), func(r ledger.Reader) error {
		l, err := r.Lease(id)
		active = l.State == lease.Active
		return err
	})
	return err == nil && active
}

// discard ends what was prepared or issued for a lease that will not be handed out. Where there is an intent it only
// hastens the sweep; where there is none, it is what ends a credential that the ledger does not know.
func (b *Broker) discard(ctx context.Context, is *issue) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), IssueTimeout)
	defer cancel()
	held := is.lease.Held()
	held.NotIssued = !is.asked // only what was prepared is there to end
	_, err := is.backend.Revoke(ctx, held)
	failpoint.Hit("issue.discarded")
	if err != nil {
		b.log.Warn("unused credential not ended at once; it ends by itself or is swept",
			zap.Stringer("lease", is.lease.ID), zap.Error(err))
	}
}

// inTime marks a commit that did not come in time as the ledger's doing, and not the backend's.
func inTime(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ledger.ErrUnavailable, err)
	}
	return err
}

// wipe overwrites a secret that will not be handed out.
func wipe(c plugins.Credential) {
	for _, v := range c.Fields {
		v.Wipe()
	}
}
