package vault_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

func TestPolicyText(t *testing.T) {
	kv := vaulttest.Role("partner", map[string]any{"path": "kv/data/partner", "policy": "stint-partner", "kind": "static"})
	kv.AcceptPermanent = true
	got, err := vault.PolicyText(vault.Config{}, []plugins.Role{fakeRole(), otpRole(), kv})
	if err != nil {
		t.Fatal(err)
	}
	const want = `# Of Stint's own token: make one token per credential, end tokens and leases, read them back.
path "auth/token/create/stint" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "auth/token/lookup-accessor" { capabilities = ["update"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/roles/stint" { capabilities = ["read"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "sys/leases/tidy" { capabilities = ["update"] }
# Only leases of Vault roles whose names begin with stint-.
path "sys/leases/lookup" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/stint-*", "ssh/creds/stint-*"]
  }
}
path "sys/leases/renew" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/stint-*", "ssh/creds/stint-*"]
    "increment" = []
  }
}
path "sys/leases/revoke" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/stint-*", "ssh/creds/stint-*"]
    "sync" = []
  }
}
# What exists under each role, for reconciliation only.
path "sys/leases/lookup/database/creds/stint-x/" { capabilities = ["list", "sudo"] }
path "sys/leases/lookup/ssh/creds/stint-otp/" { capabilities = ["list", "sudo"] }
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestPolicyTextPatterned: what is listed of a path with parameters is its folders and the leases below them, and no more.
func TestPolicyTextPatterned(t *testing.T) {
	for path, want := range map[string][]string{
		"db/creds/stint-{{ .params.a }}":           {"db/creds/", "db/creds/stint-*"},
		"db/{{ .params.a }}/stint-x":               {"db/", "db/+/stint-x/"},
		"db/{{ .params.a }}/stint-{{ .params.a }}": {"db/", "db/+/", "db/+/stint-*"},
	} {
		role := vaulttest.Role("r", map[string]any{"path": path, "policy": "stint-r"})
		role.Parameters = []string{"a"}
		text, err := vault.PolicyText(vault.Config{}, []plugins.Role{role})
		if err != nil {
			t.Fatal(err)
		}
		_, listing, _ := strings.Cut(text, "# What exists")
		var got []string
		for line := range strings.Lines(listing) {
			if rest, ok := strings.CutPrefix(line, `path "sys/leases/lookup/`); ok {
				got = append(got, strings.TrimSuffix(rest, `" { capabilities = ["list", "sudo"] }`+"\n"))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestRolePolicyText(t *testing.T) {
	name, got, err := vault.RolePolicyText(otpRole())
	const want = `# Of the tokens of credentials of role build-host-otp: one call of one path.
path "ssh/creds/stint-otp" {
  capabilities = ["update"]
  required_parameters = ["ip"]
  allowed_parameters = {
    "ip" = ["10.0.0.*"]
  }
}
`
	if diff := cmp.Diff(want, got); err != nil || name != "stint-otp" || diff != "" {
		t.Errorf("%s, %v, %s", name, err, diff)
	}
	bad := otpRole()
	bad.Parameters = nil
	if _, _, err := vault.RolePolicyText(bad); !errors.Is(err, plugins.ErrInvalidRole) {
		t.Errorf("got %v", err)
	}
}

func otpRole() plugins.Role {
	role := vaulttest.Role("build-host-otp", map[string]any{
		"path": "ssh/creds/stint-otp", "data": map[string]any{"ip": "10.0.0.{{ .params.host }}"}, "policy": "stint-otp",
	})
	role.Parameters = []string{"host"}
	return role
}
