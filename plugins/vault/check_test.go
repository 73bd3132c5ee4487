package vault_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// checked is a set-up without findings.
type checked struct {
	f     *vaulttest.Fixture
	b     *vault.Backend
	token secret.Value // of check alone
	own   string       // the policy of Stint's own token
	roles []plugins.Role
	// beside is the code of a finding that is there as well.
	beside string
}

func goodSetup(t *testing.T) checked {
	t.Helper()
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t)
	f := vaulttest.Setup(t, server)
	c := checked{f: f, roles: []plugins.Role{f.SSH(t), f.Database(t, pg), f.PKI(t), f.KV(t, "k")}}
	c.write(t, "pki/config/crl", map[string]any{"auto_rebuild": true})
	reading, err := vault.CheckPolicyText(c.roles)
	if err != nil {
		t.Fatal(err)
	}
	f.Policy(t, vault.CheckPolicy, reading)
	if c.own, err = vault.PolicyText(vault.Config{}, c.roles); err != nil {
		t.Fatal(err)
	}
	answer, err := f.Root.Auth().Token().CreateOrphanWithContext(t.Context(), &vaultapi.TokenCreateRequest{
		Policies: []string{vault.CheckPolicy}, NoDefaultPolicy: true, TTL: "1h",
	})
	if err != nil {
		t.Fatal(err)
	}
	c.token = secret.FromString(answer.Auth.ClientToken)
	c.b = backend(t, f.Config())
	return c
}

func (c checked) check(t *testing.T) []plugins.Finding {
	t.Helper()
	return c.b.CheckWith(t.Context(), c.token, c.roles)
}

func (c checked) write(t *testing.T, path string, body map[string]any) {
	t.Helper()
	if _, err := c.f.Root.Logical().WriteWithContext(t.Context(), path, body); err != nil {
		t.Fatal(err)
	}
}

func (c checked) remove(t *testing.T, path string) {
	t.Helper()
	if _, err := c.f.Root.Logical().DeleteWithContext(t.Context(), path); err != nil {
		t.Fatal(err)
	}
}

// misdeed breaks a good set-up and mends it again, and says what is to be found meanwhile.
type misdeed struct {
	spoil, mend           func(t *testing.T)
	severity              plugins.Severity
	code, subject, remedy string
}

// writes is a misdeed of writing a path one way and mending it the other.
func (c checked) writes(path string, bad, good map[string]any) misdeed {
	return misdeed{
		spoil: func(t *testing.T) { t.Helper(); c.write(t, path, bad) },
		mend:  func(t *testing.T) { t.Helper(); c.write(t, path, good) },
	}
}

// removes is a misdeed of deleting a path, mended by writing it.
func (c checked) removes(path string, good map[string]any) misdeed {
	m := c.writes(path, nil, good)
	m.spoil = func(t *testing.T) { t.Helper(); c.remove(t, path) }
	return m
}

// adds is a misdeed of writing a path that was not there.
func (c checked) adds(path string, bad map[string]any) misdeed {
	m := c.writes(path, bad, nil)
	m.mend = func(t *testing.T) { t.Helper(); c.remove(t, path) }
	return m
}

func (c checked) tokenRole(key string, bad, good any) misdeed {
	m := c.writes("auth/token/roles/stint", map[string]any{key: bad}, map[string]any{key: good})
	m.subject = "token role stint"
	return m
}

func (c checked) policy(name, bad, good string) misdeed {
	const path = "sys/policies/acl/"
	return c.writes(path+name, map[string]any{"policy": bad}, map[string]any{"policy": good})
}

// grows is a misdeed of adding rules to the policy of Stint's own token.
func (c checked) grows(rules string) misdeed { return c.policy(vault.StintPolicy, c.own+rules, c.own) }

// databaseRole is a database role that is made and ended in a way of its own.
func databaseRole(creation, revocation []string) map[string]any {
	return map[string]any{
		"db_name": "orders", "creation_statements": creation, "revocation_statements": revocation, "default_ttl": "1h", "max_ttl": "2h",
	}
}

func (c checked) creates(creation, revocation []string) misdeed {
	m := c.writes(databasePath, databaseRole(creation, revocation), databaseRole([]string{vaulttest.CreatesUser}, []string{vault.PostgreSQLRevocation}))
	m.subject = "role orders-db-read"
	return m
}

const (
	databasePath = "database/roles/stint-orders-ro"
	pkiPath      = "pki/roles/stint-internal"
	mysqlUser    = `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; `
)

func (m misdeed) breaks(code, remedy string) misdeed {
	m.severity, m.code, m.remedy = plugins.Breaks, code, remedy
	return m
}

func (m misdeed) weakens(code, remedy string) misdeed {
	m.severity, m.code, m.remedy = plugins.Weakens, code, remedy
	return m
}

func (m misdeed) of(subject string) misdeed {
	m.subject = subject
	return m
}

// tokenMisdeeds are about the token role and Stint's own token.
func (c checked) tokenMisdeeds() map[string]misdeed {
	const own = "stint's own token"
	return map[string]misdeed{
		"no orphans":             c.tokenRole("orphan", false, true).breaks("token-role-not-orphan", "vault write auth/token/roles/stint orphan=true"),
		"capped tokens":          c.tokenRole("token_explicit_max_ttl", "1h", "0").breaks("token-role-ttl", "token_explicit_max_ttl=0"),
		"periodic":               c.tokenRole("token_period", "1h", "0").breaks("token-role-ttl", "token_period=0"),
		"single use":             c.tokenRole("token_num_uses", 1, 0).breaks("token-role-uses", "token_num_uses=0"),
		"default policy":         c.tokenRole("token_no_default_policy", false, true).weakens("token-role-default-policy", "=true"),
		"wide policies":          c.tokenRole("allowed_policies_glob", []string{"*"}, []string{"stint-*"}).weakens("token-role-policies", "stint-*"),
		"one policy of others":   c.tokenRole("allowed_policies", []string{"admin"}, []string{}).weakens("token-role-policies", "stint-*"),
		"a policy not given out": c.tokenRole("disallowed_policies", []string{"root", "stint-build-host-otp"}, []string{"root"}).breaks("token-role-policy-missing", "stint-*"),
		"a policy of no role": c.adds("sys/policies/acl/stint-old", map[string]any{"policy": `path "kv/*" { capabilities = ["read"] }`}).
			weakens("policy-unused", "vault policy delete stint-old").of("policy stint-old"),
		"no token role": c.removes("auth/token/roles/stint", map[string]any{
			"allowed_policies_glob": []string{"stint-*"}, "disallowed_policies": []string{"root"}, "orphan": true,
			"renewable": true, "token_no_default_policy": true, "token_type": "service",
		}).breaks("token-role-missing", "orphan=true").of("token role stint"),
		"batch tokens": c.writes("auth/token/roles/stint",
			map[string]any{"token_type": "batch", "renewable": false}, map[string]any{"token_type": "service", "renewable": true}).
			breaks("token-role-type", "token_type=service").of("token role stint"),
		"tokens of the mount too short": c.writes("sys/mounts/auth/token/tune",
			map[string]any{"max_lease_ttl": "30m"}, map[string]any{"max_lease_ttl": "768h"}).
			breaks("token-mount-ttl", "vault auth tune -max-lease-ttl=1h1m30s token/").of("auth/token/"),
		"a right is missing": c.policy(vault.StintPolicy, strings.ReplaceAll(c.own, "path \"sys/leases/tidy\" { capabilities = [\"update\"] }\n", ""), c.own).
			breaks("own-token-right-missing", "sys/leases/tidy").of(own),
		"reads what it brokers":  c.grows(`path "kv/data/partner" { capabilities = ["read"] }`).weakens("own-token-issues", "partner-key").of(own),
		"issues with parameters": c.grows(`path "ssh/creds/*" { capabilities = ["create", "update"] }`).weakens("own-token-issues", "build-host-otp").of(own),
		"revokes by prefix":      c.grows(`path "sys/leases/revoke-prefix/*" { capabilities = ["update", "sudo"] }`).weakens("own-token-broad", "writes policy stint").of(own),
		"writes its policy":      c.grows(`path "sys/policies/acl/stint" { capabilities = ["update"] }`).weakens("own-token-broad", "writes policy stint").of(own),
		"makes any token":        c.grows(`path "auth/token/create" { capabilities = ["update"] }`).weakens("own-token-broad", "writes policy stint").of(own),
		"reads something else":   c.grows(`path "kv/data/other" { capabilities = ["read"] }`).weakens("own-policy-broad", "writes policy stint").of("policy stint"),
		"of old and wide":        c.grows(`path "kv/data/other" { policy = "write" }`).weakens("own-policy-broad", "writes policy stint").of("policy stint"),
		"ends anybody's leases": c.policy(vault.StintPolicy, unlimited(c.own, "sys/leases/revoke"), c.own).
			weakens("own-token-leases", "writes policy stint, with allowed_parameters").of(own),
	}
}

// unlimited takes the limits on parameters from one path of a policy.
func unlimited(policy, path string) string {
	begin := strings.Index(policy, `path "`+path+`" {`)
	end := begin + strings.Index(policy[begin:], "\n}\n") + len("\n}\n")
	return policy[:begin] + `path "` + path + `" { capabilities = ["update"] }` + "\n" + policy[end:]
}

// roleMisdeeds are about the policies and engines of roles.
func (c checked) roleMisdeeds(t *testing.T) map[string]misdeed {
	t.Helper()
	_, otp, err := vault.RolePolicyText(c.roles[0])
	if err != nil {
		t.Fatal(err)
	}
	_, db, err := vault.RolePolicyText(c.roles[1])
	if err != nil {
		t.Fatal(err)
	}
	pki := func(more map[string]any) map[string]any {
		role := map[string]any{"allowed_domains": "example.org", "allow_subdomains": true, "generate_lease": true, "key_type": "ec", "max_ttl": "1h"}
		maps.Copy(role, more)
		return role
	}
	const dbRole, otpRole, certRole = "role orders-db-read", "role build-host-otp", "role internal-cert"
	shorter := databaseRole([]string{vaulttest.CreatesUser}, []string{vault.PostgreSQLRevocation})
	shorter["max_ttl"], shorter["default_ttl"] = "10m", "5m"
	longer := databaseRole([]string{vaulttest.CreatesUser}, []string{vault.PostgreSQLRevocation})
	longer["default_ttl"] = "2h"
	good := databaseRole([]string{vaulttest.CreatesUser}, []string{vault.PostgreSQLRevocation})
	otpEngine := map[string]any{"key_type": "otp", "default_user": "ubuntu", "cidr_list": "10.0.0.0/8"}
	return map[string]misdeed{
		"a policy is missing":      c.removes("sys/policies/acl/stint-orders-db-read", map[string]any{"policy": db}).breaks("role-policy-missing", "writes policy stint-orders-db-read").of(dbRole),
		"a policy allows nothing":  c.policy("stint-orders-db-read", `path "database/creds/other" { capabilities = ["deny"] }`, db).breaks("role-policy-denies", "stintd setup vault").of(dbRole),
		"a policy allows more":     c.policy("stint-orders-db-read", db+`path "database/creds/*" { capabilities = ["read"] }`, db).weakens("role-policy-broad", "stintd setup vault").of(dbRole),
		"a policy takes any value": c.policy("stint-build-host-otp", `path "ssh/creds/stint-otp" { capabilities = ["update"] }`, otp).weakens("role-policy-broad", "stintd setup vault").of(otpRole),
		"a policy of JSON is wide": c.policy("stint-orders-db-read", `{"path": {"database/creds/+": {"capabilities": ["read"]}}}`, db).weakens("role-policy-broad", "stintd setup vault").of(dbRole),
		"ssh leases too long": c.writes("sys/mounts/ssh/tune", map[string]any{"default_lease_ttl": "8h"}, map[string]any{"default_lease_ttl": "30s"}).
			breaks("engine-ttl", "vault secrets tune -default-lease-ttl=30s ssh/").of(otpRole),
		"ssh certificates": c.writes("ssh/roles/stint-otp", map[string]any{"key_type": "ca", "allow_user_certificates": true, "default_user": "ubuntu"}, otpEngine).
			breaks("ssh-not-otp", "key_type=otp").of(otpRole),
		"engine's role is missing": c.removes(databasePath, good).breaks("engine-role-missing", "vault write "+databasePath).of(dbRole),
		"forgotten users":          c.writes(databasePath, longer, good).breaks("database-default-ttl", "default_ttl=1h0m0s").of(dbRole),
		"leases end early":         c.writes(databasePath, shorter, good).weakens("engine-max-ttl", "max_ttl=1h0m0s").of(dbRole),
		"the engine's own limit": c.writes("sys/mounts/database/tune", map[string]any{"max_lease_ttl": "20m"}, map[string]any{"max_lease_ttl": "768h"}).
			weakens("engine-max-ttl", "vault secrets tune -max-lease-ttl=1h0m0s database/").of(dbRole),
		"sessions go on":     c.creates([]string{vaulttest.CreatesUser}, nil).weakens("database-sessions", "pg_terminate_backend"),
		"users without end":  c.creates([]string{`CREATE ROLE "{{name}}" LOGIN;`}, []string{vault.PostgreSQLRevocation}).breaks("database-no-end", "VALID UNTIL"),
		"mysql sessions":     c.creates([]string{vault.MySQLEvent + mysqlUser}, []string{`DROP USER '{{name}}'@'%';`}).weakens("database-sessions", "CALL stint.end_sessions"),
		"mysql without end":  c.creates([]string{mysqlUser}, []string{vault.MySQLRevocation}).breaks("database-no-end", "CREATE EVENT stint."),
		"mysql end too late": c.creates([]string{mysqlUser, vault.MySQLEvent}, []string{vault.MySQLRevocation}).breaks("database-no-end", "before CREATE USER"),
		"no lease":           c.writes(pkiPath, pki(map[string]any{"generate_lease": false}), pki(nil)).breaks("pki-no-lease", "generate_lease=true").of(certRole),
		"nothing stored":     c.writes(pkiPath, pki(map[string]any{"generate_lease": false, "no_store": true}), pki(nil)).breaks("pki-no-store", "no_store=false").of(certRole),
		"certificates short": c.writes(pkiPath, pki(map[string]any{"max_ttl": "10m"}), pki(nil)).weakens("engine-max-ttl", "max_ttl=1h").of(certRole),
		"no auto_rebuild": c.writes("pki/config/crl", map[string]any{"auto_rebuild": false, "enable_delta": false}, map[string]any{"auto_rebuild": true}).
			weakens("pki-auto-rebuild", "vault write pki/config/crl auto_rebuild=true").of(certRole),
		"no CRL": c.writes("pki/config/crl", map[string]any{"auto_rebuild": false, "enable_delta": false, "disable": true}, map[string]any{"auto_rebuild": true, "disable": false}).
			breaks("pki-crl-off", "disable=false").of(certRole),
		"check may not look": c.policy(vault.CheckPolicy, `path "sys/policies/acl" { capabilities = ["list"] }`, mustCheckPolicy(t, c.roles)).
			weakens("not-readable", "--vault-token-file").of("check"),
	}
}

func mustCheckPolicy(t *testing.T, roles []plugins.Role) string {
	t.Helper()
	text, err := vault.CheckPolicyText(roles)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestCheck breaks one thing at a time of a set-up without findings, and expects exactly that to be found.
func TestCheck(t *testing.T) {
	c := goodSetup(t)
	if found := c.check(t); len(found) != 0 {
		t.Fatalf("findings in a good set-up: %+v", found)
	}
	misdeeds := c.tokenMisdeeds()
	maps.Copy(misdeeds, c.roleMisdeeds(t))
	for name, m := range misdeeds {
		t.Run(name, func(t *testing.T) {
			m.spoil(t)
			found := c.check(t)
			m.mend(t)
			if len(found) != 1 || found[0].Severity != m.severity || found[0].Code != m.code || found[0].Subject != m.subject ||
				!strings.Contains(found[0].Remedy, m.remedy) || found[0].Problem == "" {
				t.Errorf("found %+v", found)
			}
			if again := c.check(t); len(again) != 0 {
				t.Errorf("after mending: %+v", again)
			}
			if len(found) == 1 && runnable(found[0].Remedy) {
				c.follow(t, m, found[0].Remedy)
			}
		})
	}
	c.f.Server.Seal(t)
	found := c.check(t)
	if len(found) != 1 || found[0].Code != "vault-unreachable" || !strings.Contains(found[0].Problem, "sealed") {
		t.Errorf("sealed: found %+v", found)
	}
}

// runnable reports whether a remedy is a command that leaves nothing open.
func runnable(remedy string) bool {
	return strings.HasPrefix(remedy, "vault ") && !strings.ContainsAny(remedy, "…") && remedy == strings.TrimRight(remedy, ".;") &&
		!strings.Contains(remedy, "CIDR")
}

// follow spoils once more, and mends with the remedy that was printed, as an administrator would.
func (c checked) follow(t *testing.T, m misdeed, remedy string) {
	t.Helper()
	m.spoil(t)
	bin, err := filepath.Abs("../../.bin")
	if err != nil {
		t.Fatal(err)
	}
	if given := os.Getenv("VAULT_BIN"); given != "" {
		bin = filepath.Dir(given)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", remedy)
	named := filepath.Dir(os.Getenv("VAULT_BIN")) // "." where it is not
	cmd.Env = []string{"PATH=" + named + ":" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "VAULT_ADDR=" + c.f.Server.Addr, "VAULT_TOKEN=" + c.f.Server.RootToken}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", remedy, err, out)
	}
	if again := c.check(t); len(again) != 0 {
		t.Errorf("after %s: %+v", remedy, again)
	}
	m.mend(t)
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
	if codes := codesOf(found); !slices.Equal(codes, []string{"token-role-missing", "own-token-root"}) ||
		!strings.Contains(found[0].Remedy, "orphan=true") {
		t.Errorf("found %+v", found)
	}
}

// TestCheckWithoutATokenOfItsOwn reads with Stint's own token, which may read nothing of this, and says so.
func TestCheckWithoutATokenOfItsOwn(t *testing.T) {
	f := shared(t)
	found := backend(t, f.Config()).Check(t.Context(), []plugins.Role{f.SSH(t)})
	if len(found) != 1 || found[0].Code != "not-readable" || !strings.Contains(found[0].Problem, "sys/policies/acl/stint-build-host-otp") {
		t.Errorf("found %+v", found)
	}
}

// TestCheckClock puts a Vault behind a proxy that changes what time it is there.
func TestCheckClock(t *testing.T) {
	f := shared(t)
	for shift, want := range map[time.Duration][]string{
		2 * time.Second: nil, -20 * time.Second: {"clock warning"}, 20 * time.Second: {"clock warning"}, 5 * time.Minute: {"clock error"},
	} {
		cfg := f.Config()
		cfg.Address = shifted(t, f.Server.Addr, shift)
		var got []string
		for _, found := range backend(t, cfg).Check(t.Context(), nil) {
			if found.Code != "not-readable" {
				got = append(got, found.Code+" "+string(found.Severity))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("apart by %s: found %v, want %v", shift, got, want)
		}
	}
}

func codesOf(found []plugins.Finding) []string {
	codes := make([]string, len(found))
	for i, f := range found {
		codes[i] = f.Code
	}
	return codes
}

// shifted returns the address of a proxy to a Vault whose clock is off.
func shifted(t *testing.T, addr string, by time.Duration) string {
	t.Helper()
	target, err := url.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(resp *http.Response) error {
		if resp.Request.URL.Path != "/v1/sys/health" {
			return nil
		}
		var health map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&health); err != nil {
			return err
		}
		health["server_time_utc"] = time.Now().Add(by).Unix()
		text, err := json.Marshal(health)
		if err != nil {
			return err
		}
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
		resp.Header.Set("Content-Length", strconv.Itoa(len(text)))
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL
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

// TestStatementsAreDocumented holds docs/databases.md, and the example of docs/deployment.md, to the statements that findings print.
func TestStatementsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/databases.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{vault.PostgreSQLValidUntil, vault.PostgreSQLRevocation, vault.MySQLEvent, vault.MySQLRevocation, vaulttest.CreatesUser} {
		if !strings.Contains(string(page), statement) {
			t.Errorf("docs/databases.md does not have %s", statement)
		}
	}
	if page, err = os.ReadFile("../../docs/deployment.md"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), `revocation_statements="`+strings.ReplaceAll(vault.PostgreSQLRevocation, `"`, `\"`)+`"`) {
		t.Errorf("docs/deployment.md does not revoke with %s", vault.PostgreSQLRevocation)
	}
}
