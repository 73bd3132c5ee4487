package vault

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// List yields the leases under the role's path, with one lookup for each, whoever took them. A handle that it yields
// ends the lease but not its token, which a lease does not name. For a role whose path takes parameters, or that makes
// no leases, it yields one error that wraps errors.ErrUnsupported.
func (b *Backend) List(ctx context.Context, role plugins.Role) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		prefix, keys, cluster, err := b.listKeys(ctx, role)
		if err != nil {
			yield(plugins.Found{}, fmt.Errorf("%s: list leases of role %s: %w", b.cfg.Instance, role.Name, err))
			return
		}
		for _, key := range keys {
			found, alive, err := b.find(ctx, cluster, prefix+"/"+key)
			if err != nil {
				yield(plugins.Found{}, fmt.Errorf("%s: look up a lease of role %s: %w", b.cfg.Instance, role.Name, err))
				return
			}
			if alive && !yield(found, nil) {
				return
			}
		}
	}
}

func (b *Backend) listKeys(ctx context.Context, role plugins.Role) (prefix string, keys []string, cluster string, err error) {
	r, err := recipe.Parse(role)
	if err != nil {
		return "", nil, "", err
	}
	prefix, ok := r.Path()
	if !ok || r.Kind != recipe.Lease {
		return "", nil, "", fmt.Errorf("%w: %w", errors.ErrUnsupported, errPatternedPath)
	}
	if cluster, err = b.session.Cluster(ctx); err != nil {
		return "", nil, "", err
	}
	reply, err := b.own(ctx, rest.Call{Method: "LIST", Path: "sys/leases/lookup/" + prefix})
	if failed, ok := errors.AsType[*rest.Error](err); ok && failed.Status == http.StatusNotFound {
		return prefix, nil, cluster, nil // none
	}
	if err != nil {
		return "", nil, "", err
	}
	if !reply.Decode("keys", &keys) {
		return "", nil, "", fmt.Errorf("%w: the answer names no keys", plugins.ErrUnavailable)
	}
	return prefix, keys, cluster, nil
}

// find looks one lease up. It may have ended since it was listed.
func (b *Backend) find(ctx context.Context, cluster, lease string) (found plugins.Found, alive bool, err error) {
	reply, err := b.own(ctx, put("sys/leases/lookup", map[string]any{"lease_id": lease}))
	if rest.InvalidLease(err) {
		return plugins.Found{}, false, nil
	}
	if err != nil {
		return plugins.Found{}, false, err
	}
	var expires time.Time
	reply.Decode("expire_time", &expires)
	h, err := handle{Cluster: cluster, Lease: lease}.encode()
	if err != nil {
		return plugins.Found{}, false, err
	}
	return plugins.Found{Handle: h, PublicRef: afterLast(lease, "/"), NotAfter: expires}, true, nil
}
