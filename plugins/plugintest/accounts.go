package plugintest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// accounts is what a test did to a system behind a Memory.
type accounts struct {
	planted map[string]plugins.Account
	dropped map[string]bool
	broken  bool
	// before and after run around the making of a list.
	before, after func()
}

// Systems returns those of the configuration.
func (m *Memory) Systems() []plugins.System { return m.cfg.Systems }

// Accounts yields what is alive under the system's roles, but what was dropped there, and what was planted.
func (m *Memory) Accounts(ctx context.Context, system string) iter.Seq2[plugins.Account, error] {
	return func(yield func(plugins.Account, error) bool) {
		before, after := m.around(system)
		before()
		found, err := m.accountsOf(system)
		after()
		if err != nil {
			yield(plugins.Account{}, err)
			return
		}
		for _, name := range slices.Sorted(maps.Keys(found)) {
			if ctx.Err() != nil || !yield(found[name], nil) {
				return
			}
		}
	}
}

func (m *Memory) accountsOf(system string) (map[string]plugins.Account, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.accounts[system]
	if !ok {
		return nil, fmt.Errorf("accounts in memory: no system %q: %w", system, plugins.ErrMisconfigured)
	}
	if at.broken {
		return nil, fmt.Errorf("accounts in memory: %w", plugins.ErrUnavailable)
	}
	i := slices.IndexFunc(m.cfg.Systems, func(s plugins.System) bool { return s.Name == system })
	found := maps.Clone(at.planted)
	for _, s := range m.slots {
		name := publicRef(s.lease)
		if s.works(time.Now()) && slices.Contains(m.cfg.Systems[i].Roles, s.role) && !at.dropped[name] {
			found[name] = plugins.Account{Name: name, NotAfter: s.notAfter}
		}
	}
	return found, nil
}

// around returns what is to happen before and after a list is made.
func (m *Memory) around(system string) (before, after func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, after = func() {}, func() {}
	if at := m.accounts[system]; at != nil && at.before != nil {
		before, after = at.before, at.after
		at.before, at.after = nil, nil
	}
	return before, after
}

// AroundAccounts lets something happen before and after the next list of a system is made, and before it is yielded.
func (m *Memory) AroundAccounts(system string, before, after func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts[system].before, m.accounts[system].after = before, after
}

// Plant makes an account at a system that nobody asked the backend for.
func (m *Memory) Plant(system string, a plugins.Account) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts[system].planted[a.Name] = a
}

// DropAccount ends an account at a system, behind the backend's back.
func (m *Memory) DropAccount(system, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.accounts[system].planted, name)
	m.accounts[system].dropped[name] = true
}

// BreakSystem lets a system answer no more.
func (m *Memory) BreakSystem(system string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts[system].broken = true
}
