package vault_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

const checkPolicy = "check"

// checked is a set-up without findings.
type checked struct {
	f       *vaulttest.Fixture
	cfg     vault.Config
	b       *vault.Backend
	roles   []plugins.Role
	reading string // the policy of what Check reads beside Stint's own
}

func goodSetup(t *testing.T) checked {
	t.Helper()
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t)
	f := vaulttest.Setup(t, server)
	c := checked{f: f, cfg: f.Config(), roles: []plugins.Role{f.SSH(t), f.Database(t, pg), f.PKI(t), f.KV(t, "k")}}
	var err error
	if c.reading, err = vault.CheckPolicyText(c.roles); err != nil {
		t.Fatal(err)
	}
	f.Policy(t, checkPolicy, c.reading)
	c.cfg.Auth = f.TokenFile(t, checkPolicy)
	c.b = backend(t, c.cfg)
	return c
}

func (c checked) check(t *testing.T) []plugins.Finding {
	t.Helper()
	return c.b.Check(t.Context(), c.roles)
}

func (c checked) write(t *testing.T, path string, body map[string]any) {
	t.Helper()
	if _, err := c.f.Root.Logical().WriteWithContext(t.Context(), path, body); err != nil {
		t.Fatal(err)
	}
}

// misdeed breaks a good set-up and mends it again.
type misdeed struct {
	spoil, mend  func(t *testing.T)
	severity     plugins.Severity
	says, remedy string
}

// writes is a misdeed of writing a path one way and mending it the other.
func (c checked) writes(path string, bad, good map[string]any) misdeed {
	return misdeed{
		spoil: func(t *testing.T) { t.Helper(); c.write(t, path, bad) },
		mend:  func(t *testing.T) { t.Helper(); c.write(t, path, good) },
	}
}

func (c checked) tokenRole(key string, bad, good any) misdeed {
	return c.writes("auth/token/roles/stint", map[string]any{key: bad}, map[string]any{key: good})
}

func (c checked) policy(name, bad, good string) misdeed {
	const path = "sys/policies/acl/"
	return c.writes(path+name, map[string]any{"policy": bad}, map[string]any{"policy": good})
}

// creates is a misdeed of a database role that is made in another way.
func (c checked) creates(creation, revocation []string) misdeed {
	const path = "database/roles/stint-orders-ro"
	role := func(creation, revocation []string) map[string]any {
		return map[string]any{
			"db_name": "orders", "creation_statements": creation, "revocation_statements": revocation, "default_ttl": "1h", "max_ttl": "2h",
		}
	}
	return c.writes(path, role(creation, revocation), role([]string{vaulttest.CreatesUser}, []string{vaulttest.EndsSessions}))
}

func (m misdeed) breaks(says, remedy string) misdeed {
	m.severity, m.says, m.remedy = plugins.Breaks, says, remedy
	return m
}

func (m misdeed) weakens(says, remedy string) misdeed {
	m.severity, m.says, m.remedy = plugins.Weakens, says, remedy
	return m
}

func (c checked) misdeeds(t *testing.T) map[string]misdeed {
	t.Helper()
	own, err := vault.PolicyText(vault.Config{}, c.roles)
	if err != nil {
		t.Fatal(err)
	}
	noPolicy := misdeed{
		spoil: func(t *testing.T) {
			t.Helper()
			if err := c.f.Root.Sys().DeletePolicyWithContext(t.Context(), "stint-orders-db-read"); err != nil {
				t.Fatal(err)
			}
		},
		mend: func(t *testing.T) { t.Helper(); c.f.Apply(t, c.roles...) },
	}
	pki := func(generate bool) map[string]any {
		return map[string]any{"allowed_domains": "example.org", "allow_subdomains": true, "generate_lease": generate, "key_type": "ec"}
	}
	return map[string]misdeed{
		"no orphans":     c.tokenRole("orphan", false, true).breaks("orphan is false", "orphan=true"),
		"capped tokens":  c.tokenRole("token_explicit_max_ttl", "1h", "0").breaks("a life of its own", "token_explicit_max_ttl=0"),
		"periodic":       c.tokenRole("token_period", "1h", "0").breaks("a life of its own", "token_period=0"),
		"single use":     c.tokenRole("token_num_uses", 1, 0).breaks("token_num_uses", "token_num_uses=0"),
		"default policy": c.tokenRole("token_no_default_policy", false, true).weakens("token_no_default_policy", "=true"),
		"wide policies": c.tokenRole("allowed_policies_glob", []string{"*"}, []string{"stint-*"}).
			weakens("more than the policies", "stint-*"),
		"batch tokens": c.writes("auth/token/roles/stint",
			map[string]any{"token_type": "batch", "renewable": false}, map[string]any{"token_type": "service", "renewable": true}).
			breaks("token_type is batch", "token_type=service"),
		"ssh leases too long": c.writes("sys/mounts/ssh/tune",
			map[string]any{"default_lease_ttl": "8h"}, map[string]any{"default_lease_ttl": "30s"}).
			breaks("live 8h0m0s and cannot be cut", "vault secrets tune"),
		"sessions go on": c.creates([]string{vaulttest.CreatesUser}, nil).weakens("do not end open sessions", "pg_terminate_backend"),
		"users without end": c.creates([]string{`CREATE ROLE "{{name}}" LOGIN;`}, []string{vaulttest.EndsSessions}).
			weakens("set no end", "VALID UNTIL"),
		"certificates without lease": c.writes("pki/roles/stint-internal", pki(false), pki(true)).
			breaks("without a lease", "generate_lease=true"),
		"a policy is missing": noPolicy.breaks("policy stint-orders-db-read does not exist", "stintd setup vault"),
		"a right is missing": c.policy(vault.StintPolicy, strings.ReplaceAll(own, "sys/leases/tidy", "sys/leases/none"), own).
			breaks("may not update sys/leases/tidy", "sys/leases/tidy"),
		"too many rights": c.policy(checkPolicy, c.reading+`path "kv/data/partner" { capabilities = ["read"] }`, c.reading).
			weakens("may issue by itself: kv/data/partner", "partner-key"),
	}
}

// TestCheck breaks one thing at a time of a set-up without findings, and expects exactly that to be found.
func TestCheck(t *testing.T) {
	c := goodSetup(t)
	if found := c.check(t); len(found) != 0 {
		t.Fatalf("findings in a good set-up: %+v", found)
	}
	for name, m := range c.misdeeds(t) {
		t.Run(name, func(t *testing.T) {
			m.spoil(t)
			found := c.check(t)
			m.mend(t)
			if len(found) != 1 || found[0].Severity != m.severity || !strings.Contains(found[0].Problem, m.says) ||
				!strings.Contains(found[0].Remedy, m.remedy) || found[0].Subject == "" {
				t.Errorf("found %+v", found)
			}
			if again := c.check(t); len(again) != 0 {
				t.Errorf("after mending: %+v", again)
			}
		})
	}
	c.f.Server.Seal(t)
	found := c.check(t)
	if len(found) != 1 || found[0].Severity != plugins.Breaks || !strings.Contains(found[0].Problem, "sealed") {
		t.Errorf("sealed: found %+v", found)
	}
}

func TestCheckOfRootAndOfNoTokenRole(t *testing.T) {
	f := shared(t)
	path := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(path, []byte(f.Server.RootToken), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := f.Config()
	cfg.Auth = vault.Auth{Token: &vault.TokenAuth{File: path}}
	cfg.TokenRole = "nobody-made-this"
	found := backend(t, cfg).Check(t.Context(), nil)
	if len(found) != 2 || !strings.Contains(found[0].Problem, "root token") || !strings.Contains(found[1].Problem, "does not exist") ||
		!strings.Contains(found[1].Remedy, "orphan=true") {
		t.Errorf("found %+v", found)
	}
}

// TestRunSurvivesAnOutage restarts Vault under a backend that runs.
func TestRunSurvivesAnOutage(t *testing.T) {
	server := servertest.StartVault(t, servertest.VaultOptions{OnDisk: true})
	f := vaulttest.Setup(t, server)
	role := f.SSH(t)
	b := backend(t, f.Config())
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- b.Run(ctx) }()
	_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.20")))
	server.Restart(t)
	eventually(t, func() bool { return b.Healthy(t.Context()) == nil })
	revoke(t, b, held, plugins.ReadBack)
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
}
