package broker_test

import (
	"context"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard,nolintlint // backends in memory
)

// moved are the roles with "plain" at another backend.
func moved(to string) string {
	return strings.Replace(roles, "metadata: {name: plain}\nspec: {backend: memory/plain", "metadata: {name: plain}\nspec: {backend: "+to, 1)
}

// without returns the roles and the profile without those of a backend.
func without(backend string, names ...string) string {
	var docs []string
	for doc := range strings.SplitSeq(roles, "---") {
		if !strings.Contains(doc, "backend: "+backend+",") {
			docs = append(docs, doc)
		}
	}
	p := profile
	for _, name := range names {
		p = strings.NewReplacer("{name: "+name+"}, ", "", ", {name: "+name+"}]", "]").Replace(p)
	}
	return strings.Join(docs, "---") + "---" + p
}

func (h *house) replaced(backends map[string]plugins.Backend) *instance.Snapshot {
	return h.catalog.Backends().Replace(instance.Configured(backends).All()...)
}

// TestRenewIsAllOrNothing: a renewal that does not compile, or whose commit fails, leaves resources, backends and the record
// as they were.
func TestRenewIsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.endLoop()
		less := maps.Clone(h.backends)
		delete(less, "memory/vault")
		other := func(attestor.Pattern) []attestor.Pattern {
			p, err := attestor.ParsePattern("spiffe://example.org/agent/*")
			if err != nil {
				t.Fatal(err)
			}
			return []attestor.Pattern{p}
		}
		files := files(roles + "---" + extraRole + "---" + profile)
		engine, backends, size := h.catalog.Engine(), h.catalog.Backends(), h.ledger.Head().Size
		for name, r := range map[string]broker.Renewal{
			"a role names a backend that is gone": {Terms: broker.Terms{Backends: h.replaced(less), Forbidden: administrators}},
			"the same, from files": {
				Terms: broker.Terms{Backends: h.replaced(less), Forbidden: administrators}, FromFiles: true, Files: files,
			},
			"an administrator is an agent": {Terms: broker.Terms{Backends: h.replaced(h.backends), Forbidden: other}},
		} {
			if _, err := h.catalog.Renew(t.Context(), r); fault.ReasonOf(err) != fault.ResourceInvalid {
				t.Errorf("%s: %v", name, err)
			}
		}
		h.store.failNth(atLog, 1)
		good := broker.Renewal{Terms: broker.Terms{Backends: h.replaced(h.backends), Forbidden: administrators}, FromFiles: true, Files: files}
		_, err := h.catalog.Renew(t.Context(), good)
		want(t, err, fault.LedgerUnavailable)
		if h.catalog.Engine() != engine || h.catalog.Backends() != backends || h.ledger.Head().Size != size {
			t.Error("something changed")
		}
		h.apply(extraRole) // the API may still change it
		if _, err := h.catalog.Renew(t.Context(), good); err != nil {
			t.Fatal(err)
		}
		if h.catalog.Backends() != good.Backends || len(h.recorded(audit.ConfigReloaded, "")) != 1 {
			t.Errorf("not in force, or not recorded: %+v", h.recorded(audit.ConfigReloaded, ""))
		}
	})
}

// TestRemovedBackendEndsWhatItIssued: what was issued by its roles ends with them, and what was issued by a role that has
// moved to another backend ends too; the other backends notice nothing. It stays until it is let go of.
func TestRemovedBackendEndsWhatItIssued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain", "vault", "horizon")
		h.issue(work, "plain")
		h.issue(work, "horizon")
		h.issue(work, "vault")
		less := map[string]plugins.Backend{"memory/vault": h.vault}
		text := strings.ReplaceAll(without("memory/horizon", "horizon", "horizon-cert", "lapsing-horizon"), "spec: {backend: memory/plain", "spec: {backend: memory/vault")
		_, err := h.catalog.Renew(t.Context(), broker.Renewal{
			Terms: broker.Terms{Backends: h.replaced(less), Forbidden: administrators}, FromFiles: true, Files: files(text),
		})
		if err != nil {
			t.Fatal(err)
		}
		h.until(time.Minute, func() bool { return len(h.plain.Alive())+len(h.horizon.Alive()) == 0 })
		causes := map[string]lease.Cause{}
		for _, l := range h.leases() {
			causes[l.Backend] = l.Cause
		}
		wanted := map[string]lease.Cause{"memory/plain": lease.BackendRemoved, "memory/horizon": lease.RoleRemoved, "memory/vault": ""}
		if diff := cmp.Diff(wanted, causes); diff != "" || len(h.vault.Alive()) != 1 {
			t.Errorf("%s\n%d alive at the backend that stays", diff, len(h.vault.Alive()))
		}
		if _, ok := h.catalog.Backends().Find("memory/plain"); !ok {
			t.Error("the removed backend is gone before it was let go of")
		}
		for _, name := range []string{"memory/plain", "memory/vault"} {
			if err := h.catalog.LetGo(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := h.catalog.Backends().Find("memory/plain"); ok || !h.catalog.Backends().Has("memory/vault") {
			t.Error("let go of the wrong backend")
		}
		h.complete(work)
		h.gone()
	})
}

// TestBackendRemovedWhileItIssues: an issue that was decided before its backend was removed is not handed out, though its
// role goes on at another backend.
func TestBackendRemovedWhileItIssues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain")
		decided, removed := make(chan struct{}), make(chan struct{})
		h.plain.Before(plugintest.OpIssue, func(context.Context, plugins.LeaseID) error {
			close(decided)
			<-removed
			return nil
		})
		answered := make(chan error, 1)
		go func() {
			_, err := h.try(work, "plain")
			answered <- err
		}()
		<-decided
		less := map[string]plugins.Backend{"memory/vault": h.vault, "memory/horizon": h.horizon}
		text := strings.ReplaceAll(roles+"---"+profile, "backend: memory/plain", "backend: memory/vault")
		if _, err := h.catalog.Renew(t.Context(), broker.Renewal{
			Terms: broker.Terms{Backends: h.replaced(less), Forbidden: administrators}, FromFiles: true, Files: files(text),
		}); err != nil {
			t.Fatal(err)
		}
		close(removed)
		want(t, <-answered, fault.RoleOutsideProfile)
		h.issue(work, "plain") // at its new backend
		if n := len(h.vault.Alive()); n != 1 {
			t.Errorf("%d alive at the new backend", n)
		}
		h.complete(work)
		h.gone()
	})
}

// TestRenewWhileManyIssue: a backend is changed, removed and added again, and a role moved, while eight agents issue. Each
// is handed a credential or told that its role was changed; nothing is left alive.
func TestRenewWhileManyIssue(t *testing.T) {
	h := newHouse(t)
	second := plugintest.NewMemory(plugintest.MemoryConfig{})
	var issued atomic.Int64
	over := make(chan struct{})
	var agents sync.WaitGroup
	for n := range 8 {
		name := string(rune('a' + n))
		out, err := h.broker.Declare(t.Context(), agent(name), declaration(newID(t), "plain"))
		if err != nil {
			t.Fatal(err)
		}
		agents.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				got, err := h.broker.Issue(t.Context(), agent(name), wish(t, out.Task, "plain"))
				switch reason := fault.ReasonOf(err); {
				case err == nil:
					issued.Add(1)
					if _, _, err = h.broker.RevokeLease(t.Context(), agent(name), got.Lease.ID, time.Minute); err != nil {
						t.Errorf("revoke: %v", err)
						return
					}
				case reason != fault.RoleOutsideProfile && reason != fault.TooManyLeases:
					t.Errorf("issue while the backends change: %v", err)
					return
				}
			}
		})
	}
	with := maps.Clone(h.backends)
	with["memory/second"] = second
	for n := range 40 {
		r := broker.Renewal{Terms: broker.Terms{Backends: h.replaced(with), Forbidden: administrators}, FromFiles: true}
		if r.Files = files(moved("memory/second") + "---" + profile); n%2 == 1 {
			r.Backends, r.Files = h.replaced(h.backends), files(roles+"---"+profile)
		}
		if _, err := h.catalog.Renew(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	close(over)
	agents.Wait()
	h.until(time.Minute, func() bool { return h.alive()+len(second.Alive()) == 0 })
	if issued.Load() == 0 {
		t.Error("nothing was issued")
	}
	t.Logf("%d credentials were issued while the backends changed 40 times", issued.Load())
}

// TestStoredResourcesMayBeOvertaken: where resources come from files, what is stored need not compile any more; what was
// issued by a role that is gone ends.
func TestStoredResourcesMayBeOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("horizon", "plain")
		h.issue(work, "horizon")
		h.issue(work, "plain")
		h.endLoop()
		r := broker.Renewal{
			Terms: terms(map[string]plugins.Backend{"memory/plain": h.plain, "memory/vault": h.vault}), FromFiles: true,
			Files: files(roles + "---" + profile),
		}
		if _, _, err := broker.LoadCatalog(t.Context(), h.ledger, r); fault.ReasonOf(err) != fault.ResourceInvalid {
			t.Errorf("files that do not compile: %v", err)
		}
		r.Files = files(without("memory/horizon", "horizon", "horizon-cert", "lapsing-horizon"))
		catalog, out, err := broker.LoadCatalog(t.Context(), h.ledger, r)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := catalog.Engine().Set().Role("horizon"); ok || out.PolicySet != catalog.Engine().Hash() {
			t.Error("a role without a backend is in force")
		}
		for _, l := range h.leases() {
			if (l.Role == "horizon") != (l.Cause == lease.RoleRemoved) {
				t.Errorf("lease %+v", l)
			}
		}
		again, out, err := broker.LoadCatalog(t.Context(), h.ledger, r)
		if err != nil || again.Engine().Hash() != catalog.Engine().Hash() {
			t.Fatalf("loaded again: %v", err)
		}
		for _, ch := range out.Changes {
			if ch.Action != "unchanged" {
				t.Errorf("loading the same again changes %+v", ch)
			}
		}
	})
}
