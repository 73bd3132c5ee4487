package vault_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// with adds roles to a set-up without findings, and the policies that they need.
func (c checked) with(t *testing.T, roles ...plugins.Role) checked {
	t.Helper()
	c.f.Apply(t, roles...)
	c.roles = append(slices.Clone(c.roles), roles...)
	c.f.Policy(t, vault.CheckPolicy, mustCheckPolicy(t, c.roles))
	return c
}

// mount mounts an engine as an administrator would.
func (c checked) mount(t *testing.T, path, kind string) {
	t.Helper()
	if err := c.f.Root.Sys().MountWithContext(t.Context(), path, &vaultapi.MountInput{Type: kind}); err != nil {
		t.Fatal(err)
	}
}

// one checks, and expects exactly one finding.
func (c checked) one(t *testing.T, severity plugins.Severity, code, subject, remedy string) plugins.Finding {
	t.Helper()
	found := c.others(t)
	if len(found) != 1 || found[0].Severity != severity || found[0].Code != code || found[0].Subject != subject || !strings.Contains(found[0].Remedy, remedy) {
		t.Errorf("want %s %s of %s, found %+v", severity, code, subject, found)
		return plugins.Finding{}
	}
	return found[0]
}

// others checks, and returns what is not expected beside.
func (c checked) others(t *testing.T) []plugins.Finding {
	t.Helper()
	return slices.DeleteFunc(c.check(t), func(f plugins.Finding) bool { return f.Code == c.beside })
}

func (c checked) silent(t *testing.T, when string) {
	t.Helper()
	if found := c.others(t); len(found) != 0 {
		t.Errorf("%s: found %+v", when, found)
	}
}

// TestCheckOfRoles adds a role with a fault to a set-up without findings, and mends it.
func TestCheckOfRoles(t *testing.T) {
	good := goodSetup(t)
	good.silent(t, "in a good set-up")

	far := good.with(t, vaulttest.Role("far-db", map[string]any{"path": "far/creds/stint-far", "policy": "stint-far-db", "engine_end": "none"}))
	far.one(t, plugins.Breaks, "engine-missing", "role far-db", "vault secrets enable -path=far ")
	far.mount(t, "far", "aws")
	far.beside = "engine-no-end" // Vault alone ends what it makes at AWS
	missing := far.one(t, plugins.Breaks, "engine-role-missing", "role far-db", "vault write far/roles/stint-far ")
	if missing.Code != "" && !strings.Contains(missing.Remedy, "credential_type=iam_user") {
		t.Errorf("the remedy makes another kind: %s", missing.Remedy)
	}
	far.write(t, "far/roles/stint-far", map[string]any{"credential_type": "assumed_role", "role_arns": "arn:aws:iam::123456789012:role/x"})
	far.one(t, plugins.Breaks, "aws-sts", "role far-db", "vault write far/roles/stint-far credential_type=iam_user")
	far.write(t, "far/roles/stint-far", map[string]any{"credential_type": "iam_user", "role_arns": "", "policy_arns": "arn:aws:iam::aws:policy/ReadOnlyAccess"})
	far.silent(t, "with an aws role that vault can revoke")

	endless := vaulttest.Role("endless-cert", map[string]any{
		"path": "pki/issue/stint-internal", "policy": "stint-endless-cert", "data": map[string]any{"common_name": "agent.example.org"},
	})
	far.with(t, endless).one(t, plugins.Breaks, "engine-ttl", "role endless-cert", `{ttl: "{{ .ttl }}"}`)
	far.remove(t, "sys/policies/acl/stint-endless-cert")

	wrong := far
	wrong.roles = append(slices.Clone(far.roles), plugins.Role{Name: "wrong", Config: []byte(`{"path": "sys/seal"}`)})
	wrong.one(t, plugins.Breaks, "role-invalid", "role wrong", "vault section")
}

// TestCheckOfPoliciesThatCannotBeRead plants a text that Vault takes and Stint does not understand.
func TestCheckOfPoliciesThatCannotBeRead(t *testing.T) {
	c := goodSetup(t)
	odd := c.policy("stint-partner-key", `path "kv/data/partner" "twice" { capabilities = ["read"] }`, "")
	odd.spoil(t)
	c.one(t, plugins.Weakens, "policy-unreadable", "policy stint-partner-key", "writes policy stint-partner-key")
}

// TestCheckOfLogins finds a login that Vault refuses, whatever the kind.
func TestCheckOfLogins(t *testing.T) {
	f := shared(t)
	for name, auth := range map[string]vault.Auth{
		"jwt, another role": {JWT: &vault.JWTAuth{Mount: vaulttest.JWTMount, Role: "nobody", Audience: vaulttest.Audience, Source: f.JWT.Source}},
		"jwt, another audience": {JWT: &vault.JWTAuth{
			Mount: vaulttest.JWTMount, Role: "stint", Audience: "https://elsewhere.example.org", Source: f.JWT.Source,
		}},
		"approle": {AppRole: &vault.AppRoleAuth{RoleID: "nobody", SecretID: vaulttest.Static("no-secret")}},
		"token":   {Token: &vault.TokenAuth{File: "/nonexistent/token"}},
	} {
		cfg := f.Config()
		cfg.Auth = auth
		found := backend(t, cfg).CheckWith(t.Context(), secret.FromString(f.Server.RootToken), []plugins.Role{f.SSH(t)})
		if len(found) != 1 || found[0].Code != "vault-login" || found[0].Severity != plugins.Breaks || !strings.Contains(found[0].Remedy, "policy stint") {
			t.Errorf("%s: found %+v", name, found)
		}
	}
}

// TestCheckOfAHalfReadableVault gives check a token that may read only some of what it looks at: what it may read is found
// out, and what it may not is named, each path once.
func TestCheckOfAHalfReadableVault(t *testing.T) {
	c := goodSetup(t)
	c.f.Policy(t, vault.CheckPolicy, `path "sys/policies/acl/*" { capabilities = ["read"] }
path "database/roles/*" { capabilities = ["read"] }`)
	misdeeds := map[string]misdeed{}
	maps.Copy(misdeeds, c.roleMisdeeds(t))
	maps.Copy(misdeeds, c.tokenMisdeeds())
	for _, name := range []string{"sessions go on", "a policy allows more", "no orphans", "ssh leases too long", "no CRL"} {
		misdeeds[name].spoil(t)
	}
	found := c.check(t)
	codes := codesOf(found)
	slices.Sort(codes)
	// Only what may be read is found out: what engines are cannot be.
	if want := []string{"not-readable", "role-policy-broad", "token-role-not-orphan"}; !slices.Equal(codes, want) {
		t.Errorf("found %v, want %v: %+v", codes, want, found)
	}
	for _, f := range found {
		for _, path := range []string{"sys/mounts/ssh", "sys/mounts/database", "sys/policies/acl"} {
			if f.Code == "not-readable" && strings.Count(f.Problem+",", path+",") != 1 {
				t.Errorf("%s is not named once: %s", path, f.Problem)
			}
		}
	}
}

// TestCheckOfEndlessEngines: what such an engine makes, nothing but Vault ends, and the role has to say so.
func TestCheckOfEndlessEngines(t *testing.T) {
	section := map[string]any{"path": "consul/creds/stint-deploy", "policy": "stint-deploy", "engine_end": "none"}
	c := goodSetup(t).with(t, vaulttest.Role("deploy", section))
	c.mount(t, "consul", "consul")
	c.one(t, plugins.Weakens, "engine-no-end", "role deploy", "sys/leases/lookup/consul/creds/stint-deploy")

	for _, end := range []string{"", "lease", "maximum"} {
		section["engine_end"] = end
		if end == "" {
			delete(section, "engine_end")
		}
		c.roles[len(c.roles)-1] = vaulttest.Role("deploy", section)
		if codes := codesOf(c.check(t)); !slices.Contains(codes, "engine-end") || len(codes) != 2 {
			t.Errorf("engine_end %q at consul: found %v", end, codes)
		}
	}
}

// TestCheckOfStatedEnds: an event of MySQL stays where it was, and of other databases only the operator knows.
func TestCheckOfStatedEnds(t *testing.T) {
	c := goodSetup(t)
	mysql := databaseRole([]string{vault.MySQLEvent + mysqlUser}, []string{vault.MySQLRevocation})
	const document = `{"db": "admin", "roles": [{"role": "readWrite"}]}`
	other := databaseRole([]string{document}, []string{`{"db": "admin"}`})
	stays := databaseRole([]string{vaulttest.CreatesUser}, []string{vault.PostgreSQLRevocation})
	stays["renew_statements"] = []string{`SELECT 1`}
	for name, tt := range map[string]struct {
		engine map[string]any
		end    string
		remedy string // "" for none
	}{
		"mysql":                 {mysql, "", ""},
		"mysql at its maximum":  {mysql, "maximum", ""},
		"mysql with its lease":  {mysql, "lease", "engine_end: maximum"},
		"others, not stated":    {other, "", "engine_end: none"},
		"others, without end":   {other, "none", ""},
		"others, sessions":      {databaseRole([]string{document}, nil), "none", "revocation_statements="},
		"postgresql by default": {databaseRole([]string{vaulttest.CreatesUser}, []string{vault.PostgreSQLRevocation}), "", ""},
		"postgresql that stays": {stays, "lease", "engine_end: maximum"},
		"and says so":           {stays, "maximum", ""},
	} {
		c.write(t, databasePath, tt.engine)
		section := map[string]any{"path": "database/creds/stint-orders-ro", "policy": "stint-orders-db-read"}
		if tt.end != "" {
			section["engine_end"] = tt.end
		}
		i := slices.IndexFunc(c.roles, func(r plugins.Role) bool { return r.Name == "orders-db-read" })
		c.roles[i] = vaulttest.Role("orders-db-read", section)
		found := c.check(t)
		switch {
		case tt.remedy == "" && len(found) > 0:
			t.Errorf("%s: found %+v", name, found)
		case tt.remedy != "" && (len(found) != 1 || !strings.Contains(found[0].Remedy, tt.remedy)):
			t.Errorf("%s: found %+v", name, found)
		}
	}
}
