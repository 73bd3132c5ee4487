// Package instance says which backends are in force: all of them at one moment, as one value that never changes.
package instance

import (
	"cmp"
	"maps"
	"slices"

	"github.com/stint-dev/stint/plugins"
)

// Instance is one backend by its name.
type Instance struct {
	Name    string // "vault/prod"
	Backend plugins.Backend
	// Leaving: it is no longer configured. No role can name it; it ends what it issued.
	Leaving bool
}

// Snapshot is the backends in force. It is immutable, so whoever took one may go on with it while another takes its place.
type Snapshot struct {
	all        []Instance
	configured map[string]plugins.Backend
}

// New makes a snapshot of instances, in an order that stays.
func New(all ...Instance) *Snapshot {
	s := &Snapshot{all: slices.Clone(all), configured: make(map[string]plugins.Backend, len(all))}
	for _, i := range all {
		if !i.Leaving {
			s.configured[i.Name] = i.Backend
		}
	}
	return s
}

// Configured makes a snapshot of configured backends, by name.
func Configured(backends map[string]plugins.Backend) *Snapshot {
	all := make([]Instance, 0, len(backends))
	for name, b := range backends {
		all = append(all, Instance{Name: name, Backend: b})
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.Name, b.Name) })
	return New(all...)
}

// All returns the instances: the configured ones in their order, then those that are leaving.
func (s *Snapshot) All() []Instance { return slices.Clone(s.all) }

// Find returns a backend, also one that is leaving; false where there is none.
func (s *Snapshot) Find(name string) (Instance, bool) {
	for _, i := range s.all {
		if i.Name == name {
			return i, true
		}
	}
	return Instance{}, false
}

// Configured returns the backends that roles may name.
func (s *Snapshot) Configured() map[string]plugins.Backend { return maps.Clone(s.configured) }

// Has reports whether roles may name a backend.
func (s *Snapshot) Has(name string) bool {
	_, ok := s.configured[name]
	return ok
}

// Replace returns the snapshot that follows when these are configured: what is here and not among them is leaving.
func (s *Snapshot) Replace(configured ...Instance) *Snapshot {
	next := New(configured...)
	all := next.all
	for _, i := range s.all {
		if !next.Has(i.Name) {
			i.Leaving = true
			all = append(all, i)
		}
	}
	return New(all...)
}

// Without returns the snapshot without one that is leaving. One that is configured stays.
func (s *Snapshot) Without(name string) *Snapshot {
	return New(slices.DeleteFunc(s.All(), func(i Instance) bool { return i.Leaving && i.Name == name })...)
}
