package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// crashAgents work at once while stintd is killed.
	crashAgents = 16
	// crashTimeEnv lengthens the loop: a duration such as 10m.
	crashTimeEnv = "STINT_CRASH_TIME"
	crashTime    = 30 * time.Second
	crashHorizon = 5 * time.Second
	// crashTTL is the longest that database users live: longer than the test, so that none ends by its own clock.
	crashTTL = 5 * time.Minute
)

// tally is what agents heard: what was acknowledged counts.
type tally struct {
	mu          sync.Mutex // guards what follows
	issued      map[string]*agent.Credential
	byRole      map[string]int
	declared    int
	completed   int
	failed      map[string]int // by reason
	errors      [][]byte       // what agents were told
	checkpoints []string
}

func newTally() *tally {
	return &tally{issued: map[string]*agent.Credential{}, byRole: map[string]int{}, failed: map[string]int{}}
}

func (a *tally) note(fn func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn()
}

// idle says that too little was done for a test to mean anything, as on a machine that is very busy.
func (a *tally) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byRole[dbRole] < crashAgents || a.byRole[certRole] < crashAgents || a.byRole[remoteRole] < crashAgents || a.completed == 0
}

// fails counts an error by its reason.
func (a *tally) fails(err error) {
	name := err.Error()
	if e, ok := errors.AsType[*agent.Error](err); ok {
		name = e.ReasonName()
	}
	a.note(func() { a.failed[name]++; a.errors = append(a.errors, []byte(err.Error())) })
}

// work declares, issues and completes until the end. A task whose completion fails is left to its idle timeout.
func (a *tally) work(tb testing.TB, c *agent.Client, over *atomic.Bool) {
	tb.Helper()
	for n := 0; !over.Load(); n++ {
		d := declaration(crashTTL, dbRole, certRole, remoteRole)
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

// crash is an installation whose daemon is killed while agents work, with every backend its own.
type crash struct {
	*site
	*tally

	vault   *vaulttest.Fixture
	pg      *servertest.Postgres
	ca      *servertest.StepCA
	caData  string // step-ca's database
	clients []*agent.Client

	signed   map[string]*x509.Certificate // by a step-ca whose database was lost
	lost     lostParts                    // of ledgers that were replaced by older copies
	clockOff time.Duration                // by how much stintd's clock was wrong at most
}

// TestKilledAgainAndAgain kills stintd every second or two while agents work, and then asks every backend: nothing that
// was issued is alive, whether its agent ever heard of it or not, and the ledger knows all of it.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	c := newCrash(t)
	kills := c.rage(t, crashLength(t))

	began := time.Now()
	d := c.start(t)
	c.allClosed(t, c.admin(t))
	t.Logf("killed %d times; %d tasks declared, %d completed, %d credentials acknowledged %v; failures %v; every task closed %s after the last start",
		kills, c.declared, c.completed, len(c.issued), c.byRole, c.failed, time.Since(began).Round(100*time.Millisecond))
	if c.idle() {
		t.Fatal("too little happened for the test to mean anything")
	}
	all := c.checkLedger(t)
	c.checkVault(t, all)
	c.checkTokens(t, all)
	crl := c.revocations(t, "stepca/internal", "stepca/remote")
	for name, credential := range c.issued {
		if credential.Certificate != nil && !crl.holds(credential.Certificate.Chain[0]) {
			t.Errorf("the certificate of %s (%s) is not on the CRL", name, all.leases[name].Role)
		}
	}
	for i, client := range c.clients {
		if err := client.VerifyLog(t.Context()); err != nil {
			t.Errorf("agent %d verifies the log: %v", i, err)
		}
	}
	d.stop(t)
	c.verifyLog(t, c.checkpoints)
	c.checkStepCA(t, all)
}

// crashLength is how long the agents work.
func crashLength(tb testing.TB) time.Duration {
	tb.Helper()
	if testing.Short() {
		return 5 * time.Second
	}
	text := os.Getenv(crashTimeEnv)
	if text == "" {
		return crashTime
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		tb.Fatal(err)
	}
	return length
}

func newCrash(tb testing.TB) *crash {
	tb.Helper()
	c := &crash{tally: newTally()}
	vault := servertest.StartVault(tb, servertest.VaultOptions{MaxRequestDuration: crashHorizon})
	c.pg = servertest.StartPostgres(tb)
	c.ca = servertest.StartStepCA(tb, servertest.StepCAOptions{Database: "bbolt"})
	c.caData = onlyFile(tb, filepath.Join(filepath.Dir(tb.TempDir()), "*", "db.bbolt"))
	auth := c.useVault(tb, vault)
	c.site = newSite(tb, "", vaultBackend(vault, auth, `  max_request_duration = "`+crashHorizon.String()+`"`)+embeddedCA+remoteCA(tb, c.ca),
		catalog(crashLimits(), dbRole, certRole, remoteRole))
	for i := range crashAgents {
		c.clients = append(c.clients, c.agent(tb, "/agent/a"+string(rune('a'+i))))
	}
	return c
}

// useVault sets a Vault up for the crash, and returns how stintd logs in to it. What the engine gives by itself is what the
// role allows at most, as `stintd check` demands: then the record of what Vault forgot is true.
func (c *crash) useVault(tb testing.TB, server *servertest.Vault) (auth string) {
	tb.Helper()
	c.vault = vaultFor(tb, server, c.pg)
	if _, err := c.vault.Root.Logical().WriteWithContext(tb.Context(), "database/roles/stint-orders-ro",
		map[string]any{"default_ttl": crashTTL.String()}); err != nil {
		tb.Fatal(err)
	}
	auth, _ = tokenAuth(tb, c.vault)
	return auth
}

func crashLimits() limits {
	return limits{dbTTL: fmt.Sprintf("{default: %s, max: %s}", crashTTL, crashTTL)}
}

// rage lets the agents work while stintd is killed and started again, and returns how often it was. In the end it is not
// running. On a machine that is very busy it takes longer, until enough was done.
func (c *crash) rage(tb testing.TB, length time.Duration) int {
	tb.Helper()
	d := c.start(tb)
	began := time.Now()
	var over atomic.Bool
	var agents sync.WaitGroup
	for _, client := range c.clients {
		agents.Go(func() { c.work(tb, client, &over) })
	}
	kills := 1
	for ; time.Since(began) < length || (c.idle() && time.Since(began) < 4*length); kills++ {
		<-time.After(time.Second + rand.N(time.Second))
		d.kill(tb)
		d = c.start(tb)
	}
	over.Store(true)
	agents.Wait()
	d.kill(tb)
	return kills
}

// checkTokens looks at the tokens of credentials that are alive: those of which a kill came between Vault's answer and the
// commit of the intent. They made nothing, the ledger does not know them, and Vault's clock ends them.
func (c *crash) checkTokens(t *testing.T, all records) {
	t.Helper()
	left := tokens(t, c.vault)
	for accessor, ttl := range left {
		for _, l := range all.leases {
			if strings.Contains(string(l.Handle), accessor) {
				t.Errorf("the token of lease %s, which is %s (%s), is alive", l.ID, l.State, l.ProofDetail)
			}
		}
		if ttl > crashTTL+crashHorizon {
			t.Errorf("token %s lives for another %s", accessor, ttl)
		}
	}
	t.Logf("%d empty tokens are left, made before an intent that was never committed; they die by Vault's clock", len(left))
}

// checkLedger sees that everything acknowledged is in the ledger, and that everything there has ended.
func (c *crash) checkLedger(t *testing.T) records {
	t.Helper()
	all := c.ledger(t)
	states, proofs := map[string]int{}, map[string]int{}
	for _, l := range all.leases {
		states[string(l.State)]++
		proofs[string(l.Proof)]++
		if !l.State.Final() {
			t.Errorf("lease %s of %s is %s", l.ID, l.Role, l.State)
		}
	}
	for name := range c.issued {
		if _, ok := all.leases[name]; !ok && !c.lost.holds(name) {
			t.Errorf("%s was acknowledged and is not in the ledger", name)
		}
	}
	t.Logf("the ledger has %d tasks and %d leases, by state %v, by proof %v", len(all.tasks), len(all.leases), states, proofs)
	return all
}

// checkStepCA stops step-ca and reads in its database what it signed, whoever heard of it.
func (c *crash) checkStepCA(t *testing.T, all records) {
	t.Helper()
	list, onCRL := c.ca.CRL(t), revocations{}
	for _, e := range list.RevokedCertificateEntries {
		onCRL[revoked(list.RawIssuer, e.SerialNumber)] = true
	}
	c.ca.Stop(t)
	signed := certificatesIn(read(t, c.caData), c.ca.Intermediate)
	maps.Copy(signed, c.signed)
	for _, cert := range signed {
		name := fmt.Sprintf("leases/%032X", cert.SerialNumber)
		if _, ok := all.leases[name]; !ok && !c.lost.holds(name) {
			t.Errorf("step-ca signed %s, which the ledger does not know", name)
		}
		if !onCRL.holds(cert) && time.Now().Before(cert.NotAfter) {
			t.Errorf("step-ca signed %s, which is neither revoked nor expired", name)
		}
	}
	for name, credential := range c.issued {
		if credential.Lease.GetRole() != remoteRole {
			continue
		}
		if leaf := credential.Certificate.Chain[0]; signed[revoked(leaf.RawIssuer, leaf.SerialNumber)] == nil {
			t.Fatalf("%s is not among what was read of step-ca's database", name)
		}
	}
	t.Logf("step-ca signed %d certificates, of which %d were acknowledged; %d entries on its CRL", len(signed), c.byRole[remoteRole], len(onCRL))
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

func onlyFile(tb testing.TB, pattern string) string {
	tb.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		tb.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}
