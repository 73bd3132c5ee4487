package vault

import (
	"context"
	"fmt"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// tokenState is what Vault says of a credential's own token.
type tokenState string

const (
	tokenAlive tokenState = "alive"
	// tokenUnusable: Vault began to revoke it and was killed. It opens nothing any more, but Vault neither takes a second revoke nor
	// goes on with the first: the token stays, with the leases that it made, until its TTL is over.
	tokenUnusable tokenState = "unusable until Vault removes it" //nolint:gosec // a word about a token
	tokenGone     tokenState = "gone"
)

// endToken revokes a token and reads back that nobody can use it. Revoking one that is gone already succeeds.
func (b *Backend) endToken(ctx context.Context, accessor string) (tokenState, error) {
	revoked := b.revokeAccessor(ctx, accessor)
	left, err := b.token(ctx, accessor)
	switch {
	case err == nil && left != tokenAlive:
		return left, nil
	case revoked != nil:
		return left, fmt.Errorf("%w: %w", plugins.ErrNotProven, revoked)
	case err != nil:
		return left, err
	}
	return left, fmt.Errorf("%w: the token is still there after its revoke", plugins.ErrNotProven)
}

// token looks a token up. Only Vault's word that there is none means gone. A number of uses below zero is how Vault marks
// one that it is revoking.
func (b *Backend) token(ctx context.Context, accessor string) (tokenState, error) {
	reply, err := b.own(ctx, put("auth/token/lookup-accessor", map[string]any{"accessor": accessor}))
	switch {
	case rest.InvalidAccessor(err):
		return tokenGone, nil
	case err != nil:
		return tokenAlive, fmt.Errorf("%w: look up token by accessor: %w", plugins.ErrNotProven, err)
	}
	var uses int64
	if reply.Decode("num_uses", &uses) && uses < 0 {
		return tokenUnusable, nil
	}
	return tokenAlive, nil
}
