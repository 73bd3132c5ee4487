package vault

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// tokenUses lets the token of a credential be used once. Vault takes a lease back at once that is made by a token's last
// use, so the one use needs two.
const tokenUses = 2

// displayIDLength is how many digits of a task's ID go into its token's display name.
const displayIDLength = 8

// Prepare makes the credential's own token: an orphan with the role's policy only, that can be used once and dies by
// Vault's clock at the credential's end plus the horizon. It works as no credential by itself. A token that is not
// exactly what was asked for is ended again, and the error wraps plugins.ErrMisconfigured.
func (b *Backend) Prepare(ctx context.Context, req plugins.Request) (plugins.Prepared, error) {
	prepared, err := b.prepare(ctx, req)
	if err != nil {
		return plugins.Prepared{}, fmt.Errorf("%s: make a token for role %s: %w", b.cfg.Instance, req.Role.Name, err)
	}
	return prepared, nil
}

func (b *Backend) prepare(ctx context.Context, req plugins.Request) (plugins.Prepared, error) {
	r, err := recipe.Parse(req.Role)
	if err != nil {
		return plugins.Prepared{}, err
	}
	// A parameter that the path refuses is found before anything is made.
	if _, _, _, err = r.Call(recipe.Values{Params: req.Params}); err != nil {
		return plugins.Prepared{}, err
	}
	cluster, err := b.session.Cluster(ctx)
	if err != nil {
		return plugins.Prepared{}, err
	}
	asked := time.Now()
	ttl := int64(math.Ceil(req.NotAfter.Add(b.cfg.MaxRequestDuration).Sub(asked).Seconds()))
	reply, err := b.own(ctx, rest.Call{
		Method: http.MethodPut, Path: "auth/token/create/" + b.cfg.TokenRole, Body: tokenWish(req, b.cfg.Instance, r.Policy, ttl),
	})
	if err != nil {
		return plugins.Prepared{}, err
	}
	if err = checkToken(reply, r.Policy, ttl); err != nil {
		if dropped := b.dropToken(ctx, reply.Auth); dropped != nil {
			err = fmt.Errorf("%w (and it lives until its TTL: %s)", err, dropped.Error())
		}
		return plugins.Prepared{}, err
	}
	made := handle{Cluster: cluster, Accessor: reply.Auth.Accessor, Static: r.Kind == recipe.Static, Until: b.latestEnd(ctx, req, asked).Unix()}
	h, err := made.encode()
	if err != nil {
		return plugins.Prepared{}, err
	}
	return plugins.Prepared{
		Handle: h, State: reply.Auth.Token.Value, NotAfter: asked.Add(time.Duration(ttl) * time.Second), UsableUntil: made.until(),
	}, nil
}

// latestEnd returns the latest instant at which something could end that Vault makes for this request and
// forgets. Vault may begin to make it until the deadline of the issue, which is the context's, and the horizon have passed; it
// then lives as long as the engine gives by itself, which Check holds to the role's maximum.
func (b *Backend) latestEnd(ctx context.Context, req plugins.Request, asked time.Time) time.Time {
	if r, err := recipe.Parse(req.Role); err == nil && r.EngineEnd == recipe.NoEnd {
		return plugins.NoEnd()
	}
	made := asked
	if deadline, ok := ctx.Deadline(); ok {
		made = deadline
	}
	lives := max(req.Role.MaxTTL, req.NotAfter.Sub(asked))
	return made.Add(b.cfg.MaxRequestDuration + lives + engineSlack)
}

// tokenWish is the body of auth/token/create. What stands in meta is in Vault's audit log.
func tokenWish(req plugins.Request, instance, policy string, ttl int64) map[string]any {
	bound := fmt.Sprintf("%ds", ttl)
	return map[string]any{
		"policies":          []string{policy},
		"ttl":               bound,
		"explicit_max_ttl":  bound,
		"num_uses":          tokenUses,
		"renewable":         false,
		"no_default_policy": true,
		"type":              "service",
		"display_name":      displayName(req),
		"meta": map[string]string{
			"stint_task": req.TaskID, "stint_lease": req.Lease.String(), "stint_agent": req.Agent,
			"stint_backend": instance, "stint_manifest": hex.EncodeToString(req.ManifestHash[:]),
		},
	}
}

// displayName puts the task into the names of database users: the random part in which the task's name ends. Vault puts
// "token-" before it, and a database engine's default username_template cuts all but that away; see deploy/vault.
func displayName(req plugins.Request) string {
	id := strings.ReplaceAll(req.TaskID, "-", "")
	if short := afterLast(req.TaskName, "-"); short != "" {
		id = short
	}
	return "task-" + id[:min(len(id), displayIDLength)]
}

// afterLast returns what follows the last sep, or all of s where there is none.
func afterLast(s, sep string) string { return s[strings.LastIndex(s, sep)+len(sep):] }

// checkToken refuses a token that is not what was asked for. A missing policy and a capped TTL are mere warnings to
// Vault, so every warning counts.
func checkToken(reply *rest.Reply, policy string, ttl int64) error {
	auth := reply.Auth
	if auth == nil || auth.Token.IsZero() || auth.Accessor == "" {
		return fmt.Errorf("%w: the answer holds no token", plugins.ErrMisconfigured)
	}
	switch {
	case len(reply.Warnings) > 0:
		return fmt.Errorf("%w: vault warns: %s", plugins.ErrMisconfigured, strings.Join(reply.Warnings, "; "))
	case auth.TokenType != "service":
		return fmt.Errorf("%w: the token role makes %s tokens; set token_type=service", plugins.ErrMisconfigured, auth.TokenType)
	case !auth.Orphan:
		return fmt.Errorf("%w: the token dies with stint's own; set orphan=true on the token role", plugins.ErrMisconfigured)
	case len(auth.Policies) != 1 || auth.Policies[0] != policy:
		return fmt.Errorf("%w: the token has policies %v, not only %s; set token_no_default_policy=true on the token role",
			plugins.ErrMisconfigured, auth.Policies, policy)
	case auth.LeaseDuration != ttl:
		return fmt.Errorf("%w: the token lives %d s, not %d s; set no token_explicit_max_ttl and no period on the token role",
			plugins.ErrMisconfigured, auth.LeaseDuration, ttl)
	}
	return nil
}

// dropToken ends a token that will not be used, and says so if it cannot: it then ends by its own TTL.
func (b *Backend) dropToken(ctx context.Context, auth *rest.Auth) error {
	if auth == nil || auth.Accessor == "" {
		return nil
	}
	auth.Token.Wipe()
	return b.revokeAccessor(ctx, auth.Accessor)
}

func (b *Backend) revokeAccessor(ctx context.Context, accessor string) error {
	if _, err := b.own(ctx, put("auth/token/revoke-accessor", map[string]any{"accessor": accessor})); err != nil {
		return fmt.Errorf("revoke token by accessor: %w", err)
	}
	return nil
}

func get(path string) rest.Call { return rest.Call{Method: http.MethodGet, Path: path} }

func put(path string, body map[string]any) rest.Call {
	return rest.Call{Method: http.MethodPut, Path: path, Body: body}
}
