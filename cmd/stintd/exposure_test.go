package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// shortCRL is how long CRLs of the CAs are valid here: who keeps one is waited for.
	shortCRL = 5 * time.Second
	// pause is what lies between two uses at least, so that using does not slow down what is measured.
	pause = 10 * time.Millisecond
)

// exposed is an installation with every kind of backend.
type exposed struct {
	*site

	d     *daemon
	vault *vaulttest.Fixture
	pg    *servertest.Postgres
	ca    *servertest.StepCA
}

// everyRole are the roles of an exposed site: one for each engine of Vault, one for each kind of CA.
func everyRole() []string { return []string{dbRole, otpRole, pkiRole, kvRole, certRole, remoteRole} }

// newExposed makes servers of its own but for PostgreSQL.
func newExposed(t *testing.T, l limits) exposed {
	t.Helper()
	x := exposed{
		vault: vaulttest.Setup(t, servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: exposedHorizon})),
		ca:    servertest.StartStepCA(t, servertest.StepCAOptions{CRLValidity: shortCRL}), pg: servers.Postgres(t),
	}
	x.vault.SSH(t)
	x.vault.Database(t, x.pg)
	x.vault.PKI(t)
	x.vault.KV(t, "a-partners-key")
	auth, _ := tokenAuth(t, x.vault)
	validity := fmt.Sprintf("crl_validity = %q", shortCRL)
	backends := vaultBackend(x.vault.Server, auth, fmt.Sprintf("max_request_duration = %q", exposedHorizon)) + remoteCA(t, x.ca, validity) +
		strings.NewReplacer("{ ", "{\n", " }", "\n"+validity+"\n}").Replace(embeddedCA)
	x.site = newSite(t, "", backends, catalog(l, everyRole()...))
	x.d = x.start(t)
	return x
}

// exposedHorizon is max_request_duration of the Vault of an exposed site: short, so that tokens die soon, but longer than the
// slack of a lease, so that a token which takes its lease along does not stand in for the lease's own end.
const exposedHorizon = vaulttest.LeaseSlack + 3*time.Second

// TestExposure measures, for each kind of backend, for how long after CompleteTask was called a credential works, and holds
// that against the exposure that was stated for it.
func TestExposure(t *testing.T) {
	t.Parallel()
	x := newExposed(t, limits{ttl: "{max: 1m}"})
	x.bound(t)
	for name, measure := range map[string]func(*testing.T){
		"database": x.database, "one-time password": x.password, "pki": x.pki, "stored value": x.value,
		"embedded CA": x.embedded, "step-ca": x.remote,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			measure(t)
		})
	}
}

// stated returns the exposure of a credential, which must be the same wherever it is shown.
func (x exposed) stated(t *testing.T, cred *agent.Credential) *stintv1.Exposure {
	t.Helper()
	e := cred.Lease.GetExposure()
	kept := x.ledger(t).leases[cred.Lease.GetName()].Exposure
	if kept.Reason != e.GetReason() || kept.Bounded != (e.GetMax() != nil) || kept.Bounded && kept.Max != e.GetMax().AsDuration() {
		t.Errorf("the ledger says %+v, the lease %v", kept, e)
	}
	role := cred.Lease.GetRole()
	who, err := x.agent(t, agentPath).Tasks().WhoAmI(t.Context(), &stintv1.WhoAmIRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(who.GetRoles(), func(r *stintv1.AvailableRole) bool { return r.GetName() == role })
	if i < 0 || !proto.Equal(who.GetRoles()[i].GetExposure(), e) {
		t.Errorf("whoami says %v, the lease %v", who.GetRoles(), e)
	}
	res, err := x.admin(t).Admin().ListResources(t.Context(), &stintv1.ListResourcesRequest{Kind: stintv1.ResourceKind_RESOURCE_KIND_ROLE})
	if err != nil {
		t.Fatal(err)
	}
	i = slices.IndexFunc(res.GetResources(), func(r *stintv1.Resource) bool { return strings.HasSuffix(r.GetName(), "/"+role) })
	if i < 0 || !proto.Equal(res.GetResources()[i].GetExposure(), e) {
		t.Errorf("get roles says %v, the lease %v", res.GetResources(), e)
	}
	return e
}

// ending completes a task and goes on to use what it was given until that is refused for good.
type ending struct {
	what   string
	task   *agent.Task
	stated *durationpb.Duration
	works  func() bool
}

// measure takes the time from the call of CompleteTask to the end of the last use that was let through, and returns what a busy
// machine may add to that.
func (e ending) measure(t *testing.T) (busy time.Duration) {
	t.Helper()
	if !e.works() {
		t.Errorf("%s does not work before its end", e.what)
	}
	asked := time.Now()
	answer := make(chan error, 1)
	go func() {
		_, err := e.task.Complete(t.Context(), 30*time.Second)
		answer <- err
	}()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	last, uses, using := asked, 0, time.Duration(0)
	for refused := 0; refused < 20 || len(answer) == 0; refused++ {
		begun := time.Now()
		if e.works() {
			last, refused = time.Now(), 0
		}
		uses, using = uses+1, using+time.Since(begun)
		if late := time.Since(asked); late > 2*time.Minute {
			t.Fatalf("%s works %s after its end was asked for", e.what, late)
		}
		<-tick.C
	}
	if err := <-answer; err != nil {
		t.Errorf("complete: %v", err)
	}
	took, use := last.Sub(asked), using/time.Duration(uses)
	t.Logf("%s worked for %s after CompleteTask was called; stated %s; used %d times, each taking %s", e.what, took.Round(time.Millisecond),
		e.stated.AsDuration(), uses, use.Round(time.Millisecond))
	busy = callsToEnd * use
	if took > atMost(e.stated.AsDuration())+busy {
		t.Errorf("%s worked for longer than was stated", e.what)
	}
	return busy
}

// callsToEnd is how many calls follow one another until a credential has ended, here and at backends. What makes a use slow makes
// them slow: a few milliseconds each, or a quarter of a second on a machine with twenty times as much to do as it can.
const callsToEnd = 20

// atMost is what was stated; with the race detector, which makes all that is measured many times slower, ten times that.
func atMost(stated time.Duration) time.Duration {
	if instrumented {
		return 10 * stated
	}
	return stated
}

// database logs in as an issued user, and uses a session of it.
func (x exposed) database(t *testing.T) {
	t.Helper()
	task := declare(t, x.agent(t, agentPath), 5*time.Minute, dbRole)
	for range 5 { // what else has to end at that moment
		issue(t, task, dbRole)
	}
	cred := issue(t, task, dbRole)
	stated := x.stated(t, cred).GetMax()
	session, err := login(t.Context(), x.pg, cred)
	if err != nil {
		t.Fatal(err)
	}
	cut := make(chan time.Time, 1)
	go func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for session.QueryRow(t.Context(), "SELECT 1").Scan(new(int)) == nil {
			<-tick.C
		}
		cut <- time.Now()
	}()
	asked := time.Now()
	busy := ending{what: "the login", task: task, stated: stated, works: func() bool {
		conn, err := login(t.Context(), x.pg, cred)
		return err == nil && conn.Close(t.Context()) == nil
	}}.measure(t)
	took := (<-cut).Sub(asked)
	t.Logf("the open session was cut after %s", took.Round(time.Millisecond))
	if took > atMost(stated.AsDuration())+busy {
		t.Error("the open session went on for longer than was stated")
	}
}

// password verifies one-time passwords as a host does. Each is used up by that, so there are many.
func (x exposed) password(t *testing.T) {
	t.Helper()
	task := declare(t, x.agent(t, agentPath), 5*time.Minute, otpRole)
	var unused []*agent.Credential
	for range 45 {
		unused = append(unused, issue(t, task, otpRole))
	}
	verify := func() bool {
		last := len(unused) - 1 // teardown begins with the oldest
		cred := unused[last]
		unused = append([]*agent.Credential{cred}, unused[:last]...) // to be asked again when all were
		return x.verifies(t, cred)
	}
	ending{what: "a one-time password", task: task, stated: x.stated(t, unused[0]).GetMax(), works: verify}.measure(t)
	for range unused {
		if verify() {
			t.Error("a one-time password works after its task was closed")
		}
	}
}

// verifies asks Vault about a one-time password, as a host does.
func (x exposed) verifies(t *testing.T, cred *agent.Credential) bool {
	t.Helper()
	_, err := x.vault.Root.Logical().WriteWithContext(t.Context(), "ssh/verify", map[string]any{"otp": string(cred.Fields["key"].Expose())})
	return err == nil
}

// value reads a stored value after its task: nothing can end it, and nothing was promised.
func (x exposed) value(t *testing.T) {
	t.Helper()
	task := declare(t, x.agent(t, agentPath), 5*time.Minute, kvRole)
	cred := issue(t, task, kvRole)
	if e := x.stated(t, cred); e.GetMax() != nil {
		t.Errorf("the exposure of a stored value is %v", e)
	}
	done, err := task.Complete(t.Context(), 30*time.Second)
	if err != nil || done.GetTask().GetTeardown().GetByProof()[string(plugins.Disclosed)] != 1 {
		t.Errorf("complete: %v, %v", done, err)
	}
	kept, err := x.vault.Root.Logical().ReadWithContext(t.Context(), "kv/data/partner")
	if err != nil || kept == nil || !strings.Contains(fmt.Sprint(kept.Data), string(cred.Fields["api_key"].Expose())) {
		t.Errorf("the value is not what it was: %v", err)
	}
}

// bound puts bounds on the roles: a second below what is stated they are refused, with the number, and at it they are not.
func (x exposed) bound(t *testing.T) {
	t.Helper()
	stated := map[string]time.Duration{
		dbRole: plugins.EndingTime, otpRole: plugins.EndingTime, pkiRole: time.Minute, certRole: shortCRL + plugins.EndingTime,
		remoteRole: shortCRL + plugins.EndingTime,
	}
	below := maps.Clone(stated)
	for role := range below {
		below[role] -= time.Second
	}
	below[kvRole] = 24 * time.Hour // there is none
	x.resources(t, catalog(limits{exposure: below, ttl: "{max: 1m}"}, everyRole()...))
	x.d.signal(t, syscall.SIGHUP)
	for role := range below {
		x.d.says(t, "exposure of role "+role+" ")
	}
	x.resources(t, catalog(limits{exposure: stated, ttl: "{max: 1m}"}, everyRole()...))
	x.d.signal(t, syscall.SIGHUP)
	x.d.says(t, `"msg":"reloaded"`)
}
