package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// probeTTL is the longest life of what Probe issues: it ends by itself where it cannot be ended.
const probeTTL = time.Minute

// probeEnd is how long ending it may take, even when there is no time left to look at anything else.
const probeEnd = 30 * time.Second

// Probe issues one credential by the role for real, with these parameters, and ends it. It reports what failed, and what
// it could not end; nothing else is left, and the credential goes nowhere.
func (b *Backend) Probe(ctx context.Context, role plugins.Role, params map[string]string) []plugins.Finding {
	p := probe{backend: b, role: role, found: nil}
	req, err := probeRequest(role, params)
	if err == nil {
		req.Prepared, err = b.Prepare(ctx, req)
	}
	if err != nil {
		p.breaks("probe-prepare", err.Error(), "see `stintd check` without --probe, and `stintd setup vault`")
		return p.found
	}
	held := plugins.Held{Lease: req.Lease, Role: role.Name, Handle: req.Prepared.Handle, IssuedAt: time.Now(), NotAfter: req.NotAfter}
	worst := req.Prepared.UsableUntil
	cred, err := b.Issue(ctx, req)
	for _, v := range cred.Fields {
		v.Wipe()
	}
	if err != nil {
		p.breaks("probe-issue", err.Error(), p.lookAt())
		held.NotIssued, held.Uncertain = errors.Is(err, plugins.ErrNotIssued), true
	} else {
		held.Handle, held.NotAfter, worst = cred.Handle, cred.NotAfter, cred.UsableUntil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeEnd)
	defer cancel()
	if _, err := b.Revoke(ctx, held); err != nil {
		what := "what was issued"
		if cred.PublicRef != "" {
			what = cred.PublicRef
		}
		p.breaks("probe-revoke", fmt.Sprintf("%s, and %s works %s", err, what, atWorst(worst)), p.lookAt())
	}
	return p.found
}

func probeRequest(role plugins.Role, params map[string]string) (plugins.Request, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return plugins.Request{}, fmt.Errorf("make an ID: %w", err)
	}
	ttl := probeTTL
	if role.MaxTTL > 0 {
		ttl = min(ttl, role.MaxTTL)
	}
	req := plugins.Request{
		Lease: plugins.LeaseID(id), TaskID: id.String(), TaskName: "stintd-check", Agent: "stintd check",
		Role: role, Params: params, NotAfter: time.Now().Add(ttl),
	}
	_, err = rand.Read(req.ManifestHash[:])
	return req, err
}

// probe collects what one Probe finds.
type probe struct {
	backend *Backend
	role    plugins.Role
	found   []plugins.Finding
}

func (p *probe) breaks(code, problem, remedy string) {
	p.found = append(p.found, plugins.Finding{
		Severity: plugins.Breaks, Code: code, Subject: "role " + p.role.Name, Problem: "tried: " + problem, Remedy: remedy,
	})
}

// lookAt names the place where the engine's own fault is to be mended.
func (p *probe) lookAt() string {
	r, err := recipe.Parse(p.role)
	if err != nil {
		return "change the role's vault section"
	}
	if path, ok := engineRole(r); ok {
		return "vault read " + path + ": may the account that vault uses do what its statements say? See Vault's log, and docs/databases.md"
	}
	return "see Vault's log for the engine " + r.Mount() + "/"
}

func atWorst(until time.Time) string {
	if until.Equal(plugins.NoEnd()) {
		return "without a known end"
	}
	return "until " + until.UTC().Format(time.RFC3339) + " at worst"
}
