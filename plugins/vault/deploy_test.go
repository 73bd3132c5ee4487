package vault_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

const deployed = "../../deploy/vault"

// deployedRole is orders-db-read of deploy/resources.d.
func deployedRole() plugins.Role {
	return vaulttest.Role("orders-db-read", map[string]any{"path": "database/creds/stint-orders-ro", "policy": "stint-orders-db-read"})
}

// TestDeployedPolicies holds that the files that an operator writes into Vault are what the code needs.
func TestDeployedPolicies(t *testing.T) {
	own, err := vault.PolicyText(vault.Config{}, []plugins.Role{deployedRole()})
	if err != nil {
		t.Fatal(err)
	}
	name, role, err := vault.RolePolicyText(deployedRole())
	if err != nil {
		t.Fatal(err)
	}
	check, err := vault.CheckPolicyText([]plugins.Role{deployedRole()})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"stint.hcl": own, name + ".hcl": role, "check.hcl": check} {
		got, failed := os.ReadFile(filepath.Join(deployed, file))
		if failed != nil {
			t.Fatal(failed)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
	readme, err := os.ReadFile(filepath.Join(deployed, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	statements, err := os.ReadFile(filepath.Join(deployed, "revocation.sql"))
	if err != nil || string(statements) != vault.PostgreSQLRevocation+"\n" {
		t.Errorf("revocation.sql: %v, %q", err, statements)
	}
	for _, setting := range vault.TokenRole() {
		if !strings.Contains(string(readme), setting) {
			t.Errorf("README.md does not set %s", setting)
		}
	}
}

// TestFields lets an engine answer in many shapes.
func TestFields(t *testing.T) {
	data := map[string]any{
		"username": "u", "password": "p\"q", "port": 5432, "tls": true, "ca_chain": []string{"A", "B"},
		"nothing": nil, "nested": map[string]any{"a": 1}, "mixed": []any{"a", 1}, "serial_number": "17:2a",
	}
	for name, tt := range map[string]struct {
		section map[string]any
		want    map[string]string
		ref     string
	}{
		"all": {
			nil,
			map[string]string{"username": "u", "password": "p\"q", "port": "5432", "tls": "true", "ca_chain": "A\nB", "serial_number": "17:2a"},
			"u",
		},
		"renamed":           {map[string]any{"fields": map[string]string{"PGPASSWORD": "password"}}, map[string]string{"PGPASSWORD": "p\"q"}, "u"},
		"a named reference": {map[string]any{"public_ref": "serial_number", "fields": map[string]string{"p": "port"}}, map[string]string{"p": "5432"}, "17:2a"},
		"missing":           {map[string]any{"fields": map[string]string{"x": "none"}}, nil, ""},
		"nested":            {map[string]any{"fields": map[string]string{"x": "nested"}}, nil, ""},
		"mixed":             {map[string]any{"fields": map[string]string{"x": "mixed"}}, nil, ""},
		"no such reference": {map[string]any{"public_ref": "nothing"}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			section := map[string]any{"path": credsPath, "policy": "stint-orders"}
			maps.Copy(section, tt.section)
			f, b := newFakeVault(t)
			f.set(credsPath, answers{200, map[string]any{"lease_id": leaseID, "lease_duration": 30, "data": data}})
			req := request(vaulttest.Role("orders", section), time.Minute, nil)
			var err error
			if req.Prepared, err = b.Prepare(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			cred, err := b.Issue(t.Context(), req)
			if (err != nil) != (tt.want == nil) {
				t.Fatalf("got %v", err)
			}
			if err != nil && !f.called("sys/leases/revoke") {
				t.Error("what could not be handed over was not revoked")
			}
			var got map[string]string
			for key, v := range cred.Fields {
				if got == nil {
					got = map[string]string{}
				}
				got[key] = string(v.Expose())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || cred.PublicRef != tt.ref {
				t.Errorf("public reference %q; %s", cred.PublicRef, diff)
			}
		})
	}
}
