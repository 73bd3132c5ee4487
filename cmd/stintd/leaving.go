package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/status"
	"github.com/stint-dev/stint/broker/teardown"
	"github.com/stint-dev/stint/plugins"
)

// letGo takes the backends out of what is in force that have left the configuration, and have nothing left to end.
func (h *house) letGo(ctx context.Context) {
	for _, in := range h.catalog.Backends().All() {
		o := h.opened[in.Name]
		if !in.Leaving || time.Since(o.left) < lastCall {
			continue
		}
		done, err := h.finished(ctx, in.Name, o)
		if err == nil && done {
			err = h.catalog.LetGo(ctx, in.Name)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			h.logger.Error("a removed backend is not let go of yet; it is tried again", zap.String("backend", in.Name), zap.Error(err))
		case done:
			o.stop()
			delete(h.opened, in.Name)
			h.logger.Info("let go of a removed backend: all that it issued is final", zap.String("backend", in.Name))
		}
	}
}

// finished reports whether nothing of a backend is open any more. The CRL of a CA is served until the last certificate that
// could be on it has expired: who finds none may accept what was revoked.
func (h *house) finished(ctx context.Context, name string, o *opened) (bool, error) {
	open := 0
	err := h.eachLease(ctx, openStates(), func(l lease.Lease) {
		if l.Backend == name {
			open++
		}
	})
	if err != nil || open > 0 {
		return false, err
	}
	if _, publishes := o.backend.(plugins.Publisher); !publishes {
		return true, nil
	}
	if o.until.IsZero() {
		until := time.Now()
		err = h.eachLease(ctx, nil, func(l lease.Lease) {
			if l.Backend == name && l.NotAfter.After(until) {
				until = l.NotAfter
			}
		})
		if err != nil {
			return false, err
		}
		if o.until = until; time.Now().Before(until) {
			h.logger.Info("all that a removed CA issued is final; its CRL is served until the last of it has expired",
				zap.String("backend", name), zap.Time("until", until))
		}
	}
	return !time.Now().Before(o.until), nil
}

// faceMissing looks for leases of backends that are not configured. Nobody can end them; everything else goes on.
func (h *house) faceMissing(ctx context.Context) error {
	configured := h.catalog.Backends().Has
	found := false
	err := h.eachLease(ctx, openStates(), func(l lease.Lease) { found = found || !configured(l.Backend) })
	if err != nil || !found {
		return err
	}
	var missing map[string]int
	_, err = h.ledger.Update(ctx, func(tx *ledger.Tx) error {
		var cause error
		missing, cause = teardown.EndUnconfigured(tx, configured, time.Now())
		return cause
	})
	if err != nil {
		return fmt.Errorf("ask for the end of what unconfigured backends issued: %w", err)
	}
	h.missing.Store(&missing)
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		h.logger.Error("leases are open of a backend that is not in the configuration, and cannot be ended: put its block back and send SIGHUP",
			zap.String("backend", name), zap.Int("leases", missing[name]))
	}
	return nil
}

// found takes a backend off the missing ones.
func (h *house) found(name string) {
	if missing := h.missing.Load(); missing != nil {
		left := maps.Clone(*missing)
		delete(left, name)
		h.missing.Store(&left)
	}
}

// missingParts are the parts of readiness of backends that are not configured and should be.
func (h *house) missingParts() []status.Part {
	missing := h.missing.Load()
	if missing == nil {
		return nil
	}
	var parts []status.Part
	for _, name := range slices.Sorted(maps.Keys(*missing)) {
		if _, back := h.catalog.Backends().Find(name); back {
			continue
		}
		parts = append(parts, status.Part{Name: "backend " + name, Backend: name, Check: func(context.Context) error {
			return fmt.Errorf("not in the configuration, and %d of its leases cannot be ended: put its block back and send SIGHUP", (*missing)[name])
		}})
	}
	return parts
}

// openStates are those of leases that are not final.
func openStates() []lease.State {
	return []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}
}

// leasePage is how many leases are looked at in one reading.
const leasePage = 1000

// eachLease calls fn for every lease in one of the states, or in any, newest first.
func (h *house) eachLease(ctx context.Context, states []lease.State, fn func(lease.Lease)) error {
	err := h.ledger.View(ctx, func(r ledger.Reader) error {
		filter := ledger.LeaseFilter{States: states, Limit: leasePage}
		for {
			page, err := r.ListLeases(filter)
			if err != nil {
				return err
			}
			for _, l := range page {
				fn(l)
			}
			if len(page) < leasePage {
				return nil
			}
			filter.Before = page[len(page)-1].ID
		}
	})
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	return nil
}
