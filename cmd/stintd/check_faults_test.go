package main

import (
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
)

// codesOf returns the codes of findings.
func codesOf(found []finding) []string {
	out := make([]string, len(found))
	for i, f := range found {
		out[i] = f.Code
	}
	return out
}

// nameless replaces the site's SVID by one without a DNS name.
func nameless(t *testing.T, s *site) {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(99), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: stintPath}}, BasicConstraintsValid: true,
	}, s.ca.cert, key.Public(), s.ca.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file("identity", "svid.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, s.file("identity", "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
}

// reword changes the site's configuration.
func reword(t *testing.T, s *site, old, to string) {
	t.Helper()
	write(t, s.file("stint.hcl"), strings.Replace(string(read(t, s.file("stint.hcl"))), old, to, 1))
}

// dataDir makes the data directory as an operator might.
func dataDir(t *testing.T, s *site, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(s.file("data"), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.file("data"), mode); err != nil {
		t.Fatal(err)
	}
}

// TestCheckWithoutIdentity asks the backends that need none, says which it did not ask, and names every file of a CA that is
// missing, each with its backend once.
func TestCheckWithoutIdentity(t *testing.T) {
	t.Parallel()
	gone := "http://" + servertest.FreeAddress(t)
	backends := `
backend "vault" "one" {
  address = "` + gone + `"
  auth "token" { file = "/nonexistent/token" }
}
backend "vault" "two" {
  address = "` + gone + `"
  auth "jwt" {
    role     = "stint"
    audience = "vault"
  }
}
backend "vault" "three" {
  address = "no url"
  auth "token" { file = "/nonexistent/token" }
}
backend "stepca" "files" {
  issuer_cert = "/nonexistent/issuing-ca.pem"
  issuer_key  = "file:///nonexistent/issuing-ca.key"
}
`
	s := newSite(t, "identity { workload_api = \"unix:///nonexistent/api.sock\" }\n", embeddedCA+backends, catalog(limits{}, certRole))
	code, found := check(t, s.dir, s.file("stint.hcl"))
	if code != exitBreaks {
		t.Errorf("check exits with %d", code)
	}
	finds(t, found, plugins.Breaks, "identity")
	finds(t, found, plugins.Breaks, "vault/one", "connection refused")
	finds(t, found, plugins.Weakens, "vault/two", "not asked")
	if !slices.Contains(codesOf(found), "not-asked") {
		t.Errorf("no not-asked among %v", codesOf(found))
	}
	finds(t, found, plugins.Breaks, "backend vault/three", "address")
	finds(t, found, plugins.Breaks, "backend stepca/files: issuer_cert")
	finds(t, found, plugins.Breaks, "backend stepca/files: issuer_key")
	for _, f := range found {
		if strings.Count(f.Problem, "backend ") > 1 {
			t.Errorf("its backend is named twice: %s", f.Problem)
		}
	}
}

// TestCheckBesideAServingBroker finds nothing wrong with a data directory in use.
func TestCheckBesideAServingBroker(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	s.start(t)
	if code, found := check(t, s.dir, s.file("stint.hcl")); code != 0 || len(found) != 0 {
		t.Errorf("check exits with %d: %+v", code, found)
	}
}

// policyOf is a document of a policy.
func policyOf(name, text string) string {
	return "---\napiVersion: stint.dev/v1\nkind: Policy\nmetadata: {name: " + name + "}\nspec:\n  cedar: '" + text + "'\n"
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// newerLedger makes a ledger of a version that is not known yet.
func newerLedger(t *testing.T, dir string) {
	t.Helper()
	store, err := sqlite.Open(t.Context(), dir)
	if err == nil {
		err = store.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, sqlite.File))
	if err == nil {
		_, err = db.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)")
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// obey runs a remedy that is a command.
func obey(t *testing.T, dir, remedy string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", remedy)
	cmd.Env = []string{"PATH=" + stintdIn(t, dir) + ":/usr/bin:/bin", "HOME=" + dir}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", remedy, err, out)
	}
}

// ownTasks gives issued certificates the trust domain of Stint itself, which shows only in its SVID: nothing in the
// configuration says whose that will be.
func ownTasks(t *testing.T, s *site) {
	t.Helper()
	socket := filepath.Join(shortDir(t), "api.sock")
	serveWorkloadAPI(t, socket, newWorkloadAPI(t, s.ca, nil))
	reword(t, s, s.identityFiles(), fmt.Sprintf("identity { workload_api = %q }\n", "unix://"+socket))
	reword(t, s, "spiffe://"+trustDomain+"/ops/", "spiffe://partner.org/ops/")
	reword(t, s, "tasks."+trustDomain, trustDomain)
}

// TestCheckFindsFaultsAroundBackends plants one fault at a time in what is Stint's own. Each has a code and a remedy.
func TestCheckFindsFaultsAroundBackends(t *testing.T) {
	t.Parallel()
	good := catalog(limits{}, certRole)
	for name, tt := range map[string]struct {
		resources string
		spoil     func(*testing.T, *site)
		flags     []string
		severity  plugins.Severity
		code      string
		remedy    string
		runs      bool // the remedy is a command, which mends it
	}{
		"no fault":        {},
		"no DNS name":     {spoil: nameless, severity: plugins.Weakens, code: "svid-no-dns", remedy: "stintd setup spire"},
		"never permitted": {resources: strings.Replace(good, "permit: ceiling", "permit: none", 1), severity: plugins.Weakens, code: "role-never-permitted", remedy: `Stint::Role::"ledger-api"`},
		"in no profile":   {resources: strings.Replace(good, "---\n", "---\n"+strings.ReplaceAll(good[:strings.Index(good, "---\n")], certRole, "lonely")+"---\n", 1), severity: plugins.Weakens, code: "role-unlisted", remedy: "{name: lonely}"}, //nolint:gocritic // good has it
		"roles over the API": {spoil: func(t *testing.T, s *site) {
			t.Helper()
			reword(t, s, fmt.Sprintf("resources = %q", s.file("resources.d")), "")
		}, severity: plugins.Weakens, code: "roles-not-known", remedy: "resources ="},
		"a role that is wrong": {resources: strings.Replace(good, "usages", "usage", 1), severity: plugins.Breaks, code: "resources", remedy: "all.yaml:"},
		"a profile in vain":    {resources: good + strings.NewReplacer("invoice-agent", "invoice-auditor", "/agent/", "/auditor/", "permit: ceiling", "permit: none").Replace(good[strings.LastIndex(good, "---\n"):]), severity: plugins.Weakens, code: "role-never-permitted", remedy: `Stint::Profile::"invoice-auditor"`},
		"forbidden for all":    {resources: good + policyOf("no", `forbid (principal, action, resource == Stint::Role::"ledger-api");`), severity: plugins.Weakens, code: "role-never-permitted", remedy: "change policy/no, or take role ledger-api out of profile invoice-agent"},
		"an unused backend":    {resources: good + policyOf("no", `forbid (principal, action, resource in Stint::Backend::"vault/none");`), severity: plugins.Weakens, code: "resource-warning", remedy: "docs/resources.md"},
		"audit key is missing": {spoil: func(t *testing.T, s *site) { t.Helper(); remove(t, s.file("audit.key")) }, severity: plugins.Breaks, code: "audit-key", remedy: "stintd audit key", runs: true},
		"no audit key":         {spoil: func(t *testing.T, s *site) { t.Helper(); write(t, s.file("audit.key"), "no key") }, severity: plugins.Breaks, code: "audit-key", remedy: "stintd audit key"},
		"a file for data":      {spoil: func(t *testing.T, s *site) { t.Helper(); write(t, s.file("data"), "") }, severity: plugins.Breaks, code: "data-dir", remedy: "install -d"},
		"data for all":         {spoil: func(t *testing.T, s *site) { t.Helper(); dataDir(t, s, 0o755) }, severity: plugins.Weakens, code: "data-dir-mode", remedy: "chmod 0700", runs: true},
		"a newer ledger":       {spoil: func(t *testing.T, s *site) { t.Helper(); newerLedger(t, s.file("data")) }, severity: plugins.Weakens, code: "ledger-version", remedy: "backup"},
		"no ledger": {spoil: func(t *testing.T, s *site) {
			t.Helper()
			dataDir(t, s, 0o700)
			write(t, s.file("data", sqlite.File), strings.Repeat("no ledger ", 1000))
		}, severity: plugins.Breaks, code: "ledger"},
		"tasks in the domain of agents": {spoil: ownTasks, severity: plugins.Breaks, code: "identity", remedy: "what identity names"},
		"no such host":                  {spoil: func(t *testing.T, s *site) { t.Helper(); reword(t, s, s.http, "nowhere.invalid:7847") }, severity: plugins.Breaks, code: "listen"},
		"no audit key offline":          {spoil: func(t *testing.T, s *site) { t.Helper(); write(t, s.file("audit.key"), "no key") }, flags: []string{"--offline"}, severity: plugins.Breaks, code: "audit-key"},
		"elsewhere":                     {spoil: func(t *testing.T, s *site) { t.Helper(); reword(t, s, s.file("audit.key"), "/nowhere/audit.key") }, flags: []string{"--offline"}},
		"a token file too open":         {flags: []string{"--vault-token-file", "/etc/hostname"}, severity: plugins.Breaks, code: "flags"},
		"no such backend":               {flags: []string{"--vault-token-file", "vault/none=KEY"}, severity: plugins.Breaks, code: "flags"},
		"no such parameter":             {flags: []string{"--param", "nobody.x=y"}, severity: plugins.Breaks, code: "flags"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resources := tt.resources
			if resources == "" {
				resources = good
			}
			s := newSite(t, "", embeddedCA, resources)
			if tt.spoil != nil {
				tt.spoil(t, s)
			}
			for i := range tt.flags {
				tt.flags[i] = strings.Replace(tt.flags[i], "=KEY", "="+s.file("audit.key"), 1)
			}
			code, found := check(t, s.dir, s.file("stint.hcl"), tt.flags...)
			switch {
			case tt.code == "":
				if code != 0 || len(found) != 0 {
					t.Errorf("check exits with %d: %+v", code, found)
				}
			case !slices.Equal(codesOf(found), []string{tt.code}) || found[0].Severity != string(tt.severity) || !strings.Contains(found[0].Remedy, tt.remedy):
				t.Errorf("check exits with %d: %+v", code, found)
			case (tt.severity == plugins.Breaks) != (code == exitBreaks), (tt.severity == plugins.Weakens) != (code == exitWeakens):
				t.Errorf("check exits with %d for %s", code, tt.severity)
			case tt.runs:
				obey(t, s.dir, found[0].Remedy)
				if code, found = check(t, s.dir, s.file("stint.hcl"), tt.flags...); code != 0 || len(found) != 0 {
					t.Errorf("after its remedy check exits with %d: %+v", code, found)
				}
			}
		})
	}
}

// TestCheckOutput holds both forms of output, and the refusal of a third.
func TestCheckOutput(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	nameless(t, s)
	config := s.file("stint.hcl")
	code, text, _ := run(t, s.dir, "check", "--config", config)
	if code != exitWeakens || !strings.HasPrefix(text, "warning identity: spiffe://example.org/stint has no DNS name") ||
		!strings.Contains(text, "(svid-no-dns)\n        mend: spire-server entry update") {
		t.Errorf("text, %d: %s", code, text)
	}
	_, long, _ := run(t, s.dir, "check", "--config", config, "-o", "json")
	_, short, _ := run(t, s.dir, "check", "--config", config, "--json")
	if long != short || !strings.Contains(long, `"code": "svid-no-dns"`) {
		t.Errorf("-o json prints %s, and --json %s", long, short)
	}
	if code, out, errs := run(t, s.dir, "check", "--config", config, "-o", "yaml"); code != exitUsage || out != "" || !strings.Contains(errs, "text and json") {
		t.Errorf("-o yaml exits with %d: %s%s", code, out, errs)
	}
}

// TestCheckOfWhatHangs freezes a Vault: check says what it waits for, and ends in time with a finding.
func TestCheckOfWhatHangs(t *testing.T) {
	t.Parallel()
	server := servertest.StartVault(t, servertest.VaultOptions{})
	s := newSite(t, "", vaultBackend(server, `auth "token" { file = "`+"/nonexistent/token"+`" }`), catalog(limits{}, dbRole))
	server.Pause(t)
	defer server.Resume(t)
	began := time.Now()
	code, out, errs := run(t, s.dir, "check", "--config", s.file("stint.hcl"), "--timeout", "4s", "-o", "json")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	if code != exitBreaks || !strings.Contains(out, `"vault-unreachable"`) || !strings.Contains(errs, "vault/main: still at it\n") {
		t.Errorf("check exits with %d: %s%s", code, out, errs)
	}
}
