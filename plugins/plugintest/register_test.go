package plugintest_test

import (
	"context"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// registrar is a mutant that lists what it has issued.
type registrar struct {
	*mutant

	mu     sync.Mutex // guards signed
	signed []plugins.Found
}

func (r *registrar) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	cred, err := r.mutant.Issue(ctx, req)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.signed = append(r.signed, plugins.Found{Handle: cred.Handle, PublicRef: cred.PublicRef, IssuedAt: time.Now(), NotAfter: cred.NotAfter})
	}
	return cred, err
}

// Issued ends with what a list may leave out.
func (r *registrar) Issued(ctx context.Context) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, f := range r.signed {
			if r.issued != nil {
				f = r.issued(ctx, f)
			}
			if f.Handle != "" && !yield(f, nil) {
				return
			}
		}
		yield(plugins.Found{}, &plugins.PartialError{Problem: "what was signed elsewhere is not listed"})
	}
}

func TestRegisterKeepsTheContract(t *testing.T) {
	m := &mutant{Memory: plugintest.NewMemory(plugintest.MemoryConfig{})}
	plugintest.Run(t, harness(&registrar{mutant: m}, m.Memory, `{"csr":true}`))
}

func registerMutants() map[string]breach {
	return map[string]breach{
		"the register is empty": {func(m *mutant) {
			m.issued = func(context.Context, plugins.Found) plugins.Found { return plugins.Found{} }
		}, "register"},
		"the register forgets what is revoked": {func(m *mutant) {
			m.issued = func(ctx context.Context, f plugins.Found) plugins.Found {
				if _, err := m.Memory.Find(ctx, f.Handle); err != nil {
					return plugins.Found{}
				}
				return f
			}
		}, "register"},
		"the register knows no end": {func(m *mutant) {
			m.issued = func(_ context.Context, f plugins.Found) plugins.Found {
				f.NotAfter = time.Time{}
				return f
			}
		}, "register"},
	}
}
