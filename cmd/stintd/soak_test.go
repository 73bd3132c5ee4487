package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// soakTimeEnv lengthens the soak: a duration such as 10m. soakSeedEnv makes it repeat what another did, as far as
	// machines can.
	soakTimeEnv = "STINT_SOAK_TIME"
	soakSeedEnv = "STINT_SOAK_SEED"
	soakTime    = 45 * time.Second
	soakAgents  = 6
	// longSoak is long enough for every fault to have its turn.
	longSoak = 10 * time.Minute
	// soakTTL is for how long most credentials live: what no revocation reaches is over soon. Certificates live for longer than it
	// takes to find out that the ledger has lost one.
	soakTTL     = time.Minute
	soakCertTTL = crashTTL

	// How PostgreSQL refuses a login (SQLSTATE).
	pgerrcodeInvalidPassword      = "28P01"
	pgerrcodeInvalidAuthorization = "28000"
)

// errRefused is Consul's answer to a token that there is not.
var errRefused = errors.New("no such token")

// soak is an installation in which everything fails while agents work.
type soak struct {
	*crash

	daemon  *daemon
	server  *servertest.Vault
	front   *proxy // before Vault
	behind  *gate  // between Vault and PostgreSQL
	caFront *gate  // before step-ca
	consul  *consul
	roles   string // the resources
	fewer   string // the same without one of the roles
	faults  map[string]int
	long    bool // every fault has its turn

	identity sync.Mutex // held by a storm that changes where stintd has its identity from
	provider *provider
	steps    *steps
	ended    int // how often stintd ended by itself, since its ledger could not be opened again
	// restores counts those of the ledger; unknown is what it did not know any more, revived what a CA had lost.
	restores, unknown, revived int
	differed                   map[string]bool // what was found by a reconciliation, by its key

	turns       int       // of the clock
	clockMended time.Time // when it was last right again
}

// TestSoak lets agents issue, complete, revoke, abandon and expire, while everything that can fail does, at random. In the
// end it asks every backend for what it holds and tries every credential: nothing is alive that the ledger does not hold
// as open, nothing works that it calls revoked, and no secret is in any file. What was issued after the copy of a ledger that
// was restored is not in it: that is what an operator's reconciliation has to find and to end.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := soakSeed(t)
	t.Logf("seed %d: %s=%d repeats it", seed, soakSeedEnv, seed)
	s := newSoak(t, seed)
	defer s.explains(t)
	s.rage(t, seed, soakLength(t))

	began := time.Now()
	s.provider.calm(t)
	s.daemon.kill(t)
	s.daemon = s.start(t)
	t.Logf("faults %v; %d tasks declared, %d completed, credentials acknowledged %v; failures %v", s.faults, s.declared, s.completed, s.byRole, s.failed)
	t.Logf("new SVIDs were handed out %d times; %s", s.provider.handed, s.steps.summary())
	s.endsAll(t)
	t.Logf("all closed after %s", time.Since(began).Round(100*time.Millisecond))
	s.happened(t, seed)
	s.reconciles(t)
	all := s.checkLedger(t)
	s.checkVault(t, all)
	s.checkTokens(t, all)
	s.checkConsul(t, all)
	if left := s.vault.Leases(t, "ssh/creds/stint-otp"); len(left) != 0 {
		t.Errorf("Vault has %d leases of one-time passwords left", len(left))
	}
	s.tryAll(t, all)
	s.verifySecrets(t)
	for i, client := range s.clients {
		if err := s.verifies(t, client); err != nil {
			t.Errorf("agent %d verifies the log: %v", i, err)
		}
	}
	s.daemon.stop(t)
	s.verifyLog(t, s.checkpoints)
	s.checkStepCA(t, all)
	if !t.Failed() {
		t.Logf("after %s: 0 alive that the ledger does not account for, 0 of %d that work and should not, 0 places with one of their secrets",
			soakLength(t), len(s.issued))
	}
}

func soakLength(tb testing.TB) time.Duration {
	tb.Helper()
	text := os.Getenv(soakTimeEnv)
	if text == "" {
		return soakTime
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		tb.Fatal(err)
	}
	return length
}

func soakSeed(tb testing.TB) uint64 {
	tb.Helper()
	text := os.Getenv(soakSeedEnv)
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return seed
}

func newSoak(tb testing.TB, seed uint64) *soak {
	tb.Helper()
	c := &crash{tally: newTally(), signed: map[string]*x509.Certificate{}, clockOff: maxJump}
	s := &soak{crash: c, faults: map[string]int{}, differed: map[string]bool{}, consul: startConsul(tb), long: soakLength(tb) >= longSoak}
	s.server = servertest.StartVault(tb, servertest.VaultOptions{MaxRequestDuration: crashHorizon, OnDisk: true})
	c.pg = servertest.StartPostgres(tb)
	c.ca = servertest.StartStepCA(tb, servertest.StepCAOptions{Database: "bbolt"})
	c.caData = onlyFile(tb, filepath.Join(filepath.Dir(tb.TempDir()), "*", "db.bbolt"))
	c.useVault(tb, s.server)
	useConsul(tb, c.vault, s.consul)
	s.behind = c.gatePostgres(tb)
	s.front = newProxy(tb, s.server.Addr)
	s.caFront = startGate(tb, strings.TrimPrefix(c.ca.URL, "https://"), posts, 300*time.Millisecond)
	backends := vaultBackend(s.server, appRoleAuth(tb, c.vault), `  max_request_duration = "`+crashHorizon.String()+`"`) +
		embeddedCA + remoteCA(tb, c.ca)
	fronts := strings.NewReplacer(s.server.Addr, s.front.url, c.ca.URL, "https://"+s.caFront.Addr().String())
	most := crashLimits()
	most.ttl = fmt.Sprintf("{default: %s, max: 2m}", soakTTL)
	most.certTTL = fmt.Sprintf("{default: %s, max: %s}", soakCertTTL, soakCertTTL)
	s.roles = catalog(most, soakRoles()...)
	s.fewer = catalog(most, slices.DeleteFunc(soakRoles(), func(role string) bool { return role == otpRole })...)
	socket := filepath.Join(shortDir(tb), "api.sock")
	c.site = newSite(tb, identityBlock(socket), fronts.Replace(backends), s.roles)
	s.provider = newProvider(tb, c.site.ca, socket)
	c.env = []string{faultsEnv + "=" + c.file("fails")}
	for i := range soakAgents {
		c.clients = append(c.clients, connect(tb, agent.WithAddr(c.grpc), agent.WithSource(s.provider.agent(tb, "/agent/s"+strconv.Itoa(i))),
			agent.WithLogKey(c.key), agent.WithServerID("spiffe://"+trustDomain+stintPath)))
	}
	s.steps = newSteps(tb, seed)
	s.daemon = c.start(tb)
	return s
}

// hook returns the file in which stintd is told how the disk fails, or what the clock says.
func (s *soak) hook(what string) string { return s.file("fails." + what) }

// soakRoles are a role of every kind of backend.
func soakRoles() []string { return []string{dbRole, otpRole, consulRole, certRole, remoteRole} }

// rage lets agents work and things fail, and returns when both have ended. Every server runs then.
func (s *soak) rage(tb testing.TB, seed uint64, length time.Duration) {
	tb.Helper()
	var over atomic.Bool
	var agents sync.WaitGroup
	for i, client := range s.clients {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1))
		agents.Go(func() {
			for !over.Load() {
				s.one(tb, client, rng)
			}
		})
	}
	var storms sync.WaitGroup
	for _, w := range s.storms(seed) {
		storms.Go(func() { w.rage(tb, s, length) })
	}
	thief := &thief{soak: s, tried: map[string]bool{}, used: map[string]int{}}
	agents.Go(func() { thief.tries(tb, &over) })
	storms.Wait()
	over.Store(true)
	agents.Wait()
	thief.happened(tb)
}

// one declares a task, issues for it, and ends it in one of the ways that there are.
func (s *soak) one(tb testing.TB, c *agent.Client, rng *rand.Rand) {
	tb.Helper()
	d := declaration(crashTTL, soakRoles()...)
	d.IdleTimeout = 4 * time.Second
	end := rng.IntN(10)
	if end == 0 { // expires
		d.TTL = 15 * time.Second
	}
	task, err := c.Declare(tb.Context(), d)
	if err != nil {
		s.fails(err)
		<-time.After(50 * time.Millisecond) // the broker is down
		return
	}
	s.note(func() { s.declared++; s.checkpoints = append(s.checkpoints, c.Checkpoint()) })
	var has []*agent.Credential
	for _, role := range soakRoles() {
		if rng.IntN(4) == 0 {
			continue
		}
		credential := s.issueOne(tb, task, role)
		if credential == nil {
			continue
		}
		has = append(has, credential)
		if rng.IntN(8) == 0 {
			if _, err = c.Credentials().RevokeLease(tb.Context(), &stintv1.RevokeLeaseRequest{Name: credential.Lease.GetName()}); err != nil {
				s.fails(err)
			}
		}
	}
	if end == 0 {
		return
	}
	ctx, gone := context.WithCancel(tb.Context())
	defer gone()
	if end < 3 { // abandoned: the agent is gone, and its idle timeout ends the task
		gone()
	}
	answer, err := task.Complete(ctx, time.Duration(end%2)*2*time.Second)
	if err != nil {
		s.fails(err)
	} else if answer.GetTask().GetState() == stintv1.TaskState_TASK_STATE_CLOSED {
		s.note(func() { s.completed++ })
		s.tryNow(tb, has)
	}
}

// tryNow uses the secrets of a task that has just been called closed. A server that is down now refuses nothing.
func (s *soak) tryNow(tb testing.TB, has []*agent.Credential) {
	tb.Helper()
	for _, credential := range has {
		if credential.Certificate == nil && s.accepts(tb, credential) == nil {
			tb.Errorf("%s of %s works, and its task is closed", credential.Lease.GetName(), credential.Lease.GetRole())
		}
	}
}

// issueOne issues a credential, and returns nil where it is refused.
func (s *soak) issueOne(tb testing.TB, task *agent.Task, role string) *agent.Credential {
	tb.Helper()
	credential, err := task.Issue(tb.Context(), role, agent.IssueOptions{})
	if err != nil {
		s.fails(err)
		return nil
	}
	s.note(func() { s.issued[credential.Lease.GetName()] = credential; s.byRole[role]++ })
	return credential
}

// tryAll uses every credential that was acknowledged, and before them one of each kind of secret that must work.
func (s *soak) tryAll(t *testing.T, all records) {
	t.Helper()
	secrets := []string{dbRole, otpRole, consulRole}
	task := declare(t, s.clients[0], time.Minute, secrets...)
	for _, role := range secrets {
		if err := s.accepts(t, issue(t, task, role)); err != nil {
			t.Fatalf("what is tried with refuses what works: %v", err)
		}
	}
	if _, err := task.Complete(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	crl := s.revocations(t, "stepca/internal", "stepca/remote")
	tried := map[string]int{}
	for name, credential := range s.issued {
		role := credential.Lease.GetRole()
		works := s.works(t, credential, crl)
		tried[role]++
		if l := all.leases[name]; works {
			t.Errorf("%s of %s still works, and is %s (%s)", name, role, l.State, l.Proof)
		}
	}
	t.Logf("tried %v: none works", tried)
}

// works says whether a credential works. Every server runs: one that does not answer is a fault of the test.
func (s *soak) works(t *testing.T, credential *agent.Credential, crl revocations) bool {
	t.Helper()
	if credential.Certificate != nil {
		leaf := credential.Certificate.Chain[0]
		return time.Now().Before(leaf.NotAfter) && !crl.holds(leaf)
	}
	err := s.accepts(t, credential)
	if err != nil && !refusal(err) {
		t.Fatalf("whether %s works cannot be said: %v", credential.Lease.GetName(), err)
	}
	return err == nil
}

// accepts uses a secret where it is for.
func (s *soak) accepts(tb testing.TB, credential *agent.Credential) error {
	tb.Helper()
	if credential.Lease.GetRole() == dbRole {
		conn, err := login(tb.Context(), s.pg, credential)
		if err == nil {
			_ = conn.Close(tb.Context())
		}
		return err
	}
	if credential.Lease.GetRole() == consulRole {
		if !s.consul.works(string(credential.Fields["token"].Expose())) {
			return errRefused
		}
		return nil
	}
	otp := string(credential.Fields["key"].Expose())
	_, err := s.vault.Root.Logical().WriteWithContext(tb.Context(), "ssh/verify", map[string]any{"otp": otp})
	return err
}

// refusal says whether an error is the answer that a secret is not, or no longer, one.
func refusal(err error) bool {
	if errors.Is(err, errRefused) {
		return true
	}
	if answered, ok := errors.AsType[*vaultapi.ResponseError](err); ok {
		return answered.StatusCode == http.StatusBadRequest
	}
	answered, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (answered.Code == pgerrcodeInvalidPassword || answered.Code == pgerrcodeInvalidAuthorization)
}

// open counts the leases that are not final.
func (r records) open() int {
	n := 0
	for _, l := range r.leases {
		if !l.State.Final() {
			n++
		}
	}
	return n
}
