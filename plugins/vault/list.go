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

// List yields the leases under the role's path, whoever took them, and nothing under other paths. Where the path takes a
// parameter, every value counts that one can have. A handle that it yields ends the lease but not its token, which a lease
// does not name. For a role that makes no leases, it yields one error that wraps errors.ErrUnsupported.
func (b *Backend) List(ctx context.Context, role plugins.Role) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		leases, cluster, err := b.leases(ctx, role)
		if err != nil {
			yield(plugins.Found{}, fmt.Errorf("%s: list leases of role %s: %w", b.cfg.Instance, role.Name, err))
			return
		}
		for _, lease := range leases {
			found, err := foundLease(cluster, lease)
			if !yield(found, err) || err != nil {
				return
			}
		}
	}
}

// leases returns the IDs of the leases under the role's path.
func (b *Backend) leases(ctx context.Context, role plugins.Role) (ids []string, cluster string, err error) {
	r, err := recipe.Parse(role)
	if err != nil {
		return nil, "", err
	}
	if r.Kind != recipe.Lease {
		return nil, "", fmt.Errorf("%w: %w", errors.ErrUnsupported, errNoLeases)
	}
	health, err := login.Health(ctx, b.rest)
	if err != nil {
		return nil, "", err
	}
	paths, err := b.paths(ctx, "", r.Segments())
	if err != nil {
		return nil, "", err
	}
	for _, path := range paths {
		names, err := b.listLeases(ctx, path)
		if err != nil {
			return nil, "", err
		}
		for _, name := range names {
			if !strings.HasSuffix(name, "/") { // a folder holds leases of another path
				ids = append(ids, path+name)
			}
		}
	}
	return ids, health.ClusterID, nil
}

// paths returns the folders of leases below one that these segments lead to.
func (b *Backend) paths(ctx context.Context, folder string, segments []recipe.Segment) ([]string, error) {
	for i, s := range segments {
		if !s.Open {
			folder += s.Literal + "/"
			continue
		}
		names, err := b.listLeases(ctx, folder)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, key := range names {
			if name, isFolder := strings.CutSuffix(key, "/"); isFolder && s.Fits(name) {
				below, err := b.paths(ctx, folder+name+"/", segments[i+1:])
				if err != nil {
					return nil, err
				}
				out = append(out, below...)
			}
		}
		return out, nil
	}
	return []string{folder}, nil
}

// listLeases returns what is in one folder: leases, and folders with a slash at their end.
func (b *Backend) listLeases(ctx context.Context, folder string) (names []string, err error) {
	reply, err := b.own(ctx, rest.Call{Method: "LIST", Path: "sys/leases/lookup/" + strings.TrimSuffix(folder, "/")})
	if failed, ok := errors.AsType[*rest.Error](err); ok && failed.Status == http.StatusNotFound {
		return nil, nil // none
	}
	if err != nil {
		return nil, err
	}
	if !reply.Decode("keys", &names) {
		return nil, fmt.Errorf("%w: the answer names no keys", plugins.ErrUnavailable)
	}
	return names, nil
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
