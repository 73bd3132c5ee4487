package vault

import (
	"context"
	"fmt"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// Revoke ends the lease and the token that made it, and reads both back at the active node of the cluster that issued.
//
// With a known lease the proof is plugins.ReadBack where this process saw the lease alive before it ended it. A lease
// that is gone at the first look was ended by Vault's clock (plugins.Lapsed, when its end has passed) or by somebody
// else (plugins.LostAtBackend): Vault itself gave its ID, so "invalid lease" means gone and not unknown. An attempt of
// ours that a crash cut off looks the same as somebody else's, and the detail says so.
//
// Where Vault refused to issue, only the token is ended (plugins.NotIssued). A static value is plugins.Disclosed. Without
// a lease otherwise, the token is ended, Vault is told to tidy leases whose token is gone, and the proof is
// plugins.Swept.
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
// after it shows whether the engine can do it.
func (b *Backend) endLease(ctx context.Context, h handle, held plugins.Held) (plugins.Ending, error) {
	gone, err := b.leaseGone(ctx, h.Lease)
	if err != nil {
		return plugins.Ending{}, err
	}
	if !gone {
		b.ours.add(h.Lease)
		if err := b.revokeLease(ctx, h.Lease); err != nil {
			return plugins.Ending{}, err
		}
	}
	detail := "Vault: invalid lease"
	if h.Accessor != "" {
		if err := b.endToken(ctx, h.Accessor); err != nil {
			return plugins.Ending{}, err
		}
		detail += "; token gone"
	}
	ending := plugins.Ending{Proof: plugins.ReadBack, At: time.Now(), Detail: detail}
	if h.Certificate {
		ending.UsableUntil, ending.UncheckedUntil = held.NotAfter, held.NotAfter
	}
	if gone && !b.ours.has(h.Lease) {
		return goneBefore(ending, held), nil
	}
	return ending, nil
}

// goneBefore words the end of a lease that was gone before this process touched it.
func goneBefore(ending plugins.Ending, held plugins.Held) plugins.Ending {
	if !held.NotAfter.IsZero() && ending.At.After(held.NotAfter) {
		ending.Proof = plugins.Lapsed
		ending.UsableUntil = held.NotAfter
		ending.Detail += "; it had expired"
		return ending
	}
	ending.Proof = plugins.LostAtBackend
	ending.Detail += "; gone at the first look (ended at Vault, or by an attempt of ours that was cut off)"
	return ending
}

// revokeLease returns nil when the lease was alive, and has been read back as gone after the synchronous revoke.
func (b *Backend) revokeLease(ctx context.Context, lease string) error {
	for _, sync := range []bool{false, true} {
		if _, err := b.own(ctx, put("sys/leases/revoke", map[string]any{"lease_id": lease, "sync": sync})); err != nil {
			return fmt.Errorf("%w: revoke lease (sync=%t): %w", plugins.ErrNotProven, sync, err)
		}
	}
	gone, err := b.leaseGone(ctx, lease)
	if err != nil {
		return err
	}
	if !gone {
		return fmt.Errorf("%w: the lease is still there after a synchronous revoke", plugins.ErrNotProven)
	}
	return nil
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

// endToken revokes a token and reads back that it is gone. Revoking one that is gone already succeeds.
func (b *Backend) endToken(ctx context.Context, accessor string) error {
	revoked := b.revokeAccessor(ctx, accessor)
	_, err := b.own(ctx, put("auth/token/lookup-accessor", map[string]any{"accessor": accessor}))
	switch {
	case rest.InvalidAccessor(err):
		return nil
	case revoked != nil:
		return fmt.Errorf("%w: %w", plugins.ErrNotProven, revoked)
	case err == nil:
		return fmt.Errorf("%w: the token is still there after its revoke", plugins.ErrNotProven)
	}
	return fmt.Errorf("%w: look up token by accessor: %w", plugins.ErrNotProven, err)
}

// endUnused ends a token that has no lease, and gives the ending its time.
func (b *Backend) endUnused(ctx context.Context, h handle, ending plugins.Ending) (plugins.Ending, error) {
	if err := b.endToken(ctx, h.Accessor); err != nil {
		return plugins.Ending{}, err
	}
	ending.At = time.Now()
	return ending, nil
}

// sweep ends what an intent may have brought to life. Vault revokes a token's leases with it, except for one that was
// made while the token was ending: that one is found by tidying.
func (b *Backend) sweep(ctx context.Context, h handle, held plugins.Held) (plugins.Ending, error) {
	if err := b.endToken(ctx, h.Accessor); err != nil {
		return plugins.Ending{}, err
	}
	if _, err := b.own(ctx, put("sys/leases/tidy", map[string]any{})); err != nil {
		return plugins.Ending{}, fmt.Errorf("%w: tidy leases: %w", plugins.ErrNotProven, err)
	}
	// What Vault made and forgot was never cut: it lives as long as the engine gives by itself, which Check holds to the
	// role's maximum.
	until := held.NotAfter
	if latest := h.until(); latest.After(until) {
		until = latest
	}
	return plugins.Ending{
		Proof: plugins.Swept, At: time.Now(), UsableUntil: until, Detail: "Vault: token gone; tidying of its leases begun",
	}, nil
}
