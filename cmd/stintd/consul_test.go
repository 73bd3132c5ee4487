package main

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// consul is as much of Consul's ACL API as Vault's consul engine uses, and fails when it is told to.
type consul struct {
	*httptest.Server

	// mu guards what follows.
	mu      sync.Mutex
	tokens  map[string]consulToken // by accessor
	broken  bool                   // deleting fails
	losing  bool                   // the answer to making a token is lost
	deletes int
}

// consulToken is a token of Consul's.
type consulToken struct {
	secret string
	about  string // its description: whom Vault made it for, and when
}

func startConsul(tb testing.TB) *consul {
	tb.Helper()
	c := &consul{tokens: map[string]consulToken{}}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/acl/token", c.create)
	mux.HandleFunc("DELETE /v1/acl/token/{accessor}", c.remove)
	c.Server = httptest.NewServer(mux)
	tb.Cleanup(c.Close)
	return c
}

func (c *consul) create(w http.ResponseWriter, r *http.Request) {
	var asked struct{ Description string }
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	accessor, secret := rand.Text(), rand.Text()
	c.tokens[accessor] = consulToken{secret, asked.Description}
	if c.losing {
		panic(http.ErrAbortHandler) // the connection is cut
	}
	_, _ = fmt.Fprintf(w, `{"AccessorID": %q, "SecretID": %q}`, accessor, secret) // Vault finds out
}

func (c *consul) remove(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deletes++
	if c.broken {
		http.Error(w, "rpc error: No cluster leader", http.StatusInternalServerError)
		return
	}
	delete(c.tokens, r.PathValue("accessor"))
	_, _ = w.Write([]byte("true"))
}

// set changes how it fails.
func (c *consul) set(broken, losing bool) { //revive:disable-line:flag-parameter // two switches
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken, c.losing = broken, losing
}

// seen returns how many tokens there are, and how many deletions were asked for.
func (c *consul) seen() (tokens, deletes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tokens), c.deletes
}

// left returns the tokens that there are.
func (c *consul) left() []consulToken {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.tokens))
}

// works reports whether Consul would accept a token.
func (c *consul) works(secret string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tokens {
		if t.secret == secret {
			return true
		}
	}
	return false
}

const consulPath = "consul/creds/stint-deploy"

// consulSite is an installation in front of a real Vault, whose consul engine has this Consul behind it.
func consulSite(t *testing.T, c *consul) (*site, *vaulttest.Fixture) {
	t.Helper()
	f := vaulttest.Setup(t, servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: 4 * time.Second}))
	useConsul(t, f, c)
	auth, _ := tokenAuth(t, f)
	s := newSite(t, "", vaultBackend(f.Server, auth, `max_request_duration = "4s"`)+"teardown { stuck_after = \"10s\" }\n", catalog(limits{}, consulRole))
	return s, f
}

// useConsul gives a Vault a consul engine with this Consul behind it, and a role of it.
func useConsul(tb testing.TB, f *vaulttest.Fixture, c *consul) {
	tb.Helper()
	for _, w := range []struct {
		path string
		body map[string]any
	}{
		{"sys/mounts/consul", map[string]any{"type": "consul"}},
		{"consul/config/access", map[string]any{"address": strings.TrimPrefix(c.URL, "http://"), "token": "management"}},
		{"consul/roles/stint-deploy", map[string]any{"consul_policies": []string{"deploy"}, "ttl": "1h"}},
	} {
		if _, err := f.Root.Logical().WriteWithContext(tb.Context(), w.path, w.body); err != nil {
			tb.Fatal(err)
		}
	}
	f.Apply(tb, vaulttest.Role(consulRole, map[string]any{"path": consulPath, "policy": "stint-deploy"}))
}

// TestDeletingFailsForHours lets Consul refuse to delete a token for longer than Vault tries: Vault gives the lease up as
// irrevocable, and Stint goes on asking. What is usable is said meanwhile. Once Consul is well, the end is proven.
func TestDeletingFailsForHours(t *testing.T) {
	t.Parallel()
	c := startConsul(t)
	s, f := consulSite(t, c)
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, consulRole)
	cred := issue(t, task, consulRole)
	token := string(cred.Fields["token"].Expose())
	if !c.works(token) {
		t.Fatal("the token does not work")
	}
	c.set(true, false)
	done, err := task.Complete(t.Context(), 2*time.Second)
	if err != nil || done.GetTask().GetState() != stintv1.TaskState_TASK_STATE_CLOSING {
		t.Fatalf("complete: %v, %v; want CLOSING", done.GetTask().GetState(), err)
	}
	givenUp(t, f)
	_, before := c.seen()
	d.says(t, `"msg":"the end of a lease is overdue"`)
	if _, after := c.seen(); after <= before {
		t.Errorf("Consul was asked %d times before Vault gave up, and %d times by now", before, after)
	}
	s.overdue(t, cred)
	if !c.works(token) {
		t.Error("the token does not work, although Consul refused to delete it")
	}

	c.set(false, false)
	s.allClosed(t, s.admin(t))
	if c.works(token) || len(f.Leases(t, consulPath)) != 0 || irrevocable(t, f) != 0 {
		t.Error("the task is closed, and its token is not gone")
	}
	if l := s.ledger(t).leases[cred.Lease.GetName()]; l.Proof != plugins.ReadBack || l.Stuck {
		t.Errorf("it ended by %s, stuck %t", l.Proof, l.Stuck)
	}
}

// givenUp makes hours of Vault's own attempts pass, which it makes each time that it is told to revoke: until it calls the
// lease irrevocable.
func givenUp(t *testing.T, f *vaulttest.Fixture) {
	t.Helper()
	lease := f.Leases(t, consulPath)[0]
	eventually(t, 30*time.Second, func() error {
		if irrevocable(t, f) > 0 {
			return nil
		}
		_, err := f.Root.Logical().WriteWithContext(t.Context(), "sys/leases/revoke", map[string]any{"lease_id": lease, "sync": false})
		return cmp.Or(err, errNotYet)
	})
}

// irrevocable counts what Vault has given up.
func irrevocable(t *testing.T, f *vaulttest.Fixture) int {
	t.Helper()
	answer, err := f.Root.Logical().ReadWithDataWithContext(t.Context(), "sys/leases/count", map[string][]string{"type": {"irrevocable"}})
	if err != nil {
		t.Fatal(err)
	}
	count, _ := answer.Data["lease_count"].(json.Number)
	n, err := count.Int64()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// overdue expects a lease to be flagged, and to say what is usable, until when, and what is waited for.
func (s *site) overdue(t *testing.T, cred *agent.Credential) {
	t.Helper()
	admin := s.admin(t).Admin()
	res, err := admin.ListAllLeases(t.Context(), &stintv1.ListAllLeasesRequest{Stuck: true})
	if err != nil || len(res.GetLeases()) != 1 {
		t.Fatalf("stuck are %v, %v", res.GetLeases(), err)
	}
	l := res.GetLeases()[0]
	if l.GetName() != cred.Lease.GetName() || l.GetState() != stintv1.LeaseState_LEASE_STATE_REVOKING || l.GetLastError() == "" || l.GetNextAttempt() == nil {
		t.Errorf("stuck is %v", l)
	}
	got, err := s.agent(t, agentPath).Tasks().GetTask(t.Context(), &stintv1.GetTaskRequest{Name: cred.Lease.GetTask()})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetState() != stintv1.TaskState_TASK_STATE_CLOSING || !got.GetTeardown().GetUsableUntil().AsTime().Equal(plugins.NoEnd()) {
		t.Errorf("the task is %v, usable until %v; Consul ends no token by itself", got.GetState(), got.GetTeardown().GetUsableUntil().AsTime())
	}
	s.record(t, `"event":"lease.stuck"`)
	if !strings.Contains(string(s.get(t, "/metrics")), "stint_leases_stuck 1\n") {
		t.Error("the metric does not count it")
	}
}

// TestAnswerLostBehindVault loses Consul's answer after it made a token. Vault has no lease for it; nobody was told its secret.
// The agent hears that it is not known whether there is one, the intent is swept, and the record counts it as usable.
func TestAnswerLostBehindVault(t *testing.T) {
	t.Parallel()
	c := startConsul(t)
	s, f := consulSite(t, c)
	s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, consulRole)
	c.set(false, true)
	if _, err := task.Issue(t.Context(), consulRole, agent.IssueOptions{}); agent.ReasonOf(err) != stintv1.Reason_REASON_BACKEND_UNAVAILABLE {
		t.Errorf("issue whose answer was lost: %v", err)
	}
	c.set(false, false)
	if _, err := task.Complete(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.allClosed(t, s.admin(t))
	n := 0
	for _, l := range s.ledger(t).leases {
		n++
		if l.Proof != plugins.Swept || !l.UsableUntil.Equal(plugins.NoEnd()) {
			t.Errorf("it ended by %s, usable until %s", l.Proof, l.UsableUntil)
		}
	}
	if n != 1 || len(f.Leases(t, consulPath)) != 0 || len(tokens(t, f)) != 0 {
		t.Errorf("%d leases in the ledger, Vault has %d and %d tokens", n, len(f.Leases(t, consulPath)), len(tokens(t, f)))
	}
	// What docs/faults.md says of engines whose credentials have no end of their own.
	if left, deletes := c.seen(); left != 1 || deletes != 0 {
		t.Errorf("Consul has %d tokens after %d deletions; Vault forgot one", left, deletes)
	}
}
