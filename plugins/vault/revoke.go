package vault

import (
	"context"
	"fmt"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// lookups is how often a lease is looked up after its revoke, with betweenLookups in between, before it counts as alive.
const (
	lookups        = 5
	betweenLookups = 50 * time.Millisecond
)

// Revoke ends the lease and the token that made it, and reads both back at the active node of the cluster that issued.
//
// With a known lease the proof is plugins.ReadBack where this process saw the lease alive before it asked for its end. A lease
// that is gone at the first look was ended by Vault's clock (plugins.Lapsed, when its end has passed) or by somebody
// else (plugins.LostAtBackend): Vault itself gave its ID, so "invalid lease" means gone and not unknown. An attempt of
// ours that a crash cut off looks the same as somebody else's, and the detail says so. Only a synchronous revoke that
// succeeded shows that the engine ended what the lease stands for: a lease can also be dropped by force, or with a snapshot
// that was restored. Without one the end counts as usable until what the engine made ends by itself, if it does (engineEnd).
//
// Where Vault refused to issue, only the token is ended (plugins.NotIssued). A static value is plugins.Disclosed. Without
// a lease otherwise, the token is ended with what it made, and the proof is plugins.Swept (see sweep).
func (b *Backend) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	h, err := decodeHandle(held.Handle)
	if err != nil {
		return plugins.Ending{}, fmt.Errorf("%s: revoke: %w", b.cfg.Instance, err)
	}
	ending, err := b.end(ctx, h, held)
	if err != nil {
		return plugins.Ending{}, fmt.Errorf("%s: revoke: %w", b.cfg.Instance, err)
	}
	return ending, nil
}

func (b *Backend) end(ctx context.Context, h handle, held plugins.Held) (plugins.Ending, error) {
	if err := b.sameCluster(ctx, h); err != nil {
		return plugins.Ending{}, err
	}
	switch {
	case h.Lease != "":
		return b.endLease(ctx, h, held)
	case held.NotIssued: // there is no lease to tidy, and no value was disclosed
		return b.endUnused(ctx, h, plugins.Ending{Proof: plugins.NotIssued, Detail: "Vault: refused to issue; token gone"})
	case h.Static:
		return b.endUnused(ctx, h, plugins.Ending{Proof: plugins.Disclosed, Detail: "Vault: stored value; token gone"})
	}
	return b.sweep(ctx, h, held)
}

// sameCluster refuses to believe a node that is not active, is sealed, or belongs to another cluster than the issuer's.
func (b *Backend) sameCluster(ctx context.Context, h handle) error {
	health, err := login.Health(ctx, b.rest)
	if err != nil {
		return fmt.Errorf("%w: %w", plugins.ErrNotProven, err)
	}
	if health.ClusterID != h.Cluster {
		return fmt.Errorf("%w: cluster %s answers, but %s issued", plugins.ErrNotProven, health.ClusterID, h.Cluster)
	}
	return nil
}

// endLease queues the revoke first, because Vault then goes on by itself whatever happens to Stint; the synchronous one
// after it shows whether the engine can do it. It is queued once only: each time makes Vault try at once, and after six
// attempts, which by itself it spreads over ten minutes, Vault gives the lease up as irrevocable.
func (b *Backend) endLease(ctx context.Context, h handle, held plugins.Held) (plugins.Ending, error) {
	gone, err := b.leaseGone(ctx, h.Lease)
	if err != nil {
		return plugins.Ending{}, err
	}
	if !gone {
		b.ours.begun(h.Lease)
		if err := b.revokeLease(ctx, h.Lease); err != nil {
			return plugins.Ending{}, err
		}
	}
	b.failing.remove(h.Lease)
	detail := "Vault: invalid lease"
	if h.Accessor != "" {
		left, err := b.endToken(ctx, h.Accessor)
		if err != nil {
			return plugins.Ending{}, err
		}
		detail += "; token " + string(left)
	}
	ending := plugins.Ending{Proof: plugins.ReadBack, At: time.Now(), Detail: detail}
	if h.Certificate {
		end := later(held.NotAfter, h.until()) // its own, which is no earlier than the lease's
		ending.UsableUntil, ending.UncheckedUntil = end, end
	}
	if gone {
		return b.goneBefore(ending, h, held), nil
	}
	return ending, nil
}

// goneBefore words the end of a lease that was gone at this attempt's first look. Unless an earlier one of this process saw the
// engine end it, nobody did.
func (b *Backend) goneBefore(ending plugins.Ending, h handle, held plugins.Held) plugins.Ending {
	ours, ended := b.ours.of(h.Lease)
	if ended {
		return ending
	}
	last := h.until()
	if last.IsZero() { // of what List found, which tells no more
		last = held.NotAfter.Add(engineSlack)
	}
	if last.After(ending.At) {
		ending.UsableUntil = last
	}
	if end := held.NotAfter; !end.IsZero() && ending.At.After(end) && !last.After(later(end.Add(engineSlack), ending.At)) {
		ending.Proof, ending.UsableUntil = plugins.Lapsed, last
		ending.Detail += "; it had expired"
		return ending
	}
	if ours {
		ending.Detail += "; gone after an attempt that failed (Vault went on with it, or somebody dropped it)"
		return ending
	}
	ending.Proof = plugins.LostAtBackend
	ending.Detail += "; gone at the first look (ended at Vault, or by an attempt of ours that was cut off)"
	if !held.NotAfter.IsZero() && ending.At.After(held.NotAfter) {
		ending.Detail += "; it had expired"
	}
	return ending
}

// revokeLease returns nil when the lease was alive, and has been read back as gone after the synchronous revoke.
func (b *Backend) revokeLease(ctx context.Context, lease string) error {
	for _, sync := range []bool{false, true} {
		if queued, _ := b.queued.of(lease); queued && !sync {
			continue
		}
		if _, err := b.own(ctx, put("sys/leases/revoke", map[string]any{"lease_id": lease, "sync": sync})); err != nil {
			b.failing.add(lease)
			return fmt.Errorf("%w: revoke lease (sync=%t): %w", plugins.ErrNotProven, sync, ofEngine(err))
		}
		b.queued.begun(lease)
	}
	if err := b.readBack(ctx, lease); err != nil {
		return err
	}
	b.ours.succeeded(lease)
	return nil
}

// readBack looks up a lease that was revoked. The worker of Vault that the queued revoke started may have deleted it, which
// lets the synchronous one succeed, and forget it only moments later: so it is looked up more than once.
func (b *Backend) readBack(ctx context.Context, lease string) error {
	for range lookups {
		gone, err := b.leaseGone(ctx, lease)
		if err != nil || gone {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(betweenLookups):
		}
	}
	return fmt.Errorf("%w: the lease is still there after a synchronous revoke", plugins.ErrNotProven)
}

// ofEngine says of a 400 to a revoke what it means: Vault passed it on, and the engine or the database behind it did not end
// it. That is no fault of how Stint asks.
func ofEngine(err error) error {
	if rest.BadRequest(err) {
		return fmt.Errorf("%w: what issued it does not end it: %s", plugins.ErrUnavailable, err.Error())
	}
	return err
}

// leaseGone looks the lease up. Only "invalid lease" means gone; every other refusal proves nothing.
func (b *Backend) leaseGone(ctx context.Context, lease string) (bool, error) {
	_, err := b.own(ctx, put("sys/leases/lookup", map[string]any{"lease_id": lease}))
	switch {
	case err == nil:
		return false, nil
	case rest.InvalidLease(err):
		return true, nil
	}
	return false, fmt.Errorf("%w: look up lease: %w", plugins.ErrNotProven, err)
}

// endUnused ends a token that has no lease, and gives the ending its time.
func (b *Backend) endUnused(ctx context.Context, h handle, ending plugins.Ending) (plugins.Ending, error) {
	if _, err := b.endToken(ctx, h.Accessor); err != nil {
		return plugins.Ending{}, err
	}
	ending.At = time.Now()
	return ending, nil
}

// sweep ends what an intent may have brought to life. Vault revokes a token's leases with it, and goes on until the engine has
// ended them. A lease that was made while the token was ending is in no such queue: where the token is found to be gone,
// tidying finds it. But tidying drops a lease by force, and what an engine that does not answer still holds is then known
// to nobody. So it waits while any revoke fails here.
func (b *Backend) sweep(ctx context.Context, h handle, held plugins.Held) (plugins.Ending, error) {
	found, err := b.token(ctx, h.Accessor)
	if err != nil {
		return plugins.Ending{}, err
	}
	left, err := b.endToken(ctx, h.Accessor)
	switch {
	case err != nil:
		return plugins.Ending{}, err
	case left == tokenUnusable:
		return plugins.Ending{}, fmt.Errorf("%w: vault was cut off while it ended the token, and ends what that made when its TTL is over", plugins.ErrNotProven)
	}
	detail := "Vault: token gone"
	if found == tokenGone {
		if err = b.nothingFails(ctx); err != nil {
			// It may be of another database: what fails there is no fault of this lane, and not told as one.
			return plugins.Ending{}, fmt.Errorf("%w: leases are tidied when no revoke fails: %s", plugins.ErrNotProven, err.Error())
		}
		if _, err = b.own(ctx, put("sys/leases/tidy", map[string]any{})); err != nil {
			return plugins.Ending{}, fmt.Errorf("%w: tidy leases: %w", plugins.ErrNotProven, err)
		}
		detail = "Vault: token was gone; tidying of its leases asked for"
	}
	// What Vault made and forgot was never cut: it lives as long as the engine gives by itself, which Check holds to the
	// role's maximum.
	until := held.NotAfter
	if latest := h.until(); latest.After(until) {
		until = latest
	}
	return plugins.Ending{Proof: plugins.Swept, At: time.Now(), UsableUntil: until, Detail: detail}, nil
}

// nothingFails returns nil once no revoke fails here any more. It asks for each that did again, since nobody else may: where a
// credential was not handed out because its commit failed, the ledger knows its token only.
func (b *Backend) nothingFails(ctx context.Context) error {
	for {
		lease, ok := b.failing.one()
		if !ok {
			return nil
		}
		gone, err := b.leaseGone(ctx, lease)
		if err == nil && !gone {
			err = b.revokeLease(ctx, lease)
		}
		if err != nil {
			return err
		}
		b.failing.remove(lease)
	}
}
