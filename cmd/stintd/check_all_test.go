package main

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/stepca"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// silence is an address that takes connections and never answers.
func silence(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// vaultNamed is a backend "vault" of a name with a login by token.
func vaultNamed(name, addr, tokenFile string) string {
	return "backend \"vault\" \"" + name + "\" {\n  address = \"" + addr + "\"\n  auth \"token\" { file = \"" + tokenFile + "\" }\n}\n"
}

// TestCheckNamesEverything breaks as much as it can at once: a Vault that check can read by halves, one that is sealed, one
// that is not there, one that never answers, a step-ca that is stopped, Stint's own SVID, its folder, its policies. Each is
// named, none hides another, no secret is printed, and it ends in time.
func TestCheckNamesEverything(t *testing.T) {
	t.Parallel()
	server, sealed := servertest.StartVault(t, servertest.VaultOptions{}), servertest.StartVault(t, servertest.VaultOptions{})
	f := vaultFor(t, server, servers.Postgres(t))
	own := f.TokenFile(t).Token.File
	f.Policy(t, "e2e-half", `path "sys/policies/acl/*" { capabilities = ["read"] }`)
	half := f.TokenFile(t, "e2e-half").Token.File
	if err := f.Root.Sys().DeletePolicyWithContext(t.Context(), "stint-orders-db-read"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Root.Logical().WriteWithContext(t.Context(), "auth/token/roles/stint", map[string]any{"token_period": "1h"}); err != nil {
		t.Fatal(err)
	}
	sealed.Seal(t)
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Template: stepca.ProvisionerTemplate})
	s := newSite(t, "", vaultNamed("main", server.Addr, own)+vaultNamed("sealed", sealed.Addr, own)+
		vaultNamed("gone", "http://"+servertest.FreeAddress(t), own)+vaultNamed("silent", "http://"+silence(t), own)+embeddedCA+remoteCA(t, ca),
		strings.Replace(catalog(limits{}, dbRole, otpRole, certRole, remoteRole), "permit: ceiling", "permit: none", 1))
	ca.Stop(t)
	nameless(t, s)
	dataDir(t, s, 0o755)
	write(t, s.file("audit.key"), "no key")
	reword(t, s, s.http, "nowhere.invalid:7847")

	began := time.Now()
	code, out, errs := run(t, s.dir, "check", "--config", s.file("stint.hcl"), "--vault-token-file", "vault/main="+half, "--json", "--probe",
		"--param", otpRole+".ip=10.0.0.9", "--param", "nobody.x=y", "--timeout", "20s")
	if took := time.Since(began); took > 70*time.Second { // 20 s, and half a minute for what a probe would have to end
		t.Errorf("it took %s", took)
	}
	var found []finding
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("check prints %q, and on standard error %q: %v", out, errs, err)
	}
	if code != exitBreaks {
		t.Errorf("check exits with %d", code)
	}
	got := codesAndSubjects(t, found)
	for _, want := range []string{
		"svid-no-dns identity", "data-dir-mode data directory", "audit-key audit key", "listen listen.http", "flags flags",
		"vault-unreachable vault/sealed", "vault-unreachable vault/gone", "vault-unreachable vault/silent", "ca-unreachable stepca/remote step-ca",
		"role-policy-missing vault/main role " + dbRole, "token-role-ttl vault/main token role stint", "not-readable vault/main check",
		"probe-prepare vault/main role " + dbRole, "probe-issue stepca/remote role " + remoteRole, "role-never-permitted resources",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s among %s", want, strings.Join(got, "\n"))
		}
	}
	if !strings.Contains(errs, "vault/silent: still at it\n") {
		t.Errorf("it does not say what it waits for: %s", errs)
	}
	for _, secret := range []string{string(read(t, own)), string(read(t, half)), server.RootToken, privatePart(t, ca.ProvisionerKey)} {
		if secret = strings.TrimSpace(secret); strings.Contains(out+errs, secret) {
			t.Error("a secret is printed")
		}
	}
	if n := vaulttest.Users(t, vaulttest.Connect(t, servers.Postgres(t).SuperDSN("postgres")), "v-token-task-check-%"); n != 0 {
		t.Errorf("the probe left %d database users", n)
	}
}

// codesAndSubjects returns what was found of what, each of which says what is wrong and what mends it.
func codesAndSubjects(t *testing.T, found []finding) []string {
	t.Helper()
	var out []string
	for _, x := range found {
		out = append(out, x.Code+" "+x.Subject)
		if x.Problem == "" || x.Remedy == "" {
			t.Errorf("it has no problem or no remedy: %+v", x)
		}
	}
	return out
}

// privatePart returns what is secret of a key.
func privatePart(t *testing.T, key jose.JSONWebKey) string {
	t.Helper()
	text, err := key.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var jwk struct{ D string }
	if err := json.Unmarshal(text, &jwk); err != nil || jwk.D == "" {
		t.Fatalf("no private key: %v", err)
	}
	return jwk.D
}
