//go:build failpoints

package broker_test

import (
	"context"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/stop"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// fading cannot be revoked, and ends soon.
const fading = `---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: fading}
spec: {backend: memory/horizon, memory: {ends: lapsing}, ttl: {default: 3s, max: 30m}}
`

// suspension suspends an agent that has more tasks than are closed at once. The broker stops between two pages, and
// finishes when it starts again.
func (c *child) suspension(t *testing.T) {
	t.Helper()
	work := c.declare("horizon")
	c.handOut(t, work, "horizon")
	c.crowd(t, work, 128)
	ctx, shutDown := context.WithCancelCause(t.Context())
	o := broker.StopOrder{Target: stop.Target{Kind: stop.Agent, Name: work.Agent}, Suspend: true}
	err := c.broker.StopAll(ctx, operator(), o, func(broker.Stopping) error {
		tell(t, "suspended", work.Agent)
		shutDown(fault.New(fault.ShuttingDown, "the broker stops"))
		return nil
	})
	want(t, err, fault.ShuttingDown)
	c.restart()
	c.untilClosed(t)
}

// crowd adds copies of a task to the ledger.
func (c *child) crowd(t *testing.T, work task.Task, n int) {
	t.Helper()
	_, err := c.ledger.Update(t.Context(), func(tx *ledger.Tx) error {
		for range n {
			id, err := task.NewID()
			if err != nil {
				return err
			}
			work.ID, work.ShortName, work.RequestID = id, "work-"+id.String(), id.String()
			if err = tx.InsertTask(work); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// abandonment leaves a task alone.
func (c *child) abandonment(t *testing.T) {
	t.Helper()
	d := declaration(newID(t), "horizon", "vault")
	d.IdleTimeout = time.Second
	out, err := c.broker.Declare(t.Context(), agent("a"), d)
	if err != nil {
		t.Fatal(err)
	}
	c.handOut(t, out.Task, "horizon")
	c.handOut(t, out.Task, "vault")
	c.untilClosed(t)
	if why := c.task(out.Task.ID).CloseReason; why != task.Abandoned {
		t.Errorf("the task was closed as %s", why)
	}
}

// ends ends what cannot be revoked: one credential ends by itself, the other never.
func (c *child) ends(t *testing.T) {
	t.Helper()
	work := c.declare("fading", "static")
	c.handOut(t, work, "fading")
	c.handOut(t, work, "static")
	c.complete(work)
}

// inventory compares a backend with the ledger that has lost one credential, and holds one that the broker never asked for.
func (c *child) inventory(t *testing.T) {
	t.Helper()
	work := c.declare("horizon", "vault")
	lost := c.handOut(t, work, "horizon")
	c.handOut(t, work, "vault")
	if _, err := c.held.call(Ask{Op: opDrop, Lease: lost.Lease.ID}); err != nil {
		t.Fatal(err)
	}
	id, err := lease.NewID()
	if err != nil {
		t.Fatal(err)
	}
	role, _ := c.catalog.Engine().Set().Role("horizon")
	stranger := plugins.Request{Lease: id, Role: role.Plugin, NotAfter: time.Now().Add(5 * time.Minute)}
	if _, err = c.held.Issue(t.Context(), stranger); err != nil {
		t.Fatal(err)
	}
	tell(t, "stranger", id.String())
	c.compare(t)
	c.complete(work)
}

// untilClosed waits until every task is CLOSED.
func (c *child) untilClosed(t *testing.T) {
	t.Helper()
	open := ledger.TaskFilter{States: []task.State{task.Active, task.Closing}, Limit: 1}
	c.until(30*time.Second, func() bool {
		all, err := c.broker.AllTasks(t.Context(), open)
		return err == nil && len(all) == 0
	})
}
