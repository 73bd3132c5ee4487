package main

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

// knownElsewhere reads the newest checkpoint that was kept outside the ledger. The exporter follows commits that are on disk,
// so that no crash leaves it ahead of the ledger.
func knownElsewhere(checkpoints string) ([]byte, error) {
	if checkpoints == "" {
		return nil, nil
	}
	known, err := audit.NewestCheckpoint(checkpoints)
	if err != nil {
		return nil, fmt.Errorf("audit.checkpoints: %w", err)
	}
	return known, nil
}

// checkpointHint says what to do about a file whose newest checkpoint is not of this log.
func checkpointHint(err error, checkpoints string) error {
	if !errors.Is(err, audit.ErrCheckpoint) || errors.Is(err, ledger.ErrMismatch) {
		return err
	}
	return fmt.Errorf("%w; move %s away if it is of another log, and start again", err, checkpoints)
}

// sayHeld tells whoever watches what is going on, and what to type.
func (h *house) sayHeld() {
	held, _ := h.ledger.Restored()
	fields := []zap.Field{
		zap.String("found", string(held.Found)), zap.Time("at", held.At), zap.Int64("records", h.ledger.Head().Size),
		zap.String("type", "stint restore show; stint reconcile; stint restore confirm"),
	}
	if known, err := audit.ReadCheckpoint(held.Known); err == nil {
		fields = append(fields, zap.Int64("records_known", known.Size), zap.Int64("epoch_known", known.Epoch()))
	}
	h.logger.Error("the ledger was restored from an older copy; it is held: nothing is issued, ended or changed until an "+
		"administrator confirms the restore", fields...)
}

// onceConfirmed runs fn once the ledger is not held, or nothing where ctx ends before.
func (h *house) onceConfirmed(ctx context.Context, fn func(context.Context) error) error {
	select {
	case <-h.ledger.Confirmed():
		return fn(ctx)
	case <-ctx.Done():
		return nil
	}
}

// takeUp faces what an earlier process left.
func (h *house) takeUp(ctx context.Context) error {
	if err := h.releaseClaims(ctx); err != nil {
		return err
	}
	return h.faceMissing(ctx)
}

// goOn does with a ledger that was confirmed what a start does with any, and then admits. An error ends the process: the
// next start finds a ledger that is confirmed.
func (h *house) goOn(ctx context.Context) error {
	if err := h.catalog.Settle(ctx); err != nil {
		return err
	}
	if err := h.takeUp(ctx); err != nil {
		return err
	}
	if err := h.record(ctx, audit.ServerStarted, ""); err != nil {
		return err
	}
	h.broker.Admit()
	h.logger.Info("the restore was confirmed; what is due is ended, and issuing goes on", zap.Int64("epoch", h.ledger.Head().Epoch))
	return nil
}

// heldError is what readiness says of a broker that is held.
func (h *house) heldError() error {
	switch {
	case h.ledger.Held():
		return errors.New("restored from an older copy, and not confirmed: nothing is issued or ended until stint restore confirm")
	case h.broker.Held():
		return errors.New("the restore was confirmed; the broker is about to go on")
	}
	return nil
}
