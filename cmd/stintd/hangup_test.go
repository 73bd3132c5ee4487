package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// otherCA is a second embedded CA, and otherRole a role of it with short certificates, which outlive the last call to it.
const (
	otherCA   = "backend \"stepca\" \"other\" {}\n"
	otherRole = "partner-cert"
)

// withOther is a catalog with otherRole.
func withOther(roles ...string) string {
	role := "apiVersion: stint.dev/v1\nkind: Role\nmetadata: {name: " + otherRole + "}\nspec:\n  backend: stepca/other\n" +
		"  certificate: {usages: [client_auth]}\n  ttl: {default: 55s, max: 5m}\n---\n"
	return role + strings.Replace(catalog(limits{}, roles...), "  task: {", "    - {name: "+otherRole+"}\n  task: {", 1)
}

// edit changes the configuration.
func (s *site) edit(tb testing.TB, change ...string) {
	tb.Helper()
	text := string(read(tb, s.file("stint.hcl")))
	if fresh := strings.NewReplacer(change...).Replace(text); fresh != text {
		text = fresh
	} else {
		tb.Fatalf("the configuration has nothing of %q", change)
	}
	write(tb, s.file("stint.hcl"), text)
}

const (
	tookIt  = `"msg":"reloaded"`
	refused = `"msg":"reload refused`
)

// reload sends SIGHUP and waits for one more line of this kind.
func (d *daemon) reload(tb testing.TB, line string) {
	tb.Helper()
	before := strings.Count(d.log(tb), line)
	d.signal(tb, syscall.SIGHUP)
	eventually(tb, 30*time.Second, func() error {
		if strings.Count(d.log(tb), line) == before {
			return fmt.Errorf("no new %s in:\n%s", line, tail(d.log(tb)))
		}
		return nil
	})
}

// listing returns the reason for which a client may not list tasks, or none.
func listing(tb testing.TB, c *agent.Client) stintv1.Reason {
	tb.Helper()
	_, err := c.Admin().ListAllTasks(tb.Context(), &stintv1.ListAllTasksRequest{})
	return agent.ReasonOf(err)
}

// TestHangupAdministrators: who becomes an administrator by SIGHUP may do the next call of a connection that was open, and
// who no longer is one may not; a stream of theirs ends.
func TestHangupAdministrators(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	s.edit(t, "ops/*", "ops/alice")
	d := s.start(t)
	alice, bob := s.agent(t, "/ops/alice"), s.agent(t, "/ops/bob")
	if a, b := listing(t, alice), listing(t, bob); a != 0 || b == 0 {
		t.Fatalf("before: alice %v, bob %v", a, b)
	}
	stream, err := alice.Audit().StreamRecords(t.Context(), &stintv1.StreamRecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s.edit(t, "ops/alice", "ops/bob")
	d.reload(t, tookIt)
	if a, b := listing(t, alice), listing(t, bob); a == 0 || b != 0 {
		t.Errorf("after: alice %v, bob %v", a, b)
	}
	for err == nil { // what was sent before, and then its end
		_, err = stream.Recv()
	}
	if agent.ReasonOf(err) == 0 {
		t.Errorf("the stream of who is no longer an administrator ended with %v", err)
	}

	s.edit(t, "ops/bob", "agent/*")
	d.reload(t, refused)
	d.says(t, "an ID cannot be both")
	if b := listing(t, bob); b != 0 {
		t.Errorf("bob after a reload that was refused: %v", b)
	}
	s.record(t, `"event":"config.reloaded"`)
}

// TestHangupAllOrNothing: a reload whose second half is wrong changes nothing: neither administrators nor backends nor
// resources, nor where the log goes.
func TestHangupAllOrNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	ops, client := s.agent(t, "/ops/alice"), s.agent(t, agentPath)
	task := declare(t, client, 5*time.Minute, certRole)
	text := string(read(t, s.file("stint.hcl")))
	for name, change := range map[string][2]string{
		"a role of a backend that is gone": {"stepca/internal", "stepca/gone"},
		"no YAML":                          {"kind: Profile", "kind: [Profile"},
	} {
		s.resources(t, strings.Replace(withOther(certRole), change[0], change[1], 1))
		write(t, s.file("stint.hcl"), strings.NewReplacer("ops/*", "ops/bob", "audit.jsonl", "moved.jsonl").Replace(text)+otherCA)
		d.reload(t, refused)
		if reason := listing(t, ops); reason != 0 {
			t.Errorf("%s: an administrator is refused: %v", name, reason)
		}
		if ready := string(s.get(t, "/readyz")); strings.Contains(ready, "stepca/other") {
			t.Errorf("%s: a backend is in force:\n%s", name, ready)
		}
		if _, err := client.Role(t.Context(), otherRole); err == nil {
			t.Errorf("%s: a role is in force", name)
		}
		if log := d.log(t); strings.Count(log, refused) == 0 || !strings.Contains(log, "all.yaml:") {
			t.Errorf("%s: the log does not say where:\n%s", name, tail(log))
		}
		issue(t, task, certRole)
	}
	// A backend of the second half that cannot be made.
	s.resources(t, withOther(certRole))
	write(t, s.file("stint.hcl"), strings.Replace(text, "ops/*", "ops/bob", 1)+otherCA+"backend \"vault\" \"bad\" {\n  address = \"http://vault.example.org\"\n  auth \"token\" { file = \"/none\" }\n}\n")
	d.reload(t, refused)
	d.says(t, "vault/bad")
	if reason := listing(t, ops); reason != 0 {
		t.Errorf("an administrator is refused: %v", reason)
	}
	if moved := read(t, s.file("log", "audit.jsonl")); bytes.Contains(moved, []byte("config.reloaded")) {
		t.Error("a reload that was refused is recorded as one")
	}
	write(t, s.file("stint.hcl"), text+otherCA)
	d.reload(t, tookIt)
	issue(t, declare(t, client, 5*time.Minute, otherRole), otherRole)
}

// crlNumber returns the number of the CRL that is served for a backend; nil where none is.
func (s *site) crlNumber(tb testing.TB, backend string) *big.Int {
	tb.Helper()
	block, _ := pem.Decode(s.get(tb, "/crl.pem?backend="+backend))
	if block == nil {
		return nil
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return list.Number
}

// TestHangupCA: an embedded CA that is added issues at once. Removed with its roles, what it issued is on its CRL, which is
// served until all of that has expired; then it is let go of. When it comes back, the CRL goes on with a higher number.
func TestHangupCA(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	s.edit(t, embeddedCA, embeddedCA+otherCA)
	s.resources(t, withOther(certRole))
	d.reload(t, tookIt)
	task := declare(t, client, 5*time.Minute, otherRole, certRole)
	cert := issue(t, task, otherRole)
	issue(t, task, certRole)

	s.edit(t, otherCA, "") // its role still names it
	d.reload(t, refused)
	d.says(t, `all.yaml:5: backend \"stepca/other\" is not configured`)
	issue(t, task, otherRole)

	s.resources(t, catalog(limits{}, certRole))
	d.reload(t, tookIt)
	d.says(t, "a backend is not configured any more")
	removed := time.Now()
	eventually(t, 20*time.Second, func() error {
		if l := s.ledger(t).leases[cert.Lease.GetName()]; l.Proof != plugins.OnCRL {
			return fmt.Errorf("%w: the lease of a removed backend is %s", errNotYet, l.State)
		}
		return nil
	})
	if !s.revocations(t, "stepca/other").holds(cert.Certificate.Chain[0]) {
		t.Error("the certificate is not on the CRL of the removed CA")
	}
	if _, err := task.Issue(t.Context(), otherRole, agent.IssueOptions{}); err == nil {
		t.Error("issued by a role that is gone")
	}
	last := s.crlNumber(t, "stepca/other")
	eventually(t, 2*time.Minute, func() error {
		number := s.crlNumber(t, "stepca/other")
		if number == nil {
			return nil
		}
		if last = number; strings.Contains(d.log(t), "let go of a removed backend") {
			return errNotYet
		}
		return fmt.Errorf("%w: the CRL of a removed CA is still served after %s", errNotYet, time.Since(removed))
	})
	d.says(t, "let go of a removed backend")
	if end := cert.Lease.GetNotAfter().AsTime(); time.Now().Before(end) {
		t.Errorf("the CRL is gone %s before the certificate has expired", time.Until(end))
	}
	s.edit(t, embeddedCA, embeddedCA+otherCA)
	s.resources(t, withOther(certRole))
	d.reload(t, tookIt)
	if again := s.crlNumber(t, "stepca/other"); again == nil || again.Cmp(last) <= 0 {
		t.Errorf("the CRL number is %s after %s", again, last)
	}
	issue(t, declare(t, client, 5*time.Minute, otherRole), otherRole)

	// A change of an embedded CA takes a restart: two instances would write one CRL.
	s.edit(t, `"other" {}`, `"other" { crl_validity = "2m" }`)
	d.reload(t, tookIt)
	d.says(t, `"key":"backend stepca/other"`)
	issue(t, declare(t, client, 5*time.Minute, otherRole), otherRole)
	s.record(t, `"event":"config.reloaded"`, "backends added: stepca/other")
	s.record(t, `"event":"config.reloaded"`, "backends removed: stepca/other")
}

// TestStartWithoutABackend: a start whose configuration lacks a backend of which leases are open goes on with everything
// else and says what is missing; the block comes back with SIGHUP, and they end.
func TestStartWithoutABackend(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA+otherCA, withOther(certRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, otherRole, certRole)
	cert, kept := issue(t, task, otherRole), issue(t, task, certRole)
	d.kill(t)
	s.edit(t, otherCA, "")
	s.resources(t, catalog(limits{}, certRole))
	d = s.start(t)
	d.says(t, `"level":"error"`)
	d.says(t, `"backend":"stepca/other","leases":1`)
	if ready := string(s.get(t, "/readyz")); !strings.HasPrefix(ready, "degraded") || !strings.Contains(ready, "backend stepca/other: not in the configuration") {
		t.Errorf("/readyz says:\n%s", ready)
	}
	ops := s.admin(t)
	eventually(t, 20*time.Second, func() error {
		l, err := ops.Credentials().GetLease(t.Context(), &stintv1.GetLeaseRequest{Name: cert.Lease.GetName()})
		if err != nil || l.GetLastError() != "its backend is not in the configuration" {
			return fmt.Errorf("%w: lease %v, %w", errNotYet, l, err)
		}
		return nil
	})
	if l := s.ledger(t).leases[kept.Lease.GetName()]; l.State != "ACTIVE" {
		t.Errorf("a lease of another backend is %s", l.State)
	}
	s.edit(t, embeddedCA, embeddedCA+otherCA)
	d.reload(t, tookIt)
	eventually(t, 30*time.Second, func() error {
		if l := s.ledger(t).leases[cert.Lease.GetName()]; l.Proof != plugins.OnCRL {
			return fmt.Errorf("%w: %s, %s", errNotYet, l.State, l.LastError)
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		if ready := string(s.get(t, "/readyz")); !strings.HasPrefix(ready, "ready") {
			return fmt.Errorf("/readyz says:\n%s", ready)
		}
		return nil
	})
}

// TestHangupTakesTheRest: the level of the log and the paths of the copies change without a restart; a copy goes on at its
// new path where it was.
func TestHangupTakesTheRest(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	s.edit(t, "audit.jsonl", "moved.jsonl", embeddedCA, embeddedCA+"log { level = \"warn\" }\n")
	d.signal(t, syscall.SIGHUP)
	eventually(t, 20*time.Second, func() error {
		moved, err := os.ReadFile(s.file("log", "moved.jsonl"))
		if err != nil || !bytes.Contains(moved, []byte("config.reloaded")) {
			return errNotYet
		}
		before := read(t, s.file("log", "audit.jsonl"))
		if first := fmt.Sprintf(`{"index":%d,`, bytes.Count(before, []byte("\n"))); !bytes.HasPrefix(moved, []byte(first)) {
			t.Fatalf("the copy does not go on with %s:\n%.100s", first, moved)
		}
		return nil
	})
	if strings.Contains(d.log(t), tookIt) {
		t.Error("the level of the log did not change")
	}
	s.edit(t, `level = "warn"`, `level = "info"`)
	d.reload(t, tookIt)
}
