package main

import (
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/plugins"
)

// lastCall is for how long calls that had begun may still go on with a backend that was replaced or has left: an issue, its
// commit, the end of what is not handed out after all, and some room.
const lastCall = 3*broker.IssueTimeout + 5*time.Second

// opened is a backend as it was made, and what is known of it in this process.
type opened struct {
	backend plugins.Backend
	text    string // what it was made from
	// state: it keeps state on disk, which no second instance may share.
	state bool
	stop  func()    // ends its Run and waits for it
	left  time.Time // when it left the configuration; zero before
	until time.Time // until when its CRL is served at least; zero where that is not known yet
}

// openedBackends is what a house begins with.
func openedBackends(cfg *config.Config, s *instance.Snapshot, texts map[string]string) map[string]*opened {
	all := map[string]*opened{}
	for _, block := range cfg.Backends {
		if in, ok := s.Find(block.ID()); ok {
			all[in.Name] = &opened{backend: in.Backend, text: texts[in.Name], state: keepsState(block)}
		}
	}
	return all
}

// backendChange is what becomes of the backends.
type backendChange struct {
	snapshot                *instance.Snapshot
	opened                  map[string]*opened // the configured ones
	added, changed, removed []string           // by name, in the order of the configuration
	restart                 []string           // keys that changed and take a restart
}

// String is what the record says; "" where nothing changed.
func (c *backendChange) String() string {
	var parts []string
	for _, one := range []struct {
		what  string
		names []string
	}{{"added", c.added}, {"changed", c.changed}, {"removed", c.removed}} {
		if len(one.names) > 0 {
			parts = append(parts, "backends "+one.what+": "+strings.Join(one.names, ", "))
		}
	}
	return strings.Join(parts, "; ")
}

// prepareBackends makes the backends that are new, and those whose block or files changed. What did not change goes on as it
// is, also where it had been leaving. A CA with state on disk is not made a second time: two would write one CRL.
func (h *house) prepareBackends(cfg *config.Config, texts map[string]string) (backendChange, error) {
	c := backendChange{opened: map[string]*opened{}}
	anew := *cfg
	anew.Backends = nil
	for _, block := range cfg.Backends {
		if !c.keep(block, h.opened[block.ID()], texts[block.ID()]) {
			anew.Backends = append(anew.Backends, block)
		}
	}
	made, faults := openBackends(surroundings{cfg: &anew, jwt: h.source, logger: h.logger})
	if len(faults) > 0 {
		return c, errors.Join(faults...)
	}
	for _, block := range anew.Backends {
		c.opened[block.ID()] = &opened{backend: made[block.ID()], text: texts[block.ID()], state: keepsState(block)}
	}
	all := make([]instance.Instance, 0, len(cfg.Backends))
	for _, block := range cfg.Backends {
		all = append(all, instance.Instance{Name: block.ID(), Backend: c.opened[block.ID()].backend})
	}
	c.snapshot = h.catalog.Backends().Replace(all...)
	for _, in := range c.snapshot.All() {
		if in.Leaving && h.opened[in.Name].left.IsZero() {
			c.removed = append(c.removed, in.Name)
		}
	}
	return c, nil
}

// keep goes on with a backend as it is where nothing changed, or must not while serving. It reports false where the backend
// has to be made.
func (c *backendChange) keep(block config.Backend, was *opened, text string) bool {
	id := block.ID()
	kept := was != nil && (was.text == text || was.state || keepsState(block))
	switch {
	case was == nil || !was.left.IsZero():
		c.added = append(c.added, id)
	case !kept:
		c.changed = append(c.changed, id)
	}
	if !kept {
		return false
	}
	if c.opened[id] = was; was.text != text {
		c.restart = append(c.restart, "backend "+id)
	}
	return true
}

// takeBackends follows a change that is in force: new instances run, and those that they replaced stop when nobody can be
// calling them any more.
func (h *house) takeBackends(c backendChange) {
	now := time.Now()
	for name, next := range c.opened {
		was := h.opened[name]
		next.left, next.until = time.Time{}, time.Time{}
		h.found(name)
		if next == was {
			continue
		}
		h.start(name, next)
		if h.opened[name] = next; was != nil {
			time.AfterFunc(lastCall, was.stop)
		}
	}
	for _, name := range c.removed {
		h.opened[name].left = now
		h.logger.Warn("a backend is not configured any more: what it issued is being ended, and it stays until all of that is final",
			zap.String("backend", name))
	}
	if text := c.String(); text != "" {
		h.logger.Info("backends changed", zap.Strings("added", c.added), zap.Strings("changed", c.changed), zap.Strings("removed", c.removed))
	}
}

// start lets a backend do work of its own, if it has any.
func (h *house) start(name string, o *opened) {
	o.stop = func() {}
	if r, ok := o.backend.(plugins.Runner); ok {
		o.stop = h.goes("backend "+name, r.Run)
	}
}
