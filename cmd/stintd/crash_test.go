package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// crashAgents work at once while stintd is killed.
	crashAgents = 16
	// crashTimeEnv lengthens the loop: a duration such as 10m.
	crashTimeEnv = "STINT_CRASH_TIME"
	crashTime    = 30 * time.Second
	crashHorizon = "5s"
)

// tally is what agents heard: what was acknowledged counts.
type tally struct {
	mu          sync.Mutex // guards what follows
	issued      map[string]*agent.Credential
	byRole      map[string]int
	declared    int
	completed   int
	failed      map[string]int // by reason
	checkpoints []string
}

func (a *tally) note(fn func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn()
}

// fails counts an error by its reason.
func (a *tally) fails(err error) {
	name := err.Error()
	if e, ok := errors.AsType[*agent.Error](err); ok {
		name = e.ReasonName()
	}
	a.note(func() { a.failed[name]++ })
}

// work declares, issues and completes until the end. Every eighth task is left to its idle timeout.
func (a *tally) work(tb testing.TB, c *agent.Client, until time.Time) {
	tb.Helper()
	for n := 0; time.Now().Before(until); n++ {
		d := declaration(5*time.Minute, dbRole, certRole, remoteRole)
		d.IdleTimeout = 4 * time.Second
		task, err := c.Declare(tb.Context(), d)
		if err != nil {
			a.fails(err)
			<-time.After(50 * time.Millisecond) // the broker is down
			continue
		}
		a.note(func() { a.declared++ })
		for _, role := range []string{dbRole, certRole, remoteRole} {
			credential, err := task.Issue(tb.Context(), role, agent.IssueOptions{})
			if err != nil {
				a.fails(err)
				continue
			}
			a.note(func() { a.issued[credential.Lease.GetName()] = credential; a.byRole[role]++ })
		}
		wait := time.Duration(n%2) * 2 * time.Second
		if answer, err := task.Complete(tb.Context(), wait); err != nil {
			a.fails(err)
		} else if answer.GetTask().GetState() == stintv1.TaskState_TASK_STATE_CLOSED {
			a.note(func() { a.completed++ })
		}
		a.note(func() { a.checkpoints = append(a.checkpoints, c.Checkpoint()) })
	}
}

// TestKilledAgainAndAgain kills stintd every second or two while agents work, and then asks every backend: nothing that
// was issued is alive, whether its agent ever heard of it or not, and the ledger knows all of it.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	limit := crashTime
	if text := os.Getenv(crashTimeEnv); text != "" {
		var err error
		if limit, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		limit = 5 * time.Second
	}
	horizon, err := time.ParseDuration(crashHorizon)
	if err != nil {
		t.Fatal(err)
	}
	vault := servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: horizon})
	pg := servertest.StartPostgres(t)
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Database: "bbolt"})
	caData := onlyFile(t, filepath.Join(filepath.Dir(t.TempDir()), "*", "db.bbolt"))
	f := vaultFor(t, vault, pg)
	auth, _ := tokenAuth(t, f)
	s := newSite(t, "", vaultBackend(vault, auth, `max_request_duration = "`+crashHorizon+`"`)+embeddedCA+remoteCA(t, ca),
		catalog(limits{dbTTL: "{default: 30s, max: 30s}"}, dbRole, certRole, remoteRole))

	heard := &tally{issued: map[string]*agent.Credential{}, byRole: map[string]int{}, failed: map[string]int{}}
	d := s.start(t)
	clients := make([]*agent.Client, crashAgents)
	var agents sync.WaitGroup
	until := time.Now().Add(limit)
	for i := range clients {
		clients[i] = s.agent(t, "/agent/a"+string(rune('a'+i)))
		agents.Go(func() { heard.work(t, clients[i], until) })
	}
	kills := 0
	for ; time.Now().Before(until); kills++ {
		<-time.After(time.Second + rand.N(time.Second))
		d.kill(t)
		d = s.start(t)
	}
	agents.Wait()
	d.kill(t)

	began := time.Now()
	d = s.start(t)
	s.allClosed(t, s.admin(t))
	t.Logf("killed %d times; %d tasks declared, %d completed, %d credentials acknowledged %v; failures %v; every task closed %s after the last start",
		kills+1, heard.declared, heard.completed, len(heard.issued), heard.byRole, heard.failed, time.Since(began).Round(100*time.Millisecond))
	if len(heard.issued) < crashAgents || heard.completed == 0 {
		t.Fatal("too little happened for the test to mean anything")
	}

	// PostgreSQL and Vault.
	if n := users(t, pg, "v-%"); n != 0 {
		t.Errorf("PostgreSQL has %d users left", n)
	}
	if left := f.Leases(t, "database/creds/stint-orders-ro"); len(left) != 0 {
		t.Errorf("Vault has %d leases left: %v", len(left), left)
	}
	tokens := roleTokens(t, f)
	t.Logf("%d empty tokens are left, made before an intent that was never committed; they die by Vault's clock", tokens)
	eventually(t, time.Minute, func() error {
		if roleTokens(t, f) != 0 {
			return errNotYet
		}
		return nil
	})

	// The ledger.
	all := s.ledger(t)
	states, proofs := map[string]int{}, map[string]int{}
	for _, l := range all.leases {
		states[string(l.State)]++
		proofs[string(l.Proof)]++
		if !l.State.Final() {
			t.Errorf("lease %s of %s is %s", l.ID, l.Role, l.State)
		}
	}
	for name := range heard.issued {
		if _, ok := all.leases[name]; !ok {
			t.Errorf("%s was acknowledged and is not in the ledger", name)
		}
	}
	t.Logf("the ledger has %d tasks and %d leases, by state %v, by proof %v", len(all.tasks), len(all.leases), states, proofs)

	// Certificates.
	crl := s.revocations(t, "stepca/internal", "stepca/remote")
	for name, c := range heard.issued {
		if c.Certificate != nil && !crl.holds(c.Certificate.Chain[0]) {
			t.Errorf("the certificate of %s (%s) is not on the CRL", name, all.leases[name].Role)
		}
	}

	// The log.
	for i, c := range clients {
		if err := c.VerifyLog(t.Context()); err != nil {
			t.Errorf("agent %d verifies the log: %v", i, err)
		}
	}
	d.stop(t)
	s.verifyLog(t, heard.checkpoints)

	// What step-ca signed, whoever heard of it.
	list := ca.CRL(t)
	ca.Stop(t)
	onCRL := revocations{}
	for _, e := range list.RevokedCertificateEntries {
		onCRL[revoked(list.RawIssuer, e.SerialNumber)] = true
	}
	signed := certificatesIn(read(t, caData), ca.Intermediate)
	for _, cert := range signed {
		name := strings.ToUpper(hexSerial(cert))
		if _, ok := all.leases["leases/"+name]; !ok {
			t.Errorf("step-ca signed %s, which the ledger does not know", name)
		}
		if !onCRL.holds(cert) && time.Now().Before(cert.NotAfter) {
			t.Errorf("step-ca signed %s, which is neither revoked nor expired", name)
		}
	}
	for name, c := range heard.issued {
		if c.Lease.GetRole() == remoteRole && signed[revoked(ca.Intermediate.RawSubject, c.Certificate.Chain[0].SerialNumber)] == nil {
			t.Fatalf("%s is not among what was read of step-ca's database", name)
		}
	}
	t.Logf("step-ca signed %d certificates, of which %d were acknowledged; %d entries on its CRL", len(signed), heard.byRole[remoteRole], len(onCRL))
}

// verifyLog runs `stintd audit verify` with the daemon's own checkpoints and with those that agents saw.
func (s *site) verifyLog(tb testing.TB, seen []string) {
	tb.Helper()
	var lines []byte
	for _, text := range seen {
		line, err := json.Marshal(map[string]any{"checkpoint": text})
		if err != nil {
			tb.Fatal(err)
		}
		if text != "" {
			lines = append(append(lines, line...), '\n')
		}
	}
	write(tb, s.file("seen.log"), string(lines))
	for _, known := range []string{s.file("log", "checkpoints.log"), s.file("seen.log")} {
		code, out, errs := run(tb, s.dir, "audit", "verify", "--ledger", s.file("data", sqlite.File), "--pubkey", s.key, "--checkpoints", known)
		tb.Logf("audit verify: %s", strings.TrimSpace(out))
		if code != 0 {
			tb.Errorf("audit verify with %s exits with %d: %s", known, code, errs)
		}
	}
}

// certificatesIn finds every certificate that an issuer signed in the raw bytes of a database, which keeps each in one
// piece. It returns them by issuer and serial number.
func certificatesIn(raw []byte, issuer *x509.Certificate) map[string]*x509.Certificate {
	out := map[string]*x509.Certificate{}
	for i := 0; i+4 < len(raw); i++ {
		if raw[i] != 0x30 || raw[i+1] != 0x82 { // a DER SEQUENCE of 256 to 65,535 bytes
			continue
		}
		end := i + 4 + int(raw[i+2])<<8 + int(raw[i+3])
		if end > len(raw) {
			continue
		}
		cert, err := x509.ParseCertificate(raw[i:end])
		if err == nil && !cert.IsCA && cert.CheckSignatureFrom(issuer) == nil && len(cert.URIs) > 0 {
			out[revoked(cert.RawIssuer, cert.SerialNumber)] = cert
		}
	}
	return out
}

func hexSerial(c *x509.Certificate) string {
	text := c.SerialNumber.Text(16)
	return strings.Repeat("0", 32-len(text)) + text
}

func onlyFile(tb testing.TB, pattern string) string {
	tb.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		tb.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}
