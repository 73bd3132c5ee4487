package resource_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
)

// backend says of a role what the role's section says: {"ends": 1, "exposure": "5s", "max": "1h", "csr": true}. Without
// an exposure there is no bound. Nothing is ever issued here.
type backend struct {
	plugins.Backend

	section string
}

// Descriptor names the section.
func (b backend) Descriptor() plugins.Descriptor {
	return plugins.Descriptor{Type: "fake", Section: b.section}
}

// CheckRole reads the section.
func (b backend) CheckRole(role plugins.Role) (plugins.RoleInfo, error) {
	var cfg struct {
		Ends          plugins.Ends
		Exposure, Max string
		CSR           bool
		Note          any
	}
	if len(role.Config) == 0 {
		return plugins.RoleInfo{}, errors.New(b.section + " is missing")
	}
	dec := json.NewDecoder(bytes.NewReader(role.Config))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return plugins.RoleInfo{}, errors.New(b.section + ": " + strings.TrimPrefix(err.Error(), "json: "))
	}
	info := plugins.RoleInfo{Ends: cfg.Ends, NeedsCSR: cfg.CSR, Fields: []string{"username", "password"}}
	info.Exposure.Reason = "so it is"
	if d, err := time.ParseDuration(cfg.Exposure); err == nil {
		info.Exposure.Bounded, info.Exposure.Max = true, d
	}
	if d, err := time.ParseDuration(cfg.Max); err == nil {
		info.MaxTTL = d
	}
	return info, nil
}

func backends() resource.Backends {
	return resource.Backends{"vault/prod": backend{section: "vault"}, "stepca/internal": backend{section: "certificate"}}
}

const (
	roleDoc = `apiVersion: stint.dev/v1
kind: Role
metadata:
  name: orders-db-read
  description: Rows # agents see it
spec:
  backend: vault/prod
  vault: {ends: 1, exposure: 2s, note: [1, 2.5, true, null, "x", 2026-11-23, {a: b}]}
  ttl: {default: 15m, max: 1h}
  exposure: {max: 5s}
  parameters:
    - {name: schema, description: Which, pattern: "[a-z]+", required: true}
    - {name: host, pattern: "db[0-9]"}
  deliver:
    env:  {PGUSER: "{{ .username }}", PGPASSWORD: "x{{.password}}"}
    with: {PGHOST: orders.db.example.org}
    files: {pgpass: "{{ .username }}:{{ .password }}"}
`
	profileDoc = `apiVersion: stint.dev/v1
kind: Profile
metadata: {name: invoice-agent}
spec:
  agents: ["spiffe://example.org/agent/invoice/*"]
  owner: billing-platform@example.org
  sponsor: head-of-billing@example.org
  purposes: [reconcile-invoices, answer-invoice]
  roles:
    - {name: orders-db-read, max_ttl: 30m, parameters: {schema: orders}}
  task: {default_ttl: 20m, max_ttl: 1h, idle_timeout: 60s, max_live: 5, max_live_leases: 20}
  permit: ceiling
`
	policyText = `apiVersion: stint.dev/v1
kind: Policy
metadata: {name: allow}
spec:
  cedar: |
    permit (principal, action, resource);
`
)

func parse(t *testing.T, text string) resource.Set {
	t.Helper()
	set, problems := resource.Parse([]resource.File{{Name: "r.yaml", YAML: text}}, backends())
	if len(problems) > 0 {
		t.Fatalf("parse: %v", problems)
	}
	return set
}

// problemsOf returns the problems of a text, one a line.
func problemsOf(t *testing.T, text string) string {
	t.Helper()
	set, problems := resource.Parse([]resource.File{{Name: "r.yaml", YAML: text}}, backends())
	if len(problems) > 0 && len(set.Documents()) > 0 {
		t.Error("a set with problems is not empty")
	}
	lines := make([]string, 0, len(problems))
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
