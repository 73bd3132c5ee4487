// Package vault is the backend for HashiCorp Vault: dynamic secrets that are leases, each taken with a token of its own.
//
// Prepare makes an orphan service token through a token role, with the role's own Vault policy only. Its accessor is
// the handle. Issue uses that token once. Revoke ends the lease, reads back that it is gone, and ends the token.
package vault

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
	"github.com/stint-dev/stint/plugins/vault/internal/users"
)

// Type is the plugin's name in configuration, and Section the key of a role's spec that belongs to it.
const (
	Type    = "vault"
	Section = "vault"
)

// Backend is one Vault. It implements plugins.Backend, Preparer, Runner, Prober, Checker, Lister and AccountLister.
type Backend struct {
	cfg     Config
	rest    login.Doer
	session *login.Session
	logger  *zap.Logger
	ours    *attempts // leases that were seen alive before they were ended
	queued  *attempts // leases that Vault has been told to end by itself
	failing *failures
	// databases are those that list their users, by name.
	databases map[string]users.Database
}

// New checks the configuration and makes a Backend. It connects to nothing: Run logs in, and so does the first call
// that needs a token.
func New(cfg Config, logger *zap.Logger) (*Backend, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("backend %s: %w", cfg.Instance, err)
	}
	client, err := rest.New(rest.Config{
		Address: cfg.Address, CAFile: cfg.CAFile, Namespace: cfg.Namespace, Timeout: cfg.RequestTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", cfg.Instance, err)
	}
	databases, err := cfg.listers()
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", cfg.Instance, err)
	}
	logger = logger.With(zap.String("backend", cfg.Instance))
	return &Backend{
		cfg: cfg, rest: client, logger: logger,
		session:   login.New(client, cfg.Auth.method(), logger),
		ours:      newAttempts(),
		queued:    newAttempts(),
		failing:   newFailures(),
		databases: databases,
	}, nil
}

// Descriptor says that issuing has effects before the answer, for up to Config.MaxRequestDuration.
func (b *Backend) Descriptor() plugins.Descriptor {
	return plugins.Descriptor{Type: Type, Section: Section, Horizon: b.cfg.MaxRequestDuration}
}

// CheckRole reads the role's vault section. Whether the engine keeps to a TTL is seen only by Check and at issue, where
// a lease that is too long is cut, or revoked at once.
func (b *Backend) CheckRole(role plugins.Role) (plugins.RoleInfo, error) {
	r, err := recipe.Parse(role)
	if err != nil {
		return plugins.RoleInfo{}, err
	}
	// Databases share a mount, and one that is dead must not hold up the others; which one a path leads to Vault alone knows.
	info := plugins.RoleInfo{Lane: r.Rule().Path, Fields: r.FieldNames()}
	if r.Kind == recipe.Static {
		info.Ends = plugins.EndsNever
		info.Exposure = plugins.Exposure{Reason: "a stored value, which Vault cannot take back"}
		return info, nil
	}
	info.Ends = plugins.EndsRevocable
	info.Exposure = plugins.Exposure{
		Bounded: true, Max: plugins.EndingTime,
		Reason: "synchronous revoke; open sessions end where the engine's revocation statements cut them",
	}
	if r.Certificate() { // when the engine's CRL says so is the engine's to decide, and not seen from here
		info.Exposure = plugins.Exposure{
			Bounded: true, Max: max(plugins.EndingTime, role.MaxTTL), UntilExpiry: true,
			Reason: "the lease ends at once, the certificate when the engine's next CRL says so, or when it expires",
		}
	}
	return info, nil
}

// Run keeps Stint logged in until ctx is done.
func (b *Backend) Run(ctx context.Context) error { return b.session.Run(ctx) }

// Healthy returns nil where the address leads to the active, unsealed node and Stint's token is alive.
func (b *Backend) Healthy(ctx context.Context) error {
	if _, err := login.Health(ctx, b.rest); err != nil {
		return fmt.Errorf("%s: %w", b.cfg.Instance, err)
	}
	if _, err := b.own(ctx, get("auth/token/lookup-self")); err != nil {
		return fmt.Errorf("%s: stint's own token: %w", b.cfg.Instance, err)
	}
	return nil
}

// own makes a call with Stint's own token. It may be made twice, with another token: never for an issue call, which
// has a token of its own.
func (b *Backend) own(ctx context.Context, call rest.Call) (*rest.Reply, error) {
	token, err := b.session.Token(ctx)
	if err != nil {
		return nil, err
	}
	call.Token = token
	reply, err := b.rest.Do(ctx, call)
	if err == nil || !rest.Denied(err) {
		return reply, err
	}
	another, ok := b.session.Refused(ctx, token)
	if !ok {
		return nil, fmt.Errorf("%w; does the policy of stint's own token allow it? see `stintd setup vault`", err)
	}
	call.Token = another
	return b.rest.Do(ctx, call)
}
