package broker_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// files is one file.
func files(yaml string) []resource.File { return []resource.File{{Name: "resources.yaml", YAML: yaml}} }

const extraRole = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: extra}
spec: {backend: memory/plain, ttl: {max: 30m}}
`

// TestApply changes resources as a whole, with a record each, in force from the next decision on and after a restart.
func TestApply(t *testing.T) { //nolint:cyclop // one story, looked at from all sides
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		before := h.catalog.Engine().Hash()
		dry, err := h.catalog.Apply(t.Context(), operator(), broker.Apply{Files: files(extraRole), DryRun: true})
		if err != nil || changed(dry) != "roles/extra created" || h.catalog.Engine().Hash() != before {
			t.Fatalf("dry run %+v, %v", dry, err)
		}
		size := h.ledger.Head().Size
		out := h.apply(extraRole)
		if changed(out) != "roles/extra created" || out.PolicySet != dry.PolicySet || h.catalog.Engine().Hash() != out.PolicySet {
			t.Errorf("applied %+v", out)
		}
		rec := h.recorded(audit.ResourceApplied, "")
		last := rec[len(rec)-1]
		if h.ledger.Head().Size != size+1 || last.Resource != "roles/extra" || last.Etag == "" || last.Actor.ID != "spiffe://example.org/ops/oncall" ||
			last.PolicySet != out.PolicySet || last.Reason != string(resource.Created) {
			t.Errorf("records %+v", last)
		}
		if again := h.apply(extraRole); changed(again) != "" || h.ledger.Head().Size != size+1 {
			t.Errorf("applied twice: %+v", again)
		}
		h.restart()
		if _, ok := h.catalog.Engine().Set().Role("extra"); !ok || h.catalog.Engine().Hash() != out.PolicySet {
			t.Error("the role is gone after a restart")
		}
		pruned, err := h.catalog.Apply(t.Context(), operator(), broker.Apply{Files: files(roles + "---" + profile), Prune: true})
		if err != nil || !strings.Contains(changed(pruned), "roles/extra deleted") {
			t.Errorf("pruned %+v, %v", pruned, err)
		}
	})
}

// changed lists what changed.
func changed(a broker.Applied) string {
	var out []string
	for _, c := range a.Changes {
		if c.Action != resource.Unchanged {
			out = append(out, c.ID+" "+string(c.Action))
		}
	}
	return strings.Join(out, ", ")
}

// TestInvalidResourcesChangeNothing: what does not validate is refused whole, with file and line.
func TestInvalidResourcesChangeNothing(t *testing.T) {
	for name, yaml := range map[string]string{
		"unknown backend":   strings.Replace(extraRole, "memory/plain", "memory/none", 1),
		"two, one is wrong": extraRole + "---" + strings.Replace(strings.Replace(extraRole, "extra", "other", 1), "30m", "x", 1),
		"an administrator":  strings.Replace(strings.Replace(profile, "agents}", "ops}", 1), "/agent/*", "/ops/*", 1),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				before, size := h.catalog.Engine(), h.ledger.Head().Size
				_, err := h.catalog.Apply(t.Context(), operator(), broker.Apply{Files: files(yaml)})
				f := wanted(t, err, fault.ResourceInvalid)
				if len(f.Fields) == 0 || !strings.HasPrefix(f.Fields[0].Name, "resources.yaml:") {
					t.Errorf("fields %+v", f.Fields)
				}
				if h.catalog.Engine() != before || h.ledger.Head().Size != size {
					t.Error("something changed")
				}
			})
		})
	}
}

// TestReadOnly: resources that come from files are not changed over the API; what is only asked may be.
func TestReadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		renewal := broker.Renewal{Terms: terms(h.backends), FromFiles: true, Files: files(roles + "---" + profile)}
		if _, err := h.catalog.Renew(t.Context(), renewal); err != nil {
			t.Fatal(err)
		}
		_, err := h.catalog.Apply(t.Context(), operator(), broker.Apply{Files: files(extraRole)})
		want(t, err, fault.ResourcesReadOnly)
		_, err = h.catalog.Delete(t.Context(), operator(), "roles/plain")
		want(t, err, fault.ResourcesReadOnly)
		if _, err = h.catalog.Apply(t.Context(), operator(), broker.Apply{Files: files(extraRole), DryRun: true}); err != nil {
			t.Error(err)
		}
		renewal.Files = files(roles + "---" + extraRole + "---" + profile)
		if _, err = h.catalog.Renew(t.Context(), renewal); err != nil {
			t.Error(err)
		}
		if rec := h.recorded(audit.ResourceApplied, ""); rec[len(rec)-1].Actor.ID != "stint" {
			t.Errorf("loaded by %+v", rec[len(rec)-1].Actor)
		}
	})
}

// TestRemovedRoleEndsItsLeases, and only its.
func TestRemovedRoleEndsItsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain", "vault")
		h.issue(work, "plain")
		h.issue(work, "vault")
		h.issue(work, "vault")
		h.withoutRole("plain")
		if _, err := h.try(work, "plain"); fault.ReasonOf(err) != fault.RoleOutsideProfile {
			t.Errorf("issued by a removed role: %v", err)
		}
		h.until(time.Minute, func() bool { return len(h.plain.Alive()) == 0 })
		if len(h.vault.Alive()) != 2 {
			t.Error("another role's leases ended too")
		}
		for _, l := range h.leases() {
			if (l.Role == "plain") != (l.Cause == lease.RoleRemoved) {
				t.Errorf("lease %+v", l)
			}
		}
		_, err := h.catalog.Delete(t.Context(), operator(), "roles/vault")
		want(t, err, fault.ResourceInvalid) // the profile still names it
		_, err = h.catalog.Delete(t.Context(), operator(), "roles/none")
		want(t, err, fault.NotFound)
		if _, err = h.catalog.Delete(t.Context(), operator(), "profiles/agents"); err != nil {
			t.Fatal(err)
		}
		ending, err := h.catalog.Delete(t.Context(), operator(), "roles/vault")
		if err != nil || ending != 2 {
			t.Errorf("%d leases end, %v", ending, err)
		}
		h.until(time.Minute, func() bool { return h.alive() == 0 })
		if n := len(h.recorded(audit.ResourceDeleted, "")); n != 3 {
			t.Errorf("%d records of three removals", n)
		}
	})
}

// TestRoleRemovedWhileItIsCommitted: an issue that was decided before its role was removed, and is committed while the
// removal is on its way, is not handed out.
func TestRoleRemovedWhileItIsCommitted(t *testing.T) {
	eachKind(t, kinds(), func(h *house, role string) {
		t := h.tb
		work := h.declare(role)
		decided, removed := make(chan struct{}), make(chan struct{})
		hook := func(context.Context, plugins.LeaseID) error {
			close(decided)
			<-removed
			return nil
		}
		op := plugintest.OpIssue
		if role == "vault" {
			op = plugintest.OpPrepare // before the intent, not after it
		}
		h.memoryOf(role).Before(op, hook)
		answered := make(chan error, 1)
		go func() {
			_, err := h.try(work, role)
			answered <- err
		}()
		<-decided
		h.withoutRole(role)
		close(removed)
		want(t, <-answered, fault.RoleOutsideProfile)
		h.complete(work)
		h.gone()
		if n := h.vault.Tokens(); n != 0 {
			t.Errorf("%d tokens are left", n)
		}
	})
}

// TestChangeOfUnknownOutcome: what is in force is what is stored, whichever it was.
func TestChangeOfUnknownOutcome(t *testing.T) {
	for at, stored := range map[step]bool{atCommit: false, atAnswer: true, atLog: false} {
		t.Run(string(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				h.endLoop()
				reason := fault.OutcomeUnknown
				if at == atLog {
					reason = fault.LedgerUnavailable
				}
				h.store.failNth(at, 1)
				_, err := h.catalog.Apply(t.Context(), operator(), broker.Apply{Files: files(extraRole)})
				want(t, err, reason)
				if _, ok := h.catalog.Engine().Set().Role("extra"); ok != stored {
					t.Errorf("in force %t, stored %t", ok, stored)
				}
				h.apply(extraRole)
				h.store.failNth(at, 1)
				_, err = h.catalog.Delete(t.Context(), operator(), "roles/extra")
				want(t, err, reason)
				if _, ok := h.catalog.Engine().Set().Role("extra"); ok == stored {
					t.Errorf("in force %t, removed %t", ok, stored)
				}
				h.restart()
				if _, ok := h.catalog.Engine().Set().Role("extra"); ok == stored {
					t.Errorf("in force after a restart %t, removed %t", ok, stored)
				}
			})
		})
	}
}

// TestResourcesThatNoLongerCompile: what is in force must not shrink silently.
func TestResourcesThatNoLongerCompile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		less := map[string]plugins.Backend{"memory/plain": h.plain}
		if _, err := broker.NewCatalog(t.Context(), h.ledger, terms(less)); fault.ReasonOf(err) != fault.ResourceInvalid {
			t.Errorf("compiled without a backend: %v", err)
		}
		// What decides and what delivers are of one moment: a backend that is taken from one is taken from both.
		delete(h.backends, "memory/vault")
		work := h.declare("vault")
		if _, err := h.try(work, "vault"); err != nil {
			t.Errorf("a role that is in force is not issued by: %v", err)
		}
	})
}

// TestHeldRoles: a policy may ask what an agent holds already, of this task and others.
func TestHeldRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.apply(`
apiVersion: stint.dev/v1
kind: Policy
metadata: {name: not-both}
spec:
  cedar: |
    forbid (principal, action == Stint::Action::"issue", resource == Stint::Role::"plain")
    when { context.held.contains(Stint::Role::"vault") };
`)
		first, second := h.declare("vault"), h.declare("plain")
		h.issue(second, "plain")
		h.issue(first, "vault")
		_, err := h.try(second, "plain")
		if f := wanted(t, err, fault.PolicyDenied); !strings.Contains(f.Metadata["policies"], "not-both") {
			t.Errorf("metadata %v", f.Metadata)
		}
		rec := h.recorded(audit.LeaseDenied, "")
		if len(rec) != 1 || rec[0].Task != second.ID.String() || len(rec[0].Policies) == 0 || rec[0].Owner == "" {
			t.Errorf("records %+v", rec)
		}
		h.complete(first)
		h.issue(second, "plain")
	})
}

// TestConfig: nothing is optional.
func TestConfig(t *testing.T) {
	if _, err := broker.New(t.Context(), broker.Config{Ledger: &ledger.Ledger{}}); err == nil {
		t.Error("made of nothing")
	}
}
