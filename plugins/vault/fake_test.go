package vault_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

const (
	credsPath = "database/creds/stint-x"
	leaseID   = credsPath + "/8fQ2"
)

// answers is one answer of a fake Vault: a status and a body.
type answers struct {
	status int
	body   any
}

func says(status int, message string) answers {
	return answers{status, map[string]any{"errors": []string{message}}}
}

// fakeVault behaves like Vault with one database role, except where a test says otherwise. It is for answers that a real
// Vault gives only when something is broken.
type fakeVault struct {
	url string

	// mu guards what follows.
	mu     sync.Mutex
	faults map[string]answers
	lease  bool // the lease is alive
	token  bool // the credential's token is alive
	refuse bool // the engine ends nothing
	queued int  // how often a revoke was queued
	calls  []string
}

func newFakeVault(t *testing.T) (*fakeVault, *vault.Backend) {
	t.Helper()
	f := &fakeVault{faults: map[string]answers{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.url = s.URL
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("hvs.own"), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, backend(t, vault.Config{
		Instance: "vault/fake", Address: f.url, RequestTimeout: 2 * time.Second, Auth: vault.Auth{Token: &vault.TokenAuth{File: path}},
	})
}

func (f *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	f.calls = append(f.calls, path)
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body) // a read has none
	a := f.answer(path, body)
	if fault, ok := f.faults[path]; ok {
		a = fault
	}
	w.WriteHeader(a.status)
	if a.body == nil {
		return
	}
	if text, err := json.Marshal(a.body); err == nil {
		_, _ = w.Write(text)
	}
}

func (f *fakeVault) answer(path string, body map[string]any) answers {
	switch path {
	case "sys/health":
		return answers{200, map[string]any{"initialized": true, "cluster_id": "c1"}}
	case "auth/token/create/stint":
		f.token = true
		return answers{200, map[string]any{"auth": f.auth(body)}}
	case credsPath:
		f.lease = true
		return answers{200, lease(leaseID, 3600)}
	case "sys/leases/renew":
		return answers{200, map[string]any{"lease_id": leaseID, "lease_duration": body["increment"], "renewable": true}}
	case "sys/leases/revoke":
		switch {
		case body["sync"] != true:
			f.queued++
		case f.refuse:
			return says(400, "failed to revoke entry: hunter2")
		default:
			f.lease = false
		}
		return answers{204, nil}
	case "sys/leases/lookup":
		if !f.lease {
			return says(400, "invalid lease")
		}
	case "auth/token/revoke-accessor":
		f.token = false
		return answers{204, nil}
	case "auth/token/lookup-accessor":
		if !f.token {
			return says(400, "1 error occurred:\n\t* invalid accessor\n\n")
		}
	}
	return answers{200, map[string]any{"data": map[string]any{}}}
}

func (f *fakeVault) auth(body map[string]any) map[string]any {
	var ttl int64
	text, _ := body["ttl"].(string)
	_, _ = fmt.Sscanf(text, "%ds", &ttl)
	return map[string]any{
		"client_token": "hvs.cred", "accessor": "acc", "policies": body["policies"], "lease_duration": ttl,
		"orphan": true, "token_type": "service",
	}
}

func lease(id string, seconds int) map[string]any {
	return map[string]any{
		"lease_id": id, "lease_duration": seconds, "renewable": true,
		"data": map[string]any{"username": "v-task", "password": "hunter2"},
	}
}

// set makes a path answer otherwise; without an answer, as it should.
func (f *fakeVault) set(path string, a ...answers) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.faults, path)
	if len(a) > 0 {
		f.faults[path] = a[0]
	}
}

func (f *fakeVault) tokenAlive() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.token
}

func (f *fakeVault) called(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.calls, path)
}

func fakeRole() plugins.Role {
	return vaulttest.Role("orders", map[string]any{"path": credsPath, "policy": "stint-orders"})
}

func TestTokenIsNotWhatWasAsked(t *testing.T) {
	good := func(change func(auth map[string]any)) answers {
		auth := map[string]any{
			"client_token": "hvs.cred", "accessor": "acc", "policies": []string{"stint-orders"}, "lease_duration": 150,
			"orphan": true, "token_type": "service",
		}
		change(auth)
		return answers{200, map[string]any{"auth": auth}}
	}
	for name, answer := range map[string]answers{
		"no orphan":    good(func(a map[string]any) { a["orphan"] = false }),
		"batch":        good(func(a map[string]any) { a["token_type"] = "batch" }),
		"more rights":  good(func(a map[string]any) { a["policies"] = []string{"default", "stint-orders"} }),
		"other rights": good(func(a map[string]any) { a["policies"] = []string{"stint-other"} }),
		"short life":   good(func(a map[string]any) { a["lease_duration"] = 100 }),
		"long life":    good(func(a map[string]any) { a["lease_duration"] = 2764800 }),
		"no accessor":  good(func(a map[string]any) { a["accessor"] = "" }),
		"no token":     {200, map[string]any{}},
		"refused":      says(400, "token policies must be subset"),
	} {
		t.Run(name, func(t *testing.T) {
			f, b := newFakeVault(t)
			f.set("auth/token/create/stint", answer)
			_, err := b.Prepare(t.Context(), request(fakeRole(), time.Minute, nil))
			if !errors.Is(err, plugins.ErrMisconfigured) {
				t.Errorf("got %v", err)
			}
			if f.tokenAlive() && name != "no token" && name != "refused" && name != "no accessor" {
				t.Error("the token was not ended")
			}
			if f.called(credsPath) {
				t.Error("something was issued")
			}
		})
	}
}

// TestWhatAFailedIssueSays lets the issue call fail in each way.
func TestWhatAFailedIssueSays(t *testing.T) {
	for name, tt := range map[string]struct {
		answer    answers
		notIssued bool
		kind      error
	}{
		"403":        {says(403, "permission denied"), true, plugins.ErrMisconfigured},
		"404":        {says(404, "no handler for route"), true, plugins.ErrMisconfigured},
		"429":        {says(429, "quota"), true, plugins.ErrUnavailable},
		"sealed":     {says(503, "Vault is sealed"), true, plugins.ErrUnavailable},
		"overloaded": {says(503, "overloaded"), false, plugins.ErrUnavailable},
		"400":        {says(400, "the database says hunter2"), false, plugins.ErrUnavailable},
		"412":        {says(412, "not replicated"), false, plugins.ErrUnavailable},
		"500":        {says(500, "hunter2"), false, plugins.ErrUnavailable},
		"not JSON":   {answers{200, "hunter2"}, false, plugins.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := newFakeVault(t)
			req := request(fakeRole(), time.Minute, nil)
			var err error
			if req.Prepared, err = b.Prepare(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			f.set(credsPath, tt.answer)
			_, err = b.Issue(t.Context(), req)
			if errors.Is(err, plugins.ErrNotIssued) != tt.notIssued || !errors.Is(err, tt.kind) {
				t.Errorf("got %v", err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v holds what vault said", err)
			}
			if errors.Is(err, plugins.ErrMisconfigured) && errors.Is(err, plugins.ErrUnavailable) {
				t.Errorf("%v is of two kinds", err)
			}
			if token := f.tokenAlive(); token == tt.notIssued {
				t.Errorf("token alive: %t; it is ended exactly when nothing was issued", token)
			}
			if string(req.Prepared.State.Expose()) == "hvs.cred" {
				t.Error("the token was not wiped")
			}
		})
	}
}

// TestUnwantedAnswersAreEnded lets the issue call succeed with what the role did not say.
func TestUnwantedAnswersAreEnded(t *testing.T) {
	type faults map[string]answers
	for name, tt := range map[string]faults{
		"no lease":                 {credsPath: {200, lease("", 0)}},
		"a lease of elsewhere":     {credsPath: {200, lease("kv/x/1", 30)}},
		"no data":                  {credsPath: {200, map[string]any{"lease_id": leaseID, "lease_duration": 30}}},
		"cannot be cut":            {credsPath: {200, map[string]any{"lease_id": leaseID, "lease_duration": 3600}}},
		"no end":                   {credsPath: {200, map[string]any{"lease_id": leaseID, "lease_duration": 0}}},
		"cutting is refused":       {"sys/leases/renew": says(403, "permission denied")},
		"cut to less than nothing": {"sys/leases/renew": {200, map[string]any{"lease_duration": 0}}},
		"not cut at all":           {"sys/leases/renew": {200, map[string]any{"lease_duration": 3600}}},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := newFakeVault(t)
			req := request(fakeRole(), time.Minute, nil)
			var err error
			if req.Prepared, err = b.Prepare(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			for path, a := range tt {
				f.set(path, a)
			}
			_, err = b.Issue(t.Context(), req)
			if !errors.Is(err, plugins.ErrMisconfigured) || errors.Is(err, plugins.ErrNotIssued) {
				t.Errorf("got %v", err)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "could not be ended") {
				t.Errorf("got %v", err)
			}
			if f.tokenAlive() {
				t.Error("the token lives")
			}
			own := name != "no lease" && name != "a lease of elsewhere" // else it ends with its token
			if f.called("sys/leases/revoke") != own {
				t.Errorf("the lease was revoked by its ID: %t, want %t", !own, own)
			}
			if f.called("sys/leases/tidy") {
				t.Error("leases were tidied though the token was alive")
			}
		})
	}
}

// TestWhatProvesNoEnd breaks one step of a revoke at a time, then mends it.
func TestWhatProvesNoEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		path   string
		answer answers
	}{
		"standby":                  {"sys/health", answers{429, map[string]any{"initialized": true, "standby": true, "cluster_id": "c1"}}},
		"performance standby":      {"sys/health", answers{473, map[string]any{"initialized": true, "cluster_id": "c1"}}},
		"sealed":                   {"sys/health", answers{503, map[string]any{"initialized": true, "sealed": true}}},
		"another cluster":          {"sys/health", answers{200, map[string]any{"initialized": true, "cluster_id": "c2"}}},
		"no cluster":               {"sys/health", answers{200, map[string]any{"initialized": true}}},
		"lookup is denied":         {"sys/leases/lookup", says(403, "permission denied")},
		"lookup has no ID":         {"sys/leases/lookup", says(400, "lease_id must be specified")},
		"lookup fails":             {"sys/leases/lookup", says(500, "invalid lease")},
		"lookup says it is there":  {"sys/leases/lookup", answers{200, map[string]any{}}},
		"revoke fails":             {"sys/leases/revoke", says(400, "failed to revoke entry")},
		"token is still there":     {"auth/token/lookup-accessor", answers{200, map[string]any{}}},
		"token lookup is denied":   {"auth/token/lookup-accessor", says(403, "permission denied")},
		"token lookup is confused": {"auth/token/lookup-accessor", says(400, "missing accessor")},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := newFakeVault(t)
			_, held := issue(t, b, request(fakeRole(), time.Minute, nil))
			f.set(tt.path, tt.answer)
			if ending, err := b.Revoke(t.Context(), held); !errors.Is(err, plugins.ErrNotProven) {
				t.Errorf("got %+v, %v", ending, err)
			}
			f.set(tt.path)
			// The first attempt may have ended it already: that was no stranger.
			revoke(t, b, held, plugins.ReadBack)
		})
	}
	t.Run("tidying fails", func(t *testing.T) {
		f, b := newFakeVault(t)
		prepared, err := b.Prepare(t.Context(), request(fakeRole(), time.Minute, nil))
		if err != nil {
			t.Fatal(err)
		}
		f.set("sys/leases/tidy", says(403, "permission denied"))
		f.set("auth/token/lookup-accessor", says(403, "* bad token")) // it died by itself
		held := plugins.Held{Handle: prepared.Handle, Uncertain: true}
		if ending, err := b.Revoke(t.Context(), held); !errors.Is(err, plugins.ErrNotProven) {
			t.Errorf("got %+v, %v", ending, err)
		}
		f.set("sys/leases/tidy")
		revoke(t, b, held, plugins.Swept)
	})
}

// TestFailedRevokeOfWhatIsUnknown: a credential is dropped because its commit failed, and cannot be revoked at once. The ledger
// knows its token only, and sweeps it; nobody asks for the end of its lease again. Sweeps that wait for it go on all the same.
func TestFailedRevokeOfWhatIsUnknown(t *testing.T) {
	for name, gone := range map[string]bool{"the lease went with its token": true, "the lease is still there": false} {
		t.Run(name, func(t *testing.T) {
			f, b := newFakeVault(t)
			prepared, err := b.Prepare(t.Context(), request(fakeRole(), time.Minute, nil))
			if err != nil {
				t.Fatal(err)
			}
			_, dropped := issue(t, b, request(fakeRole(), time.Minute, nil))
			f.set("sys/leases/revoke", says(500, "out of order"))
			if ending, err := b.Revoke(t.Context(), dropped); !errors.Is(err, plugins.ErrNotProven) {
				t.Fatalf("got %+v, %v", ending, err)
			}
			f.set("auth/token/lookup-accessor", says(403, "* bad token")) // it died by itself
			held := plugins.Held{Handle: prepared.Handle, Uncertain: true}
			ending, sweep := b.Revoke(t.Context(), held)
			if !errors.Is(sweep, plugins.ErrNotProven) || f.called("sys/leases/tidy") {
				t.Errorf("swept while a revoke fails: %+v, %v", ending, sweep)
			}
			if errors.Is(sweep, plugins.ErrUnavailable) { // else what fails elsewhere at this Vault would hold this lane
				t.Errorf("it is told as if Vault did not answer: %v", sweep)
			}
			if gone {
				f.set("sys/leases/lookup", says(400, "invalid lease"))
			} else {
				f.set("sys/leases/revoke")
			}
			revoke(t, b, held, plugins.Swept)
			if !f.called("sys/leases/tidy") {
				t.Error("leases were not tidied")
			}
		})
	}
}

func TestConfigNamesEveryFault(t *testing.T) {
	_, err := vault.New(vault.Config{TokenRole: "a/b", Auth: vault.Auth{JWT: &vault.JWTAuth{}, Token: &vault.TokenAuth{}}}, nil)
	if err == nil {
		t.Fatal("no error")
	}
	for _, fault := range []string{"instance", "token_role", `auth "jwt"`, `auth "token"`, "2 auth methods"} {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("%v does not name %s", err, fault)
		}
	}
}
