package plugintest

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// accessor begins every handle of a Preparing.
const accessor = "accessor-"

// Preparing is a Memory that is a Preparer, as Vault is: Prepare makes a token whose accessor is the handle, Issue
// uses it, and Revoke of the accessor ends both. What Revoke cannot know, it does not claim: an uncertain accessor
// without a credential is Swept.
type Preparing struct {
	*Memory
}

// NewPreparing makes a Preparing.
func NewPreparing(cfg MemoryConfig) *Preparing { return &Preparing{Memory: NewMemory(cfg)} }

// Descriptor says that the lease ID alone is no handle.
func (p *Preparing) Descriptor() plugins.Descriptor {
	d := p.Memory.Descriptor()
	d.HandleIsLeaseID = false
	return d
}

// Prepare makes a token that ends a horizon after the request's NotAfter. What it makes and loses is said to work until then too.
func (p *Preparing) Prepare(ctx context.Context, req plugins.Request) (plugins.Prepared, error) {
	text := rand.Text()
	prepared := plugins.Prepared{
		Handle:   plugins.Handle(accessor + rand.Text()),
		State:    secret.FromString(text),
		NotAfter: req.NotAfter.Add(p.cfg.Horizon),
	}
	prepared.UsableUntil = prepared.NotAfter
	err := p.faults.run(ctx, p.call(OpPrepare, req.Lease), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.slots[prepared.Handle] = &slot{
			lease: req.Lease, role: req.Role.Name, token: secret.FromString(text), tokenUntil: prepared.NotAfter,
		}
	})
	if err != nil {
		return plugins.Prepared{}, fmt.Errorf("prepare in memory: %w", err)
	}
	return prepared, nil
}

// Issue uses the prepared token. A token that is gone before the call is refused; one that goes while the call is
// in flight is not noticed.
func (p *Preparing) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	if !p.holds(req.Prepared) {
		return plugins.Credential{}, fmt.Errorf("issue in memory: the token is gone: %w", plugins.ErrNotIssued)
	}
	return p.issue(ctx, req, req.Prepared.Handle)
}

// Revoke ends the token and what was made with it.
func (p *Preparing) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	if !strings.HasPrefix(string(held.Handle), accessor) {
		return plugins.Ending{}, fmt.Errorf("revoke in memory: %w", plugins.ErrUnknownHandle)
	}
	end, err := p.revoke(ctx, held)
	if err == nil && held.Uncertain && end.Proof == plugins.NotIssued {
		end = plugins.Ending{Proof: plugins.Swept, At: end.At, UsableUntil: held.NotAfter.Add(p.cfg.Horizon), Detail: "memory: token gone"}
	}
	return end, err
}

// Tokens returns how many prepared tokens are alive.
func (p *Preparing) Tokens() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, s := range p.slots {
		if !s.token.IsZero() && time.Now().Before(s.tokenUntil) {
			n++
		}
	}
	return n
}

func (p *Preparing) holds(prepared plugins.Prepared) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.slots[prepared.Handle]
	return ok && !s.token.IsZero() && s.token.Equal(prepared.State) && time.Now().Before(s.tokenUntil)
}
