package main

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// finding is a line of `stintd check --json`.
type finding struct {
	Severity, Code, Subject, Problem, Remedy string
}

// check runs `stintd check` and returns its exit status and findings.
func check(tb testing.TB, dir, config string, flags ...string) (int, []finding) {
	tb.Helper()
	code, out, errs := run(tb, dir, append([]string{"check", "--json", "--config", config}, flags...)...)
	var found []finding
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		tb.Fatalf("check prints %q, and on standard error %q: %v", out, errs, err)
	}
	return code, found
}

// finds expects a finding of a severity whose subject, problem and remedy hold these texts.
func finds(tb testing.TB, found []finding, severity plugins.Severity, texts ...string) {
	tb.Helper()
	for _, f := range found {
		all := f.Subject + "\n" + f.Problem + "\n" + f.Remedy
		holds := f.Severity == string(severity)
		for _, text := range texts {
			holds = holds && strings.Contains(all, text)
		}
		if holds {
			return
		}
	}
	tb.Errorf("no finding %s with %q among %+v", severity, texts, found)
}

// deployed copies deploy/ with every path and address moved to what the test has, and returns the folder.
func deployed(tb testing.TB, f *vaulttest.Fixture) string {
	tb.Helper()
	dir := shortDir(tb)
	for _, name := range []string{"etc", "etc/resources.d", "log"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	files, err := filepath.Glob("../../deploy/resources.d/*.yaml")
	if err != nil || len(files) == 0 {
		tb.Fatalf("deploy/resources.d: %v, %v", files, err)
	}
	for _, name := range files {
		write(tb, filepath.Join(dir, "etc/resources.d", filepath.Base(name)), string(read(tb, name)))
	}
	ca := newAuthority(tb)
	writeIssuer(tb, ca, dir, ca.cert.NotAfter)
	if _, err := makeKeys(dir+"/etc/audit.key", "stint.example.org/audit"); err != nil {
		tb.Fatal(err)
	}
	socket := dir + "/api.sock"
	serveWorkloadAPI(tb, socket, newWorkloadAPI(tb, ca, f.JWT))
	text := strings.NewReplacer(
		"/var/lib/stint", dir+"/data", "unix:///run/spire/sockets/agent.sock", "unix://"+socket, "/run/stint/", dir+"/",
		"/run/credentials/stintd.service/", dir+"/etc/", "/etc/stint/", dir+"/etc/", "/var/log/stint/", dir+"/log/",
		"https://vault.example.org:8200", f.Server.Addr,
	).Replace(string(read(tb, "../../deploy/stint.hcl")))
	text = regexp.MustCompile(`(?m)^\s*ca_file.*\n`).ReplaceAllString(text, "") // this Vault speaks plain HTTP
	write(tb, dir+"/stint.hcl", text)
	return dir
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

// TestCheckDeployment checks the configuration in deploy/ against a real Vault, finds nothing that breaks, and changes
// nothing; then finds what is planted.
func TestCheckDeployment(t *testing.T) {
	t.Parallel()
	f := sharedVault(t)
	dir := deployed(t, f)
	config := dir + "/stint.hcl"
	code, found := check(t, dir, config)
	if code != 0 && code != exitWeakens {
		t.Errorf("check of deploy/ exits with %d: %+v", code, found)
	}
	for _, x := range found { // the one warning there may be: serving's token reads no more than it needs
		if !strings.Contains(x.Problem, "the token may not read it") {
			t.Errorf("check of deploy/ says %+v", x)
		}
	}
	if _, err := os.Stat(dir + "/data"); !os.IsNotExist(err) {
		t.Errorf("check made the data directory: %v", err)
	}
	good := string(read(t, config))
	spoil := func(name, old, to string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("%s: the configuration has no %q", name, old)
		}
		path := filepath.Join(dir, name+".hcl")
		write(t, path, strings.Replace(good, old, to, 1))
		return path
	}
	expect := func(config string, texts ...string) {
		t.Helper()
		code, found := check(t, dir, config)
		if code != exitBreaks {
			t.Errorf("check of %s exits with %d", filepath.Base(config), code)
		}
		finds(t, found, plugins.Breaks, texts...)
	}

	above, _, _ := strings.Cut(good, "task_trust_domain")
	line := 1 + strings.Count(above, "\n")
	expect(spoil("unknown", "task_trust_domain", "task_trust_domian"), fmt.Sprintf("unknown.hcl:%d", line), "task_trust_domian", "task_trust_domain")
	expect(spoil("tokenrole", `token_role = "stint"`, `token_role = "nope"`), "auth/token/create/nope")
	expect(spoil("login", `role     = "stint"`, `role     = "nobody"`), "vault/prod")
	expect(spoil("address", f.Server.Addr, "http://"+freeLoopback(t)), "vault/prod")
	expect(spoil("socket", "/api.sock", "/nothing.sock"), "identity")
	expect(spoil("issuer", "root-ca.pem", "nothing.pem"), "stepca/internal", "nothing.pem")

	f.Policy(t, "e2e-check", `path "sys/policies/acl/*" { capabilities = ["read"] }`)
	token := f.TokenFile(t, "e2e-check").Token.File
	expect(rolePolicy(t, dir, regexp.MustCompile(`(?s)auth "jwt" \{.*?\n  \}`).ReplaceAllString(good, `auth "token" { file = "`+token+`" }`)), "stint-missing")

	write(t, dir+"/etc/audit.key", "no key")
	expect(config, "audit key")
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

// TestCheckResources names every fault of the resources at once, with file and line, without connecting anywhere.
func TestCheckResources(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, strings.NewReplacer("max: 15m", "maxx: 15m", "stepca/internal", "stepca/elsewhere").Replace(catalog(limits{}, certRole)))
	code, found := check(t, s.dir, s.file("stint.hcl"), "--offline")
	if code != exitBreaks {
		t.Errorf("check exits with %d", code)
	}
	finds(t, found, plugins.Breaks, "all.yaml:", "maxx")
	finds(t, found, plugins.Breaks, "all.yaml:", "stepca/elsewhere")
	if code, _, errs := run(t, s.dir, "serve", "--config", s.file("stint.hcl")); code == 0 || !strings.Contains(errs, "all.yaml:") {
		t.Errorf("serve with such resources exits with %d: %s", code, errs)
	}
}

// flip changes one bit of a record in a ledger that nobody else has open.
func flip(tb testing.TB, file string, index int64) {
	tb.Helper()
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		tb.Fatal(err)
	}
	var record []byte
	if err := db.QueryRowContext(tb.Context(), "SELECT json FROM audit_entries WHERE idx = ?", index).Scan(&record); err != nil {
		tb.Fatal(err)
	}
	record[bytes.Index(record, []byte("reconcile-invoices"))] ^= 1
	if _, err := db.ExecContext(tb.Context(), "UPDATE audit_entries SET json = ? WHERE idx = ?", record, index); err != nil {
		tb.Fatal(err)
	}
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
}

// TestBackup copies the ledger of a daemon that serves, verifies the copy, and finds one changed byte in it. A second
// daemon on the same data refuses to start.
func TestBackup(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 5*time.Minute, certRole)
	issue(t, task, certRole)
	if err := task.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	declared := s.record(t, `"event":"task.declared"`)
	s.record(t, `"event":"task.closed"`)

	copied := s.file("backup.db")
	if code, _, errs := run(t, s.dir, "backup", "--config", s.file("stint.hcl"), "--out", copied); code != 0 {
		t.Fatalf("backup exits with %d: %s", code, errs)
	}
	if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy has mode %v, %v", info.Mode(), err)
	}
	if code, _, errs := run(t, s.dir, "backup", "--config", s.file("stint.hcl"), "--out", copied); code == 0 {
		t.Errorf("backup over an older one exits with 0: %s", errs)
	}
	write(t, s.file("log.pub"), s.key+"\n")
	verify := func(ledger string) (int, string) {
		t.Helper()
		code, out, errs := run(t, s.dir, "audit", "verify", "--ledger", ledger, "--pubkey", "@"+s.file("log.pub"),
			"--checkpoints", s.file("log", "checkpoints.log"))
		return code, out + errs
	}
	if code, said := verify(copied); code != 0 || !strings.Contains(said, "ok") {
		t.Errorf("verify of the copy exits with %d: %s", code, said)
	}

	var index struct{ Index int64 }
	if err := json.Unmarshal([]byte(declared), &index); err != nil {
		t.Fatal(err)
	}
	flip(t, copied, index.Index)
	if code, said := verify(copied); code == 0 || !strings.Contains(said, fmt.Sprintf("record %d", index.Index)) {
		t.Errorf("verify with a flipped byte in record %d exits with %d: %s", index.Index, code, said)
	}

	code, _, errs := run(t, s.dir, "serve", "--config", s.file("stint.hcl"))
	if code == 0 || !strings.Contains(errs, s.file("data")) {
		t.Errorf("a second daemon exits with %d: %s", code, errs)
	}
	t.Logf("the second daemon says: %s", strings.TrimSpace(errs))
	d.stop(t)
}
