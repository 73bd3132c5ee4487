package resource_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
)

func TestParseRole(t *testing.T) {
	role, ok := parse(t, roleDoc).Role("orders-db-read")
	if !ok {
		t.Fatal("no role")
	}
	equal(t, "name", role.Name, "orders-db-read")
	equal(t, "description", role.Description, "Rows")
	equal(t, "backend", role.Backend, "vault/prod")
	equal(t, "ttl", []time.Duration{role.DefaultTTL, role.MaxTTL}, []time.Duration{15 * time.Minute, time.Hour})
	equal(t, "info", role.Info, plugins.RoleInfo{
		Ends: plugins.EndsRevocable, Exposure: plugins.Exposure{Bounded: true, Max: 2 * time.Second, Reason: "so it is"},
		Fields: []string{"username", "password"},
	})
	equal(t, "plugin", role.Plugin, plugins.Role{
		Name: "orders-db-read", Backend: "vault/prod", MaxTTL: time.Hour, Parameters: []string{"host", "schema"},
		Config: []byte(`{"ends":1,"exposure":"2s","note":[1,2.5,true,null,"x","2026-11-23",{"a":"b"}]}`),
	})
	equal(t, "deliver", role.Deliver, resource.Deliver{
		Env:   map[string]string{"PGUSER": "{{ .username }}", "PGPASSWORD": "x{{.password}}"},
		With:  map[string]string{"PGHOST": "orders.db.example.org"},
		Files: map[string]string{"pgpass": "{{ .username }}:{{ .password }}"},
	})
	p, ok := role.Parameter("schema")
	if !ok || !p.Required || p.Description != "Which" || p.Pattern.String() != "[a-z]+" {
		t.Errorf("parameter %+v, %v", p, ok)
	}
	equal(t, "position", role.At, resource.Position{File: "r.yaml", Line: 1})
}

func TestParseProfileAndPolicy(t *testing.T) {
	set := parse(t, "# all of it\n"+roleDoc+"---\n"+profileDoc+"--- # more\n"+policyText)
	p := set.Profiles()[0]
	equal(t, "owner", p.Owner, "billing-platform@example.org")
	equal(t, "sponsor", p.Sponsor, "head-of-billing@example.org")
	equal(t, "agents", p.Agents[0].String(), "spiffe://example.org/agent/invoice/*")
	equal(t, "purposes", p.Purposes, []string{"answer-invoice", "reconcile-invoices"})
	equal(t, "permit", p.Permit, resource.PermitCeiling)
	equal(t, "roles", p.RoleNames(), []string{"orders-db-read"})
	r, ok := p.Role("orders-db-read")
	if !ok || r.MaxTTL != 30*time.Minute || !r.Parameters["schema"].Match("orders") {
		t.Errorf("role %+v, %v", r, ok)
	}
	equal(t, "durations", []time.Duration{p.DefaultTTL, p.MaxTTL, p.IdleTimeout},
		[]time.Duration{20 * time.Minute, time.Hour, time.Minute})
	equal(t, "counts", []int{p.MaxLive, p.MaxLiveLeases}, []int{5, 20})
	equal(t, "position", p.At, resource.Position{File: "r.yaml", Line: 20})
	equal(t, "policy", set.Policies(), []resource.Policy{{
		Name: "allow", Cedar: "permit (principal, action, resource);\n", At: resource.Position{File: "r.yaml", Line: 38},
	}})
}

func TestDefaults(t *testing.T) {
	set := parse(t, `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: r}
spec: {backend: vault/prod, vault: {ends: 2}, ttl: {max: 10m}, renewable: false, accept_permanent: true}
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: p}
spec:
  agents: ["spiffe://example.org/a"]
  owner: a
  sponsor: b
  purposes: [x]
  roles: [{name: r, max_ttl: 1h}]
  permit: none
`)
	r, _ := set.Role("r")
	equal(t, "default ttl", r.DefaultTTL, 10*time.Minute)
	p := set.Profiles()[0]
	equal(t, "durations", []time.Duration{p.DefaultTTL, p.MaxTTL, p.IdleTimeout}, []time.Duration{15 * time.Minute, time.Hour, 0})
	equal(t, "counts", []int{p.MaxLive, p.MaxLiveLeases}, []int{10, 50})
	equal(t, "warnings", set.Warnings(), []string{
		"r.yaml:15: profile p allows role r for 1h, the role itself only 10m",
		"r.yaml:2: role r says accept_permanent, but its credentials do end",
	})
}

// TestProblems changes one thing in a good file and holds the answer, whole, to what a person should read.
func TestProblems(t *testing.T) {
	good := roleDoc + "---\n" + profileDoc + "---\n" + policyText
	equal(t, "good", problemsOf(t, good), "")
	tests := map[string]struct{ old, new, want string }{
		"key of a role": {
			"  backend: vault/prod", "  backend: vault/prod\n  expsure: {max: 1s}",
			"r.yaml:8: unknown key spec.expsure; did you mean exposure?",
		},
		"key below": {"default: 15m", "dfault: 15m", "r.yaml:9: unknown key spec.ttl.dfault; did you mean default?"},
		"key far off": {
			"{default: 15m,", "{zzzzzzzzzz: 15m,", "r.yaml:9: unknown key spec.ttl.zzzzzzzzzz; known are default, max",
		},
		"top key":           {"kind: Role", "kind: Role\nstatus: fine", "r.yaml:3: unknown key status; known are apiVersion, kind, metadata, spec"},
		"key of metadata":   {"  description: Rows", "  descriptn: Rows", "r.yaml:5: unknown key metadata.descriptn; did you mean description?"},
		"section of others": {"  vault: {", "  certificate: {}\n  vault: {", "r.yaml:8: unknown key spec.certificate; known are accept_permanent, backend, deliver, exposure, parameters, renewable, ttl, vault"},
		"api version":       {"apiVersion: stint.dev/v1\nkind: Role", "apiVersion: v1\nkind: Role", `r.yaml:1: apiVersion must be stint.dev/v1, not "v1"`},
		"kind": {
			"kind: Policy", "kind: Polcy",
			`r.yaml:33: unknown kind "Polcy"; did you mean Policy?`,
		},
		"name": {
			"name: allow", "name: Allow_it",
			`r.yaml:34: metadata.name must match ^[a-z][a-z0-9-]{0,62}$, not be "Allow_it"`,
		},
		"no name":          {"{name: allow}", "{}", "r.yaml:34: metadata.name is missing"},
		"no metadata":      {"metadata: {name: allow}\n", "", "r.yaml:32: metadata is missing"},
		"metadata":         {"metadata: {name: allow}", "metadata: [allow]", "r.yaml:34: metadata must be a mapping, not a list"},
		"description":      {"Rows # agents", "\"a\\nb\" # agents", "r.yaml:5: metadata.description must be one line of at most 1024 bytes"},
		"description kind": {"Rows # agents", "{} # agents", "r.yaml:5: metadata.description must be text, not a mapping"},
		"no spec":          {"spec:\n  cedar: |\n    permit (principal, action, resource);\n", "", "r.yaml:32: spec is missing"},
		"empty cedar":      {"cedar: |\n    permit (principal, action, resource);", `cedar: " "`, "r.yaml:36: spec.cedar is empty"},
		"long cedar": {
			"cedar: |\n    permit", "cedar: |\n    " + strings.Repeat("(", 65536) + "permit",
			"r.yaml:36: spec.cedar has 65574 bytes, more than 65536; split it",
		},
		"cedar kind":        {"cedar: |\n    permit (principal, action, resource);", `cedar: 5`, `r.yaml:36: spec.cedar must be text, not "5"`},
		"given twice":       {"---\n" + policyText, "---\n" + policyText + "---\n" + policyText, "r.yaml:39: Policy allow is given twice; first in r.yaml:32"},
		"key twice":         {"  ttl: {", "  ttl: {max: 1h}\n  ttl: {", `r.yaml:10: "ttl" is given twice; first in line 9`},
		"anchor":            {"kind: Policy", "kind: &k Policy", "r.yaml:33: anchors and aliases are not accepted; write the value out"},
		"merge key":         {"kind: Policy", "kind: Policy\n<<: {a: b}", "r.yaml:34: a key must be plain text"},
		"anchored key":      {"kind: Policy", "&k kind: Policy", "r.yaml:33: a key must be plain text"},
		"tag":               {"kind: Policy", "kind: !mine Policy", "r.yaml:33: the tag !mine is not accepted"},
		"not YAML":          {"kind: Policy", "kind: [", "r.yaml:35: not YAML: did not find expected ',' or ']'"},
		"not a mapping":     {"---\n" + policyText, "---\njust text\n", "r.yaml:32: a document must be a mapping with apiVersion, kind, metadata and spec"},
		"backend":           {"backend: vault/prod", "backend: vault/pro", `r.yaml:7: backend "vault/pro" is not configured; did you mean vault/prod?`},
		"no backend":        {"  backend: vault/prod\n", "", "r.yaml:7: spec.backend is missing"},
		"section kind":      {"vault: {ends: 1, exposure: 2s, note: [1, 2.5, true, null, \"x\", 2026-11-23, {a: b}]}", "vault: 5", `r.yaml:8: spec.vault must be a mapping, not "5"`},
		"section number":    {"note: [1,", "note: [.inf,", "r.yaml:8: spec.vault: json: unsupported value: +Inf"},
		"plugin refuses":    {"note: [1,", "nope: [1,", `r.yaml:8: vault/prod refuses role orders-db-read: vault: unknown field "nope"`},
		"no section":        {"  vault: {ends: 1, exposure: 2s, note: [1, 2.5, true, null, \"x\", 2026-11-23, {a: b}]}\n", "", "r.yaml:7: vault/prod refuses role orders-db-read: vault is missing"},
		"ends":              {"{ends: 1,", "{ends: 0,", "r.yaml:8: vault/prod does not say how credentials of role orders-db-read end"},
		"ends never":        {"{ends: 1,", "{ends: 3,", "r.yaml:8: credentials of role orders-db-read cannot be ended at all (so it is); accept_permanent: true accepts that"},
		"exposure":          {"exposure: 2s", "exposure: 2m", "r.yaml:10: exposure of role orders-db-read is 2m (so it is), longer than exposure.max, 5s"},
		"no bound":          {"exposure: 2s, ", "", "r.yaml:10: exposure of role orders-db-read has no bound (so it is), and exposure.max is 5s"},
		"no exposure":       {"exposure: {max: 5s}", "exposure: {}", "r.yaml:10: spec.exposure.max is missing"},
		"bound by backend":  {"exposure: 2s,", "exposure: 2s, max: 30m,", "r.yaml:9: spec.ttl.max is 1h, longer than vault/prod can bind for this role, 30m"},
		"no ttl":            {"  ttl: {default: 15m, max: 1h}\n", "", "r.yaml:7: spec.ttl is missing"},
		"no ttl max":        {"default: 15m, max: 1h", "default: 15m", "r.yaml:9: spec.ttl.max is missing"},
		"ttl order":         {"default: 15m, max: 1h", "default: 2h, max: 1h", "r.yaml:9: spec.ttl.default is 2h, longer than ttl.max, 1h"},
		"ttl text":          {"default: 15m, max: 1h", "default: soon, max: 1h", `r.yaml:9: spec.ttl.default must be a duration such as 60s, 15m or 1h, not "soon"`},
		"ttl fraction":      {"default: 15m, max: 1h", "default: 1500ms, max: 1h", "r.yaml:9: spec.ttl.default must be in whole seconds, from 1s to 8784h, not 1500ms"},
		"ttl kind":          {"ttl: {default: 15m, max: 1h}", "ttl: 15m", `r.yaml:9: spec.ttl must be a mapping, not "15m"`},
		"renewable":         {"  exposure: {max", "  renewable: true\n  exposure: {max", "r.yaml:10: spec.renewable is not possible: a credential ends with its ttl; the agent is issued another"},
		"flag":              {"  exposure: {max", "  accept_permanent: maybe\n  exposure: {max", `r.yaml:10: spec.accept_permanent must be true or false, not "maybe"`},
		"parameters":        {"parameters:\n", "parameters: {}\n  ignored:\n", "r.yaml:11: spec.parameters must be a list, not a mapping\nr.yaml:12: unknown key spec.ignored; known are accept_permanent, backend, deliver, exposure, parameters, renewable, ttl, vault"},
		"parameter name":    {"{name: host", "{name: Host", `r.yaml:13: parameter "Host" must match ^[a-z][a-z0-9_]{0,62}$`},
		"parameter twice":   {"{name: host", "{name: schema", "r.yaml:13: parameter schema is given twice"},
		"nameless":          {"{name: host, ", "{", "r.yaml:13: spec.parameters[1].name is missing"},
		"no pattern":        {`, pattern: "db[0-9]"`, "", "r.yaml:13: spec.parameters[1].pattern is missing"},
		"empty pattern":     {`"db[0-9]"`, `""`, "r.yaml:13: spec.parameters[1].pattern: pattern is empty"},
		"pattern":           {`"db[0-9]"`, `"a)(b"`, "r.yaml:13: spec.parameters[1].pattern: pattern: error parsing regexp: unexpected ): `a)(b`"},
		"pattern kind":      {`"db[0-9]"`, `7`, `r.yaml:13: spec.parameters[1].pattern must be text, not "7"`},
		"env name":          {"PGUSER:", "PG-USER:", "r.yaml:15: spec.deliver.env.PG-USER: the name must match ^[A-Za-z_][A-Za-z0-9_]*$"},
		"field":             {"{{.password}}", "{{.passwort}}", "r.yaml:15: spec.deliver.env.PGPASSWORD: there is no field passwort here; did you mean password?"},
		"template":          {"{{.password}}", "{{ if .password }}", "r.yaml:15: spec.deliver.env.PGPASSWORD: only {{ .field }} is possible in a template"},
		"secret in with":    {"orders.db.example.org", `"{{ .password }}"`, "r.yaml:16: spec.deliver.with.PGHOST: there is no field password here"},
		"in both":           {"PGHOST:", "PGUSER:", "r.yaml:16: PGUSER is in both env and with"},
		"file name":         {"pgpass:", "../pgpass:", "r.yaml:17: spec.deliver.files.../pgpass: the name must match ^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"},
		"template kind":     {"PGHOST: orders.db.example.org", "PGHOST: []", "r.yaml:16: spec.deliver.with.PGHOST must be text, not a list"},
		"agents":            {`"spiffe://example.org/agent/invoice/*"`, `"example.org/agent"`, `r.yaml:23: spec.agents[0]: pattern "example.org/agent" must begin with spiffe://`},
		"no agents":         {`["spiffe://example.org/agent/invoice/*"]`, `[]`, "r.yaml:23: spec.agents must name at least one pattern such as spiffe://example.org/agent/*"},
		"no owner":          {"  owner: billing-platform@example.org\n", "", "r.yaml:23: spec.owner is missing"},
		"empty sponsor":     {"sponsor: head-of-billing@example.org", `sponsor: " "`, "r.yaml:25: owner and sponsor must name somebody"},
		"same":              {"sponsor: head-of-billing@example.org", "sponsor: Billing-Platform@example.org", "r.yaml:25: sponsor must not be the owner: one answers for the agent's purpose, the other for its operation"},
		"no purposes":       {"[reconcile-invoices, answer-invoice]", "[]", "r.yaml:26: spec.purposes must hold at least one name"},
		"purpose":           {"[reconcile-invoices, answer-invoice]", "[Reconcile]", `r.yaml:26: spec.purposes: "Reconcile" must match ^[a-z][a-z0-9-]{0,62}$`},
		"purpose twice":     {"[reconcile-invoices, answer-invoice]", "[a, a]", "r.yaml:26: spec.purposes: a is given twice"},
		"no roles":          {"  roles:\n    - {name: orders-db-read, max_ttl: 30m, parameters: {schema: orders}}\n", "  roles: []\n", "r.yaml:27: spec.roles must hold at least one role"},
		"role twice":        {"  task: {", "    - {name: orders-db-read}\n  task: {", "r.yaml:29: spec.roles: role orders-db-read is given twice"},
		"role nameless":     {"  task: {", "    - {max_ttl: 5m}\n  task: {", "r.yaml:29: spec.roles[1].name is missing"},
		"unknown role":      {"- {name: orders-db-read, max_ttl", "- {name: orders-db-reed, max_ttl", "r.yaml:28: profile invoice-agent names role orders-db-reed, which there is not; did you mean orders-db-read?"},
		"unknown parameter": {"{schema: orders}", "{scheme: orders}", "r.yaml:28: profile invoice-agent narrows parameter scheme, which role orders-db-read does not have"},
		"narrower pattern":  {"{schema: orders}", "{schema: '['}", "r.yaml:28: spec.roles[0].parameters.schema: pattern: error parsing regexp: missing closing ]: `[`"},
		"count":             {"max_live: 5", "max_live: 0", `r.yaml:29: spec.task.max_live must be a whole number from 1 to 1000000, not "0"`},
		"count kind":        {"max_live: 5", "max_live: many", `r.yaml:29: spec.task.max_live must be a whole number from 1 to 1000000, not "many"`},
		"task order":        {"default_ttl: 20m", "default_ttl: 2h", "r.yaml:29: spec.task.default_ttl is 2h, longer than the longest task, 1h"},
		"permit":            {"permit: ceiling", "permit: all", `r.yaml:30: spec.permit must be ceiling (grants all of it) or none (only policies grant), not "all"`},
		"no permit":         {"  permit: ceiling\n", "", "r.yaml:23: spec.permit is missing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, tt.old) {
				t.Fatalf("the good file does not hold %q", tt.old)
			}
			equal(t, "problems", problemsOf(t, strings.Replace(good, tt.old, tt.new, 1)), tt.want)
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	text := strings.NewReplacer("backend: vault/prod", "backend: nope/nope", "permit: ceiling", "permit: x", "kind: Policy", "kind: x").
		Replace(roleDoc + "---\n" + profileDoc + "---\n" + policyText)
	equal(t, "problems", problemsOf(t, text), `r.yaml:7: backend "nope/nope" is not configured; known are stepca/internal, vault/prod
r.yaml:30: spec.permit must be ceiling (grants all of it) or none (only policies grant), not "x"
r.yaml:33: unknown kind "x"; known are Policy, Profile, Role`)
}

func TestOverlappingProfiles(t *testing.T) {
	second := strings.NewReplacer("name: invoice-agent", "name: all-agents", "invoice/*", "**").Replace(profileDoc)
	equal(t, "problems", problemsOf(t, roleDoc+"---\n"+profileDoc+"---\n"+second),
		"r.yaml:19: profiles all-agents and invoice-agent match the same agents: spiffe://example.org/agent/** and spiffe://example.org/agent/invoice/* overlap")
	second = strings.NewReplacer("name: invoice-agent", "name: others", "invoice/*", "orders/*").Replace(profileDoc)
	equal(t, "problems", problemsOf(t, roleDoc+"---\n"+profileDoc+"---\n"+second), "")
}

func TestTooManyParameters(t *testing.T) {
	var list strings.Builder
	for i := range 17 {
		list.WriteString("    - {name: p" + string(rune('a'+i)) + ", pattern: x}\n")
	}
	text := strings.Replace(roleDoc, "    - {name: host", list.String()+"    - {name: host", 1)
	equal(t, "problems", problemsOf(t, text), "r.yaml:28: a role has at most 16 parameters")
}

func TestLongValuesAreCut(t *testing.T) {
	text := strings.Replace(roleDoc, "default: 15m", "default: "+strings.Repeat("x", 100), 1)
	equal(t, "problems", problemsOf(t, text),
		`r.yaml:9: spec.ttl.default must be a duration such as 60s, 15m or 1h, not "`+strings.Repeat("x", 61)+`"…`)
}

func TestFieldsOfTemplates(t *testing.T) {
	certificate := `apiVersion: stint.dev/v1
kind: Role
metadata: {name: ledger-api}
spec:
  backend: stepca/internal
  certificate: {ends: 1, csr: true}
  ttl: {max: 15m}
  deliver:
    env: {CERT: "{{ .cert_file }}", KEY: "{{ .key_file }}", CA: "{{ .ca_file }}", DIR: "{{ .dir }}", NOT: "{{ .password }}"}
`
	equal(t, "certificate", problemsOf(t, certificate),
		"r.yaml:9: spec.deliver.env.NOT: there is no field password here; known are ca_file, cert_file, dir, key_file")
	equal(t, "secret", problemsOf(t, strings.Replace(roleDoc, "{{.password}}", "{{ .dir }}", 1)), "")
}
