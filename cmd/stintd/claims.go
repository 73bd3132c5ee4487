package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
)

// releaseClaims frees the leases that an earlier process was ending when it was killed. The lock on the data directory says
// that nobody else works on this ledger; without this, those credentials would stay usable until the claims run out.
func (h *house) releaseClaims(ctx context.Context) error {
	held, err := h.heldClaims(ctx, time.Now())
	if err != nil || len(held) == 0 {
		return err
	}
	_, err = h.ledger.Update(ctx, func(tx *ledger.Tx) error {
		for _, from := range held {
			next := from
			next.Claim++
			next.ClaimUntil = time.Time{}
			if stale := tx.UpdateLease(next, from); stale != nil {
				return stale
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("release claims of an earlier process: %w", err)
	}
	h.logger.Info("ends that an earlier process had begun are begun again", zap.Int("leases", len(held)))
	return nil
}

// heldClaims returns the leases with a claim that still holds.
func (h *house) heldClaims(ctx context.Context, now time.Time) ([]lease.Lease, error) {
	var held []lease.Lease
	err := h.eachLease(ctx, openStates(), func(l lease.Lease) {
		if l.ClaimUntil.After(now) {
			held = append(held, l)
		}
	})
	return held, err
}
