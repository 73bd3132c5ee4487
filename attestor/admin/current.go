package admin

import (
	"sync"
	"sync/atomic"

	"github.com/stint-dev/stint/attestor"
)

// Current is the roles in force. They can be replaced while they are asked for; asking takes no lock.
type Current struct {
	now atomic.Pointer[moment]
	mu  sync.Mutex // serialises Replace
}

// moment is the roles until they change.
type moment struct {
	roles   *Roles
	changed chan struct{} // closed when they have
}

// NewCurrent puts roles in force.
func NewCurrent(r *Roles) *Current {
	c := &Current{}
	c.now.Store(&moment{roles: r, changed: make(chan struct{})})
	return c
}

// Replace puts other roles in force, from the next call of Of on.
func (c *Current) Replace(r *Roles) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.now.Load()
	c.now.Store(&moment{roles: r, changed: make(chan struct{})})
	close(old.changed)
}

// Of returns the role of an identity now; see [Roles.Of].
func (c *Current) Of(id attestor.Identity) (attestor.AdminRole, bool) {
	return c.now.Load().roles.Of(id)
}

// Changed returns a channel that is closed when the roles are next replaced. Fetch it before you ask for a role.
func (c *Current) Changed() <-chan struct{} { return c.now.Load().changed }
