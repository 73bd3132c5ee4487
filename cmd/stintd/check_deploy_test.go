package main

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// deployed copies deploy/stint.hcl and deploy/resources.d with every path and address moved to what the test has, and returns
// the folder: the directories below it, the socket of a Workload API, the address of a Vault that speaks plain HTTP. Nothing
// else is changed.
func deployed(tb testing.TB, vault *servertest.Vault, jwt *vaulttest.Signer) string {
	tb.Helper()
	dir := shortDir(tb)
	for _, name := range []string{"etc", "etc/resources.d", "log"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	copyFiles(tb, "../../deploy/resources.d/*.yaml", dir+"/etc/resources.d")
	ca := newAuthority(tb)
	writeIssuer(tb, ca, dir, ca.cert.NotAfter)
	if _, err := makeKeys(dir+"/etc/audit.key", "stint.example.org/audit"); err != nil {
		tb.Fatal(err)
	}
	socket := dir + "/api.sock"
	serveWorkloadAPI(tb, socket, newWorkloadAPI(tb, ca, jwt))
	text := strings.NewReplacer(
		"/var/lib/stint", dir+"/data", "unix:///run/spire/sockets/agent.sock", "unix://"+socket, "/run/stint/", dir+"/",
		"/run/credentials/stintd.service/", dir+"/etc/", "/etc/stint/", dir+"/etc/", "/var/log/stint/", dir+"/log/",
		"https://vault.example.org:8200", vault.Addr,
	).Replace(string(read(tb, "../../deploy/stint.hcl")))
	text = regexp.MustCompile(`(?m)^\s*ca_file.*\n`).ReplaceAllString(text, "")
	write(tb, dir+"/etc/stint.hcl", text)
	return dir
}

// copyFiles copies the files of a pattern into a folder.
func copyFiles(tb testing.TB, pattern, dir string) {
	tb.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		tb.Fatalf("%s: %v, %v", pattern, files, err)
	}
	for _, name := range files {
		write(tb, filepath.Join(dir, filepath.Base(name)), string(read(tb, name)))
	}
}

// writeIssuer writes an intermediate CA of the authority's, as an operator's PKI would.
func writeIssuer(tb testing.TB, ca *authority, dir string, ends time.Time) {
	tb.Helper()
	key := newKey(tb)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "issuing CA"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: ends, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, ca.cert, key.Public(), ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"issuing-ca.pem": {Type: "CERTIFICATE", Bytes: der}, "root-ca.pem": {Type: "CERTIFICATE", Bytes: ca.cert.Raw},
		"issuing-ca.key": {Type: "PRIVATE KEY", Bytes: raw},
	} {
		write(tb, filepath.Join(dir, "etc", name), string(pem.EncodeToMemory(block)))
	}
}

// discovery serves the keys of a trust domain as SPIRE's OIDC discovery provider does, and returns its URL.
func discovery(tb testing.TB, jwt *vaulttest.Signer) string {
	tb.Helper()
	block, _ := pem.Decode([]byte(jwt.PublicKey(tb)))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	tb.Cleanup(server.Close)
	answer := func(path string, body any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(body); err != nil {
				tb.Error(err)
			}
		})
	}
	answer("/keys", jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key, KeyID: "jwt-1", Algorithm: string(jose.ES256), Use: "sig"}}})
	answer("/.well-known/openid-configuration", map[string]any{
		"issuer": server.URL, "jwks_uri": server.URL + "/keys", "response_types_supported": []string{"id_token"},
		"subject_types_supported": []string{}, "id_token_signing_alg_values_supported": []string{"ES256"},
	})
	return server.URL
}

// ordersDatabase makes the database of the example, and the account that Vault has there, as docs/databases.md says.
func ordersDatabase(tb testing.TB, pg *servertest.Postgres) (password string) {
	tb.Helper()
	conn := vaulttest.Connect(tb, pg.SuperDSN("postgres"))
	password = rand.Text()
	vaulttest.Exec(tb, conn, `SELECT pg_advisory_xact_lock(1);
		DO $$ BEGIN CREATE ROLE orders_readers NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
		CREATE ROLE vault LOGIN CREATEROLE PASSWORD '`+password+`';
		GRANT orders_readers TO vault WITH ADMIN OPTION; GRANT pg_signal_backend TO vault`)
	vaulttest.Exec(tb, conn, "CREATE DATABASE orders")
	return password
}

// commands returns the blocks of a page that are for a shell, as one script.
func commands(tb testing.TB, page string) string {
	tb.Helper()
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)```\n").FindAllStringSubmatch(string(read(tb, page)), -1) {
		script.WriteString(block[1])
	}
	return script.String()
}

// stintdIn puts this stintd into a folder, and returns what runs it there.
func stintdIn(tb testing.TB, dir string) string {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		tb.Fatal(err)
	}
	write(tb, bin+"/stintd", "#!/bin/sh\n"+runMain+"=1 exec '"+self+"' \"$@\"\n")
	if err := os.Chmod(bin+"/stintd", 0o700); err != nil {
		tb.Fatal(err)
	}
	return bin
}

// exampleVault sets a Vault that has nothing up for deploy/, by running the commands of deploy/vault/README.md in a copy of that
// folder as they are written, the last of which is `stintd check`. Replaced are addresses: of the OIDC discovery provider, of
// the database, which here speaks no TLS, and the folder /etc/stint. The password comes on standard input, as the page says.
func exampleVault(tb testing.TB, vault *servertest.Vault, pg *servertest.Postgres) (dir, token, said string) {
	tb.Helper()
	jwt := vaulttest.NewSigner(tb, vaulttest.SPIFFEID)
	dir = deployed(tb, vault, jwt)
	here := filepath.Join(dir, "vault")
	if err := os.Mkdir(here, 0o700); err != nil {
		tb.Fatal(err)
	}
	copyFiles(tb, "../../deploy/vault/*.hcl", here)
	copyFiles(tb, "../../deploy/vault/*.sql", here)
	script := strings.NewReplacer(
		"oidc_discovery_url=https://oidc.example.org", "oidc_discovery_url="+discovery(tb, jwt),
		"@orders.db.example.org/orders?sslmode=verify-full", "@"+pg.Addr+"/orders?sslmode=disable",
		"/etc/stint/", dir+"/etc/",
	).Replace(commands(tb, "../../deploy/vault/README.md"))
	if vaultDir() == "/nonexistent" {
		servertest.Program(tb, "vault")
	}
	cmd := exec.CommandContext(tb.Context(), "sh", "-eu", "-c", script)
	cmd.Dir, cmd.Stdin = here, strings.NewReader(ordersDatabase(tb, pg))
	cmd.Env = []string{
		"PATH=" + stintdIn(tb, dir) + ":" + vaultDir() + ":/usr/bin:/bin", "HOME=" + dir, "VAULT_ADDR=" + vault.Addr, "VAULT_TOKEN=" + vault.RootToken,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("deploy/vault/README.md: %v\n%s", err, out)
	}
	return dir, here + "/check-token", string(out)
}

// TestCheckDeployment sets a Vault and a database up as deploy/vault/README.md says, and checks deploy/stint.hcl with
// deploy/resources.d: nothing at all is found, and nothing is changed. Then it plants faults in the configuration.
func TestCheckDeployment(t *testing.T) {
	t.Parallel()
	server := servertest.StartVault(t, servertest.VaultOptions{})
	dir, token, said := exampleVault(t, server, servers.Postgres(t))
	if !strings.HasSuffix(said, "\nok: nothing found\n") {
		t.Errorf("the commands of README.md end with %s", tail(said))
	}
	config := dir + "/etc/stint.hcl"
	for _, flags := range [][]string{nil, {"--probe"}} {
		if code, found := check(t, dir, config, append(flags, "--vault-token-file", token)...); code != 0 || len(found) != 0 {
			t.Errorf("check %v of deploy/ exits with %d: %+v", flags, code, found)
		}
	}
	if _, err := os.Stat(dir + "/data"); !os.IsNotExist(err) {
		t.Errorf("check made the data directory: %v", err)
	}

	good := string(read(t, config))
	for name, tt := range map[string]struct {
		old, to string
		codes   []string
		texts   []string
	}{
		"unknown": {old: "task_trust_domain", to: "task_trust_domian", codes: []string{"configuration"}, texts: []string{
			fmt.Sprintf("unknown.hcl:%d", 1+strings.Count(good[:strings.Index(good, "task_trust_domain")], "\n")), "task_trust_domian", "task_trust_domain", //nolint:gocritic // it is there
		}},
		"tokenrole": {old: `token_role = "stint"`, to: `token_role = "nope"`, codes: []string{"own-policy-broad", "own-token-right-missing"}, texts: []string{"auth/token/create/nope"}},
		"login":     {old: `role     = "stint"`, to: `role     = "nobody"`, codes: []string{"vault-login"}, texts: []string{"vault/prod"}},
		"address":   {old: server.Addr, to: "http://" + servertest.FreeAddress(t), codes: []string{"vault-unreachable"}, texts: []string{"vault/prod"}},
		"socket":    {old: "/api.sock", to: "/nothing.sock", codes: []string{"identity", "not-asked"}, texts: []string{"identity"}},
		"issuer":    {old: "root-ca.pem", to: "nothing.pem", codes: []string{"backend"}, texts: []string{"stepca/internal", "nothing.pem"}},
		"audit":     {old: "audit.key", to: "nothing.key", codes: []string{"audit-key"}, texts: []string{"stintd audit key"}},
	} {
		if !strings.Contains(good, tt.old) {
			t.Fatalf("%s: the configuration has no %q", name, tt.old)
		}
		path := filepath.Join(dir, name+".hcl")
		write(t, path, strings.Replace(good, tt.old, tt.to, 1))
		code, found := check(t, dir, path, "--vault-token-file", token)
		codes := codesOf(found)
		slices.Sort(codes)
		if codes = slices.Compact(codes); code != exitBreaks || !slices.Equal(codes, tt.codes) {
			t.Errorf("%s: check exits with %d and finds %v, want %v: %+v", name, code, codes, tt.codes, found)
		}
		finds(t, found, plugins.Breaks, tt.texts...)
	}
	root := dir + "/root-token" // the token of the example may read the policies of its own roles only
	write(t, root, server.RootToken)
	code, found := check(t, dir, rolePolicy(t, dir, good), "--vault-token-file", root)
	if codes := codesOf(found); code != exitBreaks || !slices.Equal(codes, []string{"policy-unused", "role-policy-missing"}) {
		t.Errorf("check of a role without its policy exits with %d: %+v", code, found)
	}
	finds(t, found, plugins.Breaks, "stint-missing")
}

// rolePolicy writes a configuration whose role names a policy that Vault does not have.
func rolePolicy(tb testing.TB, dir, text string) string {
	tb.Helper()
	resources := filepath.Join(dir, "resources")
	if err := os.Mkdir(resources, 0o700); err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"roles.yaml", "profiles.yaml", "policies.yaml"} {
		yaml := read(tb, filepath.Join(dir, "etc/resources.d", name))
		write(tb, filepath.Join(resources, name), string(bytes.ReplaceAll(yaml, []byte("policy: stint-orders-db-read"), []byte("policy: stint-missing"))))
	}
	path := filepath.Join(dir, "policy.hcl")
	write(tb, path, strings.Replace(text, dir+"/etc/resources.d", resources, 1))
	return path
}
