package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	recordWait = 40 * time.Second
	closeWait  = 150 * time.Second
)

// commonVault is the shared Vault, set up once.
var commonVault struct {
	once    sync.Once
	fixture *vaulttest.Fixture
}

// sharedVault returns the shared Vault with ssh and PostgreSQL behind it.
func sharedVault(tb testing.TB) *vaulttest.Fixture {
	tb.Helper()
	vault, pg := servers.Vault(tb), servers.Postgres(tb)
	commonVault.once.Do(func() { commonVault.fixture = vaultFor(tb, vault, pg) })
	if commonVault.fixture == nil {
		tb.Fatal("the shared Vault was not set up")
	}
	return commonVault.fixture
}

// slowCreation takes 2 s to make a user.
const slowCreation = `SELECT pg_sleep(2); ` + vaulttest.CreatesUser

// vaultFor sets a Vault up for the roles of vaultRoles.
func vaultFor(tb testing.TB, vault *servertest.Vault, pg *servertest.Postgres) *vaulttest.Fixture {
	tb.Helper()
	f := vaulttest.Setup(tb, vault)
	f.SSH(tb)
	f.Database(tb, pg)
	f.DatabaseRole(tb, "stint-slow", slowCreation)
	f.Apply(tb, vaulttest.Role("slow-db", map[string]any{"path": "database/creds/stint-slow", "policy": "stint-slow-db"}))
	return f
}

// vaultBlock is a backend "vault" "main" with this auth block.
func vaultBackend(vault *servertest.Vault, auth string, more ...string) string {
	return fmt.Sprintf("backend \"vault\" \"main\" {\n  address = %q\n  %s\n%s\n}\n", vault.Addr, auth, strings.Join(more, "\n"))
}

// tokenAuth puts a token with Stint's policy into a file and returns the auth block and the token.
func tokenAuth(tb testing.TB, f *vaulttest.Fixture) (block string, file string) {
	tb.Helper()
	path := f.TokenFile(tb).Token.File
	return fmt.Sprintf("auth \"token\" { file = %q }", path), path
}

// appRoleAuth puts a secret ID into a file and returns the auth block.
func appRoleAuth(tb testing.TB, f *vaulttest.Fixture) string {
	tb.Helper()
	role := f.AppRole(tb).AppRole
	id, err := role.SecretID(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	path := tb.TempDir() + "/secret-id"
	write(tb, path, string(id.Expose())+"\n")
	return fmt.Sprintf("auth \"approle\" {\n    role_id   = %q\n    secret_id = \"file://%s\"\n  }", role.RoleID, path)
}

// embeddedCA is a backend "stepca" "internal".
const embeddedCA = `backend "stepca" "internal" { crl_url = "http://127.0.0.1/crl.der" }
`

// remoteCA is a backend "stepca" "remote" in front of a step-ca; its provisioner's key lies in a directory of the test's.
func remoteCA(tb testing.TB, ca *servertest.StepCA, more ...string) string {
	tb.Helper()
	dir := tb.TempDir()
	key, err := json.Marshal(ca.ProvisionerKey)
	if err != nil {
		tb.Fatal(err)
	}
	write(tb, dir+"/key.jwk", string(key))
	write(tb, dir+"/root.pem", string(ca.RootPEM))
	return fmt.Sprintf(`backend "stepca" "remote" {
  mode        = "remote"
  url         = %q
  root_file   = %q
  provisioner = %q
  key         = "file://%s"
%s
}
`, ca.URL, dir+"/root.pem", ca.Provisioner, dir+"/key.jwk", strings.Join(more, "\n"))
}

// The roles that the sites have, by name.
const (
	dbRole     = "orders-db-read"
	slowRole   = "slow-db"
	otpRole    = "build-host-otp"
	pkiRole    = "internal-cert"
	kvRole     = "partner-key"
	consulRole = "deploy"
	certRole   = "ledger-api"
	remoteRole = "partner-api"
)

// limits are those of the profile's tasks and of credentials.
type limits struct {
	task  string // inside task: {…}
	dbTTL string // of the database roles
	ttl   string // of the others
	// certTTL is of the CAs' roles, where it is not that of the others
	certTTL string
	// exposure is the bound of each role, by its name; none if nil
	exposure map[string]time.Duration
}

// catalog writes roles and the profile "invoice-agent" that may have them all.
func catalog(l limits, roles ...string) string {
	otpTTL := cmp.Or(l.ttl, "{default: 2m, max: 10m}")
	l.dbTTL, l.ttl = cmp.Or(l.dbTTL, "{default: 2m, max: 10m}"), cmp.Or(l.ttl, "{default: 5m, max: 15m}")
	l.certTTL = cmp.Or(l.certTTL, l.ttl)
	if l.task == "" {
		l.task = "default_ttl: 5m, max_ttl: 30m, max_live: 100, max_live_leases: 500"
	}
	specs := map[string]string{
		dbRole:     "backend: vault/main\n  vault: {path: database/creds/stint-orders-ro, policy: stint-orders-db-read, engine_end: lease}\n  ttl: " + l.dbTTL,
		slowRole:   "backend: vault/main\n  vault: {path: database/creds/stint-slow, policy: stint-slow-db}\n  ttl: " + l.dbTTL,
		certRole:   "backend: stepca/internal\n  certificate: {usages: [client_auth], common_name: \"{{ .agent.name }}\"}\n  ttl: " + l.certTTL,
		remoteRole: "backend: stepca/remote\n  certificate: {usages: [client_auth]}\n  ttl: " + l.certTTL,
		otpRole: "backend: vault/main\n  vault:\n    path: ssh/creds/stint-otp\n    policy: stint-build-host-otp\n    data: {ip: \"{{ .params.ip }}\"}\n" +
			"  parameters:\n    - {name: ip, pattern: \"10\\\\.0\\\\.0\\\\.[0-9]{1,3}\", required: true}\n  ttl: " + otpTTL,
		pkiRole: "backend: vault/main\n  vault:\n    path: pki/issue/stint-internal\n    policy: stint-internal-cert\n" +
			"    data: {common_name: agent.example.org, ttl: \"{{ .ttl }}\"}\n  ttl: " + l.ttl,
		kvRole:     "backend: vault/main\n  vault: {path: kv/data/partner, policy: stint-partner-key, kind: static}\n  accept_permanent: true\n  ttl: " + l.ttl,
		consulRole: "backend: vault/main\n  vault: {path: consul/creds/stint-deploy, policy: stint-deploy, engine_end: none}\n  ttl: " + l.ttl,
	}
	var out, names strings.Builder
	for _, name := range roles {
		spec := specs[name]
		if bound, ok := l.exposure[name]; ok {
			spec += fmt.Sprintf("\n  exposure: {max: %s}", bound)
		}
		fmt.Fprintf(&out, "apiVersion: stint.dev/v1\nkind: Role\nmetadata: {name: %s}\nspec:\n  %s\n---\n", name, spec)
		fmt.Fprintf(&names, "    - {name: %s}\n", name)
	}
	return out.String() + `apiVersion: stint.dev/v1
kind: Profile
metadata: {name: invoice-agent}
spec:
  agents: ["spiffe://example.org/agent/*"]
  owner: billing-platform@example.org
  sponsor: head-of-billing@example.org
  purposes: [reconcile-invoices]
  roles:
` + names.String() + "  task: {" + l.task + "}\n  permit: ceiling\n"
}

// declaration asks for roles.
func declaration(ttl time.Duration, roles ...string) agent.Declaration {
	d := agent.Declaration{Purpose: "reconcile-invoices", TTL: ttl}
	for _, name := range roles {
		r := agent.Role{Name: name}
		if name == otpRole {
			r.Parameters = map[string]string{"ip": "10.0.0.7"}
		}
		d.Roles = append(d.Roles, r)
	}
	return d
}

// declare opens a task; it is left to the test to end it.
func declare(tb testing.TB, c *agent.Client, ttl time.Duration, roles ...string) *agent.Task {
	tb.Helper()
	t, err := c.Declare(tb.Context(), declaration(ttl, roles...))
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// issue issues one credential.
func issue(tb testing.TB, t *agent.Task, role string) *agent.Credential {
	tb.Helper()
	c, err := t.Issue(tb.Context(), role, agent.IssueOptions{})
	if err != nil {
		tb.Fatalf("issue %s: %v", role, err)
	}
	return c
}
