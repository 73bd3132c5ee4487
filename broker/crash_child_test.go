//go:build failpoints

package broker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/stop"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// TestCrashChild is the process that TestCrash kills. It goes through every step there is, and prints what it handed out.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("TestCrash runs it")
	}
	client := dial(t, os.Getenv(crashAddr))
	memory := plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon})
	held := &remote{Memory: memory, client: client}
	vault := &remoteVault{remote: &remote{Memory: memory, client: client, vault: true}}
	h := &house{tb: t, dir: dir, kind: os.Getenv(crashKind), meter: newMeter(), plain: plugintest.NewMemory(plugintest.MemoryConfig{})}
	h.backends = map[string]plugins.Backend{"memory/plain": h.plain, "memory/horizon": held, "memory/vault": vault}
	var err error
	if h.key, err = audit.LoadKey(filepath.Join(dir, "key")); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.apply(roles + "---" + profile)
	h.startLoop()

	for _, role := range []string{"vault", "horizon", "plain"} {
		work := h.declare(role)
		h.handOut(t, work, role)
		h.complete(work)
	}
	// An answer that is lost, one that comes when the task has ended, and a task that ends before there is an intent.
	work := h.declare("vault", "horizon", "plain")
	vault.after = func() error { return plugins.ErrUnavailable }
	if _, err = h.try(work, "vault"); err == nil {
		t.Fatal("issued without an answer")
	}
	vault.after = nil
	h.handOut(t, work, "horizon")
	l := h.handOut(t, work, "vault")
	h.revoke(t, l)
	held.after = func() error { return h.closeNow(work) }
	if _, err = h.try(work, "horizon"); err == nil {
		t.Fatal("issued for a task that ended")
	}
	held.after = nil
	work = h.declare("vault", "horizon")
	h.handOut(t, work, "horizon")
	vault.prepared = func() error { return h.closeNow(work) }
	if _, err = h.try(work, "vault"); err == nil {
		t.Fatal("issued for a task that ended")
	}
	vault.prepared = nil
	h.handOut(t, h.declare("vault"), "vault")
	everything := broker.StopOrder{Target: stop.Target{Kind: stop.Backend, Name: "memory/vault"}}
	if err = h.broker.StopAll(t.Context(), operator(), everything, func(broker.Stopping) error { return nil }); err != nil {
		t.Fatal(err)
	}
	// A role that is removed, and a task that expires.
	d := declaration(newID(t), "vault")
	d.TTL = time.Second
	if _, err = h.broker.Declare(t.Context(), agent("b"), d); err != nil {
		t.Fatal(err)
	}
	work = h.declare("horizon")
	h.handOut(t, work, "horizon")
	h.withoutRole("horizon")
	h.until(10*time.Second, func() bool {
		all, err := h.broker.Tasks(t.Context(), agent("b"), anyTask())
		return err == nil && len(all) == 1 && all[0].State == task.Closed
	})
	h.endLoop()
	h.stop()
}

// handOut issues a credential and says so to the parent, as an answer does to a client.
func (h *house) handOut(t *testing.T, work task.Task, role string) broker.Issued {
	t.Helper()
	out := h.issue(work, role)
	if _, err := fmt.Fprintf(os.Stdout, "acked %s\n", out.Lease.ID); err != nil {
		t.Fatal(err)
	}
	return out
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
