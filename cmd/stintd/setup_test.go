package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/stepca"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// moreRoles are of every engine, for agents of their own.
const moreRoles = `apiVersion: stint.dev/v1
kind: Role
metadata: {name: build-host-otp}
spec:
  backend: vault/prod
  vault: {path: ssh/creds/stint-otp, policy: stint-build-host-otp, data: {ip: "{{ .params.ip }}"}}
  parameters: [{name: ip, pattern: "10\\.0\\.0\\.[0-9]{1,3}", required: true}]
  ttl: {max: 10m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: internal-cert}
spec:
  backend: vault/prod
  vault: {path: pki/issue/stint-internal, policy: stint-internal-cert, data: {common_name: agent.example.org, ttl: "{{ .ttl }}"}}
  ttl: {max: 10m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: partner-key}
spec:
  backend: vault/prod
  vault: {path: kv/data/partner, policy: stint-partner-key, kind: static}
  accept_permanent: true
  ttl: {max: 10m}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: partner-api}
spec:
  backend: stepca/remote
  certificate: {usages: [client_auth]}
  ttl: {default: 5m, max: 15m}
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: builder}
spec:
  agents: ["spiffe://example.org/builder/*"]
  owner: builds@example.org
  sponsor: head-of-builds@example.org
  purposes: [build]
  roles: [{name: build-host-otp}, {name: internal-cert}, {name: partner-key}, {name: partner-api}]
  task: {max_ttl: 30m}
  permit: ceiling
`

// engines is a Vault with engines as an operator sets them up, and nothing of Stint.
func engines(t *testing.T, server *servertest.Vault, pg *servertest.Postgres) *vaulttest.Fixture {
	t.Helper()
	f := vaulttest.Setup(t, server)
	f.SSH(t)
	f.Database(t, pg)
	f.PKI(t)
	f.KV(t, "k")
	if _, err := f.Root.Logical().WriteWithContext(t.Context(), "pki/config/crl", map[string]any{"auto_rebuild": true}); err != nil {
		t.Fatal(err)
	}
	paths := []string{"auth/token/roles/stint", "sys/auth/" + vaulttest.JWTMount, "sys/auth/approle", "sys/policies/acl/stint"}
	for _, name := range []string{"orders-db-read", "build-host-otp", "internal-cert", "partner-key"} {
		paths = append(paths, "sys/policies/acl/stint-"+name)
	}
	for _, path := range paths {
		if _, err := f.Root.Logical().DeleteWithContext(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// runScript runs a printed script with the vault command, as an administrator would.
func runScript(t *testing.T, dir, script string, server *servertest.Vault) {
	t.Helper()
	if vaultDir() == "/nonexistent" {
		servertest.Program(t, "vault")
	}
	path := filepath.Join(dir, "setup.sh")
	write(t, path, script)
	cmd := exec.CommandContext(t.Context(), "sh", path)
	cmd.Env = []string{"PATH=" + vaultDir() + ":/usr/bin:/bin", "HOME=" + dir, "VAULT_TOKEN=" + server.RootToken}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the printed script fails: %v\n%s", err, out)
	}
}

// checkToken makes the token that the script's last lines are about, and returns its file.
func checkToken(t *testing.T, f *vaulttest.Fixture) string {
	t.Helper()
	answer, err := f.Root.Auth().Token().CreateOrphanWithContext(t.Context(), &vaultapi.TokenCreateRequest{
		Policies: []string{vault.CheckPolicy}, NoDefaultPolicy: true, TTL: "1h",
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "check-token")
	write(t, path, answer.Auth.ClientToken+"\n")
	return path
}

// TestSetupVaultPassesCheck runs what `stintd setup vault` prints for deploy/, a role of every engine and one of a remote
// step-ca against a Vault that has only engines. `stintd check` is then silent, and with --probe too, which leaves nothing
// behind. What is planted in policies and the token role afterwards, the script mends.
func TestSetupVaultPassesCheck(t *testing.T) {
	t.Parallel()
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t)
	f := engines(t, server, pg)
	dir := deployed(t, server, f.JWT)
	config := dir + "/etc/stint.hcl"
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Template: stepca.ProvisionerTemplate})
	remote := strings.Replace(remoteCA(t, ca), "mode  ", "crl_validity = \"1m\"\n  mode  ", 1)
	write(t, config, string(read(t, config))+remote)
	write(t, dir+"/etc/resources.d/more.yaml", moreRoles)
	status, script, errs := run(t, dir, "setup", "vault", "--config", config)
	if status != 0 || errs != "" {
		t.Fatalf("setup vault exits with %d: %s", status, errs)
	}
	runScript(t, dir, script, server)
	f.TrustKeys(t, f.JWT) // what --oidc-discovery-url would do
	runScript(t, dir, script, server)

	token := checkToken(t, f)
	for _, flags := range [][]string{nil, {"--probe", "--param", "build-host-otp.ip=10.0.0.7"}} {
		if code, found := check(t, dir, config, append(flags, "--vault-token-file", token)...); code != 0 || len(found) != 0 {
			t.Errorf("check %v after setup exits with %d: %+v", flags, code, found)
		}
	}
	nothingLeft(t, f, pg)
	if code, found := check(t, dir, config); code != exitWeakens || len(found) != 1 || found[0].Code != "not-readable" {
		t.Errorf("check without a token of its own exits with %d: %+v", code, found)
	}
	if code, found := check(t, dir, config, "--probe", "--vault-token-file", "vault/prod="+token); code != exitWeakens || len(found) != 1 || found[0].Code != "probe-skipped" {
		t.Errorf("check --probe without the parameter exits with %d: %+v", code, found)
	}
	spoilPolicies(t, f, script)
	policiesFound(t, dir, config, token)
	runScript(t, dir, script, server)
	f.TrustKeys(t, f.JWT)
	if code, found := check(t, dir, config, "--vault-token-file", token); code != 0 || len(found) != 0 {
		t.Errorf("after the script check exits with %d: %+v", code, found)
	}
}

// nothingLeft expects no lease and no database user of a probe.
func nothingLeft(t *testing.T, f *vaulttest.Fixture, pg *servertest.Postgres) {
	t.Helper()
	for _, path := range []string{"database/creds/stint-orders-ro", "ssh/creds/stint-otp", "pki/issue/stint-internal"} {
		if left := f.Leases(t, path); len(left) != 0 {
			t.Errorf("the probe left leases: %v", left)
		}
	}
	if n := vaulttest.Users(t, vaulttest.Connect(t, pg.SuperDSN("postgres")), "v-token-task-check-%"); n != 0 {
		t.Errorf("the probe left %d database users", n)
	}
}

// policiesFound expects what spoilPolicies has planted, with the script as its remedy.
func policiesFound(t *testing.T, dir, config, token string) {
	t.Helper()
	code, found := check(t, dir, config, "--vault-token-file", token)
	codes := codesOf(found)
	slices.Sort(codes)
	if want := []string{
		"own-policy-broad", "own-token-broad", "own-token-issues", "role-policy-broad", "role-policy-denies", "role-policy-missing", "token-role-not-orphan",
	}; code != exitBreaks || !slices.Equal(codes, want) {
		t.Errorf("check of what was planted exits with %d and finds %v, want %v: %+v", code, codes, want, found)
	}
	for _, x := range found {
		if x.Code != "token-role-not-orphan" && !strings.HasPrefix(x.Remedy, "stintd setup vault") && x.Code != "own-token-issues" {
			t.Errorf("the remedy is another than the script: %+v", x)
		}
	}
}

// spoilPolicies plants a fault in each policy, and one in the token role.
func spoilPolicies(t *testing.T, f *vaulttest.Fixture, script string) {
	t.Helper()
	own := between(t, script, "vault policy write 'stint' - <<'END_OF_POLICY'\n", "END_OF_POLICY")
	db := between(t, script, "vault policy write 'stint-orders-db-read' - <<'END_OF_POLICY'\n", "END_OF_POLICY")
	f.Policy(t, "stint", own+`path "sys/leases/revoke-prefix/*" { capabilities = ["update", "sudo"] }
path "kv/data/partner" { capabilities = ["read"] }
path "kv/data/other" { capabilities = ["read"] }
`)
	f.Policy(t, "stint-orders-db-read", db+`path "database/creds/*" { capabilities = ["read"] }`)
	f.Policy(t, "stint-build-host-otp", `path "ssh/creds/other" { capabilities = ["deny"] }`)
	if err := f.Root.Sys().DeletePolicyWithContext(t.Context(), "stint-internal-cert"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Root.Logical().WriteWithContext(t.Context(), "auth/token/roles/stint", map[string]any{"orphan": false}); err != nil {
		t.Fatal(err)
	}
}

// between returns what stands between two texts.
func between(t *testing.T, text, before, after string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, before)
	got, _, ended := strings.Cut(rest, after)
	if !found || !ended {
		t.Fatalf("no %q … %q in:\n%s", before, after, text)
	}
	return got
}

// TestSetupVaultOtherLogins prints scripts for AppRole and a token, and says what it cannot print.
func TestSetupVaultOtherLogins(t *testing.T) {
	t.Parallel()
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t)
	f := engines(t, server, pg)
	secretID := filepath.Join(t.TempDir(), "secret-id")
	s := newSite(t, "", vaultBackend(server, `auth "approle" {
    role_id   = "stint-at-example"
    secret_id = "file://`+secretID+`"
  }`), catalog(limits{}, dbRole))
	code, script, errs := run(t, s.dir, "setup", "vault", "--config", s.file("stint.hcl"))
	if code != 0 {
		t.Fatalf("setup vault exits with %d: %s", code, errs)
	}
	runScript(t, s.dir, script, server)
	answer, err := f.Root.Logical().WriteWithContext(t.Context(), "auth/approle/role/stint/secret-id", nil)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := answer.Data["secret_id"].(string)
	write(t, secretID, id)
	// The engine's own default is above the role's longest life, which check would rightly mention.
	if _, err = f.Root.Logical().WriteWithContext(t.Context(), "database/roles/stint-orders-ro", map[string]any{"default_ttl": "10m"}); err != nil {
		t.Fatal(err)
	}
	if status, found := check(t, s.dir, s.file("stint.hcl"), "--vault-token-file", checkToken(t, f)); status != 0 {
		t.Errorf("check exits with %d: %+v", status, found)
	}

	text := string(read(t, s.file("stint.hcl")))
	two := s.file("two.hcl")
	write(t, two, text+strings.Replace(vaultBackend(server, `auth "token" { file = "/run/it's/token" }`), `"main"`, `"other"`, 1))
	if code, _, errs = run(t, s.dir, "setup", "vault", "--config", two); code != exitUsage || !strings.Contains(errs, "--backend vault/main, or vault/other") {
		t.Errorf("setup of two Vaults exits with %d: %s", code, errs)
	}
	code, script, errs = run(t, s.dir, "setup", "vault", "--config", two, "--backend", "vault/other")
	if code != 0 || !strings.Contains(script, `-policy=stint -period=1h -field=token > '/run/it'\''s/token'`) {
		t.Errorf("setup of a login by token exits with %d: %s%s", code, script, errs)
	}
	if code, _, errs = run(t, s.dir, "setup", "vault", "--config", two, "--backend", "vault/none"); code != exitUsage || !strings.Contains(errs, "vault/none") {
		t.Errorf("setup of no Vault exits with %d: %s", code, errs)
	}
}

// fakeSPIRE answers as SPIRE's spire-server does about one entry, which it writes down: it shows the ID, and refuses to create the
// entry again.
const fakeSPIRE = `#!/bin/sh
test "$1" = entry || exit 1
case "$2" in
show) test ! -e entry || printf 'Found 1 entry\nEntry ID         : e-1\nSPIFFE ID        : spiffe://example.org/stint\n'; exit ;;
create) test ! -e entry || { echo 'similar entry already exists' >&2; exit 1; } ;;
update) test "$3 $4" = "-entryID e-1" || exit 1 ;;
esac
printf '%s\n' "$@" > entry
`

// TestSetupSPIRE runs the printed script with a stand-in for spire-server, twice.
func TestSetupSPIRE(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(bin, "spire-server")
	write(t, fake, fakeSPIRE)
	if err := os.Chmod(fake, 0o700); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "identity {\n  workload_api = \"unix:///none.sock\"\n  trust_domains = [\"example.org\", \"partner.org\"]\n}\n", embeddedCA, catalog(limits{}, certRole))
	if code, _, errs := run(t, dir, "setup", "spire", "--config", s.file("stint.hcl")); code == 0 || !strings.Contains(errs, "--spiffe-id") {
		t.Errorf("setup without an ID exits with %d: %s", code, errs)
	}
	code, script, errs := run(t, dir, "setup", "spire", "--config", s.file("stint.hcl"), "--spiffe-id", "spiffe://example.org/stint",
		"--selector", "k8s:sa:it's", "--server-socket", "/run/it's/api.sock")
	if code != 0 {
		t.Fatalf("setup spire exits with %d: %s", code, errs)
	}
	path := filepath.Join(dir, "spire.sh")
	write(t, path, script)
	sh := func(env ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", path)
		cmd.Dir, cmd.Env = dir, append([]string{"PATH=" + bin + ":/usr/bin:/bin"}, env...)
		out, err := cmd.CombinedOutput()
		if failed := len(env) == 0; (err != nil) != failed {
			t.Fatalf("the script with %v: %v: %s", env, err, out)
		}
		return string(out)
	}
	if out := sh(); !strings.Contains(out, "STINT_PARENT_ID") {
		t.Errorf("the script does not ask for the parent: %s", out)
	}
	for _, verb := range []string{"create", "update -entryID e-1"} {
		sh("STINT_PARENT_ID=spiffe://example.org/node/a")
		want := "entry " + verb + " -socketPath /run/it's/api.sock -parentID spiffe://example.org/node/a -spiffeID spiffe://example.org/stint " +
			"-x509SVIDTTL 3600 -jwtSVIDTTL 300 -selector k8s:sa:it's -dns stint.example.org -federatesWith spiffe://partner.org"
		if got := strings.Join(strings.Split(strings.TrimSpace(string(read(t, dir+"/entry"))), "\n"), " "); got != want {
			t.Errorf("spire-server got %q, want %q", got, want)
		}
	}
	if !strings.Contains(script, `#   spire-server entry create -socketPath '/run/it'\''s/api.sock' -parentID spiffe://example.org/NODE -spiffeID 'spiffe://example.org/agent/NAME'`) {
		t.Errorf("no entry for agents in:\n%s", script)
	}
}
