//go:build failpoints

package broker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/stop"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// child is the process that is killed.
type child struct {
	*house

	held *remote      // memory/horizon
	kept *remoteVault // memory/vault
}

// TestCrashChild is the process that TestCrash kills. It goes through one story, and prints what it handed out.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("TestCrash runs it")
	}
	client := dial(t, os.Getenv(crashAddr))
	memory := plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon})
	c := &child{
		held: &remote{Memory: memory, client: client},
		kept: &remoteVault{remote: &remote{Memory: memory, client: client, vault: true}},
		house: &house{
			tb: t, dir: dir, kind: os.Getenv(crashKind), meter: newMeter(), plain: plugintest.NewMemory(plugintest.MemoryConfig{}),
		},
	}
	c.backends = map[string]plugins.Backend{"memory/plain": c.plain, "memory/horizon": c.held, "memory/vault": c.kept}
	var err error
	if c.key, err = audit.LoadKey(filepath.Join(dir, "key")); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.apply(roles + fading + "---" + strings.Replace(profile, "{name: static}", "{name: static}, {name: fading}", 1))
	c.startLoop()
	story := map[string]func(*testing.T){
		storyMain: c.main, storySuspension: c.suspension, storyAbandoned: c.abandonment, storyEnds: c.ends, storyInventory: c.inventory,
	}[os.Getenv(crashStory)]
	story(t)
	c.endLoop()
	c.stop()
}

// main goes through every step of declaring, issuing and ending.
func (c *child) main(t *testing.T) {
	t.Helper()
	for _, role := range []string{"vault", "horizon", "plain"} {
		work := c.declare(role)
		c.handOut(t, work, role)
		c.complete(work)
	}
	// An answer that is lost, one that comes when the task has ended, and a task that ends before there is an intent.
	work := c.declare("vault", "horizon", "plain")
	c.loseAnswer(t, work)
	c.handOut(t, work, "horizon")
	l := c.handOut(t, work, "vault")
	c.revoke(t, l)
	c.held.after = func() error { return c.closeNow(work) }
	if _, err := c.try(work, "horizon"); err == nil {
		t.Fatal("issued for a task that ended")
	}
	c.held.after = nil
	work = c.declare("vault", "horizon")
	c.handOut(t, work, "horizon")
	c.kept.prepared = func() error { return c.closeNow(work) }
	if _, err := c.try(work, "vault"); err == nil {
		t.Fatal("issued for a task that ended")
	}
	c.kept.prepared = nil
	c.handOut(t, c.declare("vault"), "vault")
	everything := broker.StopOrder{Target: stop.Target{Kind: stop.Backend, Name: "memory/vault"}}
	if err := c.broker.StopAll(t.Context(), operator(), everything, func(broker.Stopping) error { return nil }); err != nil {
		t.Fatal(err)
	}
	// A task that expires, a role that is removed, and at last a sweep.
	d := declaration(newID(t), "vault")
	d.TTL = time.Second
	if _, err := c.broker.Declare(t.Context(), agent("b"), d); err != nil {
		t.Fatal(err)
	}
	work = c.declare("horizon")
	removed := c.handOut(t, work, "horizon").Lease.ID
	c.withoutRole("horizon")
	c.until(30*time.Second, func() bool { return c.revoked(removed) })
	c.kept.hasty = true
	lost := c.loseAnswer(t, c.declare("vault"))
	c.until(30*time.Second, func() bool {
		all, err := c.broker.Tasks(t.Context(), agent("b"), anyTask())
		return err == nil && len(all) == 1 && all[0].State == task.Closed && c.revoked(lost)
	})
}

// loseAnswer loses the answer of a backend that issued, and returns the lease.
func (c *child) loseAnswer(t *testing.T, work task.Task) lease.ID {
	t.Helper()
	c.kept.after = func() error { return plugins.ErrUnavailable }
	defer func() { c.kept.after = nil }()
	if _, err := c.try(work, "vault"); err == nil {
		t.Fatal("issued without an answer")
	}
	all := c.leases()
	return all[len(all)-1].ID
}

// revoked reports whether a lease has ended.
func (c *child) revoked(id lease.ID) bool {
	return slices.ContainsFunc(c.leases(), func(l lease.Lease) bool { return l.ID == id && l.State == lease.Revoked })
}

// handOut issues a credential and says so to the parent, as an answer does to a client.
func (h *house) handOut(t *testing.T, work task.Task, role string) broker.Issued {
	t.Helper()
	out := h.issue(work, role)
	tell(t, "acked", out.Lease.ID.String())
	return out
}

// tell tells the parent.
func tell(t *testing.T, word, rest string) {
	t.Helper()
	if _, err := fmt.Fprintf(os.Stdout, "%s %s\n", word, rest); err != nil {
		t.Fatal(err)
	}
}

func (h *house) revoke(t *testing.T, out broker.Issued) {
	t.Helper()
	if _, _, err := h.broker.RevokeLease(t.Context(), agent("a"), out.Lease.ID, 0); err != nil {
		t.Fatal(err)
	}
}

func (h *house) closeNow(work task.Task) error {
	_, err := h.broker.Complete(h.tb.Context(), agent("a"), ref(work), task.Completed, 0)
	return errors.Join(err)
}
