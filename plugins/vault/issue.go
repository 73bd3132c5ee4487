package vault

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// Issue makes one call with the prepared token. A lease that outlives req.NotAfter is cut at once; where it cannot be
// cut, or the answer is not what the role says, what was made is ended and the error wraps plugins.ErrMisconfigured.
//
// The error wraps plugins.ErrNotIssued only for 403, 404, 429, a sealed Vault, and a call that never left. Everything
// else is uncertain: an engine may have acted before Vault failed.
func (b *Backend) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	cred, err := b.issue(ctx, req)
	if err != nil {
		return plugins.Credential{}, fmt.Errorf("%s: issue by role %s: %w", b.cfg.Instance, req.Role.Name, err)
	}
	return cred, nil
}

func (b *Backend) issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	defer req.Prepared.State.Wipe()
	h, err := decodeHandle(req.Prepared.Handle)
	if err != nil {
		return plugins.Credential{}, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	}
	r, err := recipe.Parse(req.Role)
	if err != nil {
		return plugins.Credential{}, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	}
	asked := time.Now()
	ttl := wholeSeconds(req.NotAfter.Sub(asked))
	if ttl < 1 {
		return plugins.Credential{}, fmt.Errorf("%w: %w: its end has come", plugins.ErrUnavailable, plugins.ErrNotIssued)
	}
	method, path, body, err := r.Call(recipe.Values{Params: req.Params, TTL: ttl})
	if err != nil {
		return plugins.Credential{}, err
	}
	reply, err := b.rest.Do(ctx, rest.Call{Method: method, Path: path, Token: req.Prepared.State, Body: body})
	if err != nil {
		return plugins.Credential{}, b.issueError(ctx, h, r.Policy, err)
	}
	defer reply.Wipe()
	return b.accept(ctx, answer{reply: reply, recipe: r, handle: h, path: path, asked: asked, answered: time.Now(), until: req.NotAfter})
}

// issueError says what a failed issue call may have left. A token that was refused is of no use any more.
func (b *Backend) issueError(ctx context.Context, h handle, policy string, err error) error {
	if !rest.NothingHappened(err) {
		// A status that elsewhere means a misconfiguration proves nothing here.
		return fmt.Errorf("%w: whether it was issued is not known: %s", plugins.ErrUnavailable, err.Error())
	}
	if rest.Denied(err) {
		err = fmt.Errorf("%w; does policy %s allow it? see `stintd setup vault`", err, policy)
	}
	if dropped := b.revokeAccessor(ctx, h.Accessor); dropped != nil {
		err = fmt.Errorf("%w (and its token lives until its TTL: %s)", err, dropped.Error())
	}
	return fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
}

// answer is what Vault said to an issue call, with what was asked.
type answer struct {
	reply    *rest.Reply
	recipe   recipe.Recipe
	handle   handle
	path     string
	asked    time.Time // just before the call that set the lease's end
	answered time.Time // just after it
	until    time.Time // the end that was asked for
}

// accept turns an answer into a credential, or ends what was made.
func (b *Backend) accept(ctx context.Context, a answer) (plugins.Credential, error) {
	a.handle.Lease = a.reply.LeaseID
	cred, err := b.credential(ctx, &a)
	if err == nil {
		return cred, nil
	}
	for _, v := range cred.Fields {
		v.Wipe()
	}
	// The role's error stands first. What could not be ended here is ended by the intent's handle.
	if _, ended := b.end(ctx, a.handle, plugins.Held{NotAfter: a.until}); ended != nil {
		err = fmt.Errorf("%w (and it could not be ended at once: %s)", err, ended.Error())
	}
	return plugins.Credential{}, err
}

func (b *Backend) credential(ctx context.Context, a *answer) (plugins.Credential, error) {
	if err := a.checkShape(); err != nil {
		a.handle.Lease = ""
		return plugins.Credential{}, err
	}
	var cred plugins.Credential
	var err error
	if a.recipe.Kind == recipe.Lease {
		var lease bound
		if lease, err = b.bind(ctx, a); err != nil {
			return cred, err
		}
		cred.NotAfter, cred.UsableUntil = lease.earliest, a.worst(lease)
		a.handle.Until = cred.UsableUntil.Unix()
	} else {
		cred.UsableUntil = plugins.NoEnd()
	}
	a.handle.Certificate = a.recipe.Certificate()
	if cred.Fields, cred.PublicRef, err = a.fields(); err != nil {
		return cred, err
	}
	cred.Handle, err = a.handle.encode()
	return cred, err
}

// checkShape holds the answer against the role's kind. A lease whose ID does not begin with the path that was asked is
// none that Stint's policy lets it revoke.
func (a *answer) checkShape() error {
	lease := a.reply.LeaseID
	switch {
	case a.recipe.Kind == recipe.Static && lease != "":
		return fmt.Errorf("%w: %s gives a lease; leave out vault.kind: static", plugins.ErrMisconfigured, a.path)
	case a.recipe.Kind == recipe.Static:
		return nil
	case lease == "":
		return fmt.Errorf("%w: %s gives no lease, so it cannot be revoked (pki: generate_lease=true; a stored value: "+
			"vault.kind: static)", plugins.ErrMisconfigured, a.path)
	case !strings.HasPrefix(lease, a.path+"/"):
		return fmt.Errorf("%w: the lease of %s has an ID that does not begin with it", plugins.ErrMisconfigured, a.path)
	}
	return nil
}

// bound is when a lease ends: Vault counts from some instant of the call that set it.
type bound struct{ earliest, latest time.Time }

func bounds(asked, answered time.Time, seconds int64) bound {
	lives := time.Duration(seconds) * time.Second
	return bound{asked.Add(lives), answered.Add(lives)}
}

// given is the lease that Vault gave first.
func (a *answer) given() bound { return bounds(a.asked, a.answered, a.reply.LeaseDuration) }

// lateAnswer is by how much a lease may outlive what was wanted because Vault took that long, before it is cut.
const lateAnswer = 2 * time.Second

// bind makes the lease end at the wanted instant at the latest, by what can be known before Vault answers: it may be later by the
// time that the last call took.
func (b *Backend) bind(ctx context.Context, a *answer) (bound, error) {
	given, most := a.given(), wholeSeconds(a.until.Sub(a.asked))
	fits := a.reply.LeaseDuration > 0 && a.reply.LeaseDuration <= most
	if fits && (!a.reply.Renewable || !given.latest.After(a.until.Add(lateAnswer))) {
		return given, nil
	}
	if !a.reply.Renewable {
		return bound{}, fmt.Errorf("%w: %s gives a lease of %d s where at most %d s were wanted, and it cannot be cut: "+
			"lower default_lease_ttl of the mount, or let vault.data set the engine's ttl to {{ .ttl }}",
			plugins.ErrMisconfigured, a.path, a.reply.LeaseDuration, most)
	}
	return b.cut(ctx, a)
}

// cut renews the lease for what is left.
func (b *Backend) cut(ctx context.Context, a *answer) (bound, error) {
	asked := time.Now()
	want := wholeSeconds(a.until.Sub(asked))
	if want < 1 {
		return bound{}, fmt.Errorf("%w: its end came before the lease could be cut", plugins.ErrUnavailable)
	}
	reply, err := b.own(ctx, put("sys/leases/renew", map[string]any{"lease_id": a.handle.Lease, "increment": want}))
	if err != nil {
		return bound{}, fmt.Errorf("cut the lease of %s to %d s: %w", a.path, want, err)
	}
	if reply.LeaseDuration < 1 || reply.LeaseDuration > want {
		return bound{}, fmt.Errorf("%w: the lease of %s was cut to %d s and lives %d s",
			plugins.ErrMisconfigured, a.path, want, reply.LeaseDuration)
	}
	return bounds(asked, time.Now(), reply.LeaseDuration), nil
}

func wholeSeconds(d time.Duration) int64 { return int64(d / time.Second) }
