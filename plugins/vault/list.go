package vault

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// List yields the leases under the role's path, whoever took them, and nothing under other paths. A handle that it yields
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
			if strings.HasSuffix(key, "/") { // a folder, which holds leases of another path
				continue
			}
			found, err := foundLease(cluster, prefix+"/"+key)
			if !yield(found, err) || err != nil {
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
	if r.Kind != recipe.Lease {
		return "", nil, "", fmt.Errorf("%w: %w", errors.ErrUnsupported, errNoLeases)
	}
	if !ok {
		return "", nil, "", fmt.Errorf("%w: %w", errors.ErrUnsupported, errPatternedPath)
	}
	health, err := login.Health(ctx, b.rest)
	if err != nil {
		return "", nil, "", err
	}
	cluster = health.ClusterID
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

func foundLease(cluster, lease string) (plugins.Found, error) {
	h, err := handle{Cluster: cluster, Lease: lease}.encode()
	return plugins.Found{Handle: h, PublicRef: afterLast(lease, "/")}, err
}

// Find looks a lease up at the cluster that issued it. Only "invalid lease" means gone, as for Revoke.
func (b *Backend) Find(ctx context.Context, held plugins.Handle) (plugins.Found, error) {
	found, err := b.find(ctx, held)
	if err != nil {
		return plugins.Found{}, fmt.Errorf("%s: look up a lease: %w", b.cfg.Instance, err)
	}
	return found, nil
}

func (b *Backend) find(ctx context.Context, held plugins.Handle) (plugins.Found, error) {
	h, err := decodeHandle(held)
	if err != nil {
		return plugins.Found{}, err
	}
	if h.Lease == "" {
		return plugins.Found{}, fmt.Errorf("%w: it names no lease", plugins.ErrUnknownHandle)
	}
	if err = b.sameCluster(ctx, h); err != nil {
		return plugins.Found{}, err
	}
	reply, err := b.own(ctx, put("sys/leases/lookup", map[string]any{"lease_id": h.Lease}))
	switch {
	case rest.InvalidLease(err):
		return plugins.Found{}, fmt.Errorf("%w: %w", plugins.ErrGone, err)
	case err != nil:
		return plugins.Found{}, err
	}
	found, err := foundLease(h.Cluster, h.Lease)
	reply.Decode("issue_time", &found.IssuedAt)
	reply.Decode("expire_time", &found.NotAfter)
	return found, err
}

// Key returns cluster and lease; empty where the handle names no lease.
func (b *Backend) Key(held plugins.Handle) string {
	h, err := decodeHandle(held)
	if err != nil || h.Lease == "" {
		return ""
	}
	return h.Cluster + " " + h.Lease
}
