package teardown

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/plugins"
)

// retry records a failed attempt. It is tried again for ever; being stuck is a flag, never an end.
func (l *Loop) retry(tx *ledger.Tx, from lease.Lease, cause error, now time.Time) error {
	next, err := from.Retry(now.Add(backOff(from.Attempts)), reason(cause), now.Add(-time.Duration(l.stuckAfter.Load())))
	if err != nil {
		return err
	}
	if err = l.flag(tx, next, from, now); err != nil {
		return err
	}
	return tx.UpdateLease(next, from)
}

// flag records, and logs, that a lease came to be stuck.
func (l *Loop) flag(tx *ledger.Tx, next, from lease.Lease, now time.Time) error {
	if !next.Stuck || from.Stuck {
		return nil
	}
	rec := leaseRecord(audit.LeaseStuck, next, now)
	rec.Count = int64(next.Attempts)
	if _, err := tx.Append(rec); err != nil {
		return err
	}
	l.cfg.Logger.Error("the end of a lease is overdue", zap.Stringer("lease", next.ID), zap.String("backend", next.Backend),
		zap.String("role", next.Role), zap.Int("attempts", next.Attempts), zap.String("last_error", next.LastError))
	return nil
}

// reason is what a failed attempt leaves in the ledger: the class of the error, without text of the backend's.
func reason(err error) string {
	switch {
	case errors.Is(err, errNotConfigured):
		return errNotConfigured.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, plugins.ErrUnavailable):
		return plugins.ErrUnavailable.Error()
	case errors.Is(err, plugins.ErrMisconfigured):
		return plugins.ErrMisconfigured.Error()
	case errors.Is(err, plugins.ErrNotProven):
		return plugins.ErrNotProven.Error()
	case errors.Is(err, plugins.ErrUnknownHandle):
		return plugins.ErrUnknownHandle.Error()
	default:
		return "failed; see the log"
	}
}

// backOff returns how long to wait after so many failed attempts: doubling, capped, and jittered by half.
func backOff(attempts int) time.Duration {
	d := maxRetry
	if attempts < 7 {
		d = min(maxRetry, firstRetry<<attempts)
	}
	return d/2 + rand.N(d/2) //nolint:gosec // jitter needs no unpredictability
}
