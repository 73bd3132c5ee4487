package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// StintPolicy is the usual name of the policy of Stint's own token. It does not begin with "stint-", so that the token
// role cannot hand it out.
const StintPolicy = "stint"

// PolicyText returns the Vault policy, in HCL, that Stint's own token needs for these roles, and nothing more. Its
// error wraps plugins.ErrInvalidRole.
func PolicyText(cfg Config, roles []plugins.Role) (string, error) {
	cfg = cfg.withDefaults()
	globs, lists := map[string]bool{}, map[string]bool{}
	for _, role := range roles {
		r, err := recipe.Parse(role)
		if err != nil {
			return "", err
		}
		if r.Kind != recipe.Lease {
			continue
		}
		globs[r.LeaseGlob()] = true
		for _, folder := range r.Listings() {
			lists[folder] = true
		}
	}
	var out strings.Builder
	out.WriteString("# Of Stint's own token: make one token per credential, end tokens and leases, read them back.\n")
	for _, need := range ownNeeds(cfg) {
		fmt.Fprintf(&out, "path %s { capabilities = [%s] }\n", quote(need.path), quote(need.capability))
	}
	if len(globs) > 0 {
		writeLeaseRules(&out, slices.Sorted(maps.Keys(globs)))
	}
	if len(lists) > 0 {
		out.WriteString("# What exists under each role, for reconciliation only.\n")
	}
	for _, path := range slices.Sorted(maps.Keys(lists)) {
		fmt.Fprintf(&out, "path %s { capabilities = [\"list\", \"sudo\"] }\n", quote("sys/leases/lookup/"+path))
	}
	return out.String(), nil
}

// need is a path that Stint's own token uses.
type need struct{ path, capability string }

func ownNeeds(cfg Config) []need {
	return []need{
		{"auth/token/create/" + cfg.TokenRole, "update"},
		{"auth/token/revoke-accessor", "update"},
		{"auth/token/lookup-accessor", "update"},
		{"auth/token/renew-self", "update"},
		{"auth/token/lookup-self", "read"},
		{"auth/token/roles/" + cfg.TokenRole, "read"},
		{"sys/capabilities-self", "update"},
		{"sys/leases/tidy", "update"},
	}
}

// leaseNeeds are the paths whose use is limited to Stint's leases, with the other parameter of each.
func leaseNeeds() []need {
	return []need{{"sys/leases/lookup", ""}, {"sys/leases/renew", "increment"}, {"sys/leases/revoke", "sync"}}
}

func writeLeaseRules(out *strings.Builder, globs []string) {
	out.WriteString("# Only leases of Vault roles whose names begin with " + recipe.Prefix + ".\n")
	list := quoteList(globs)
	for _, n := range leaseNeeds() {
		fmt.Fprintf(out, "path %q {\n  capabilities = [\"update\"]\n  allowed_parameters = {\n    \"lease_id\" = %s\n", n.path, list)
		if n.capability != "" {
			fmt.Fprintf(out, "    %q = []\n", n.capability)
		}
		out.WriteString("  }\n}\n")
	}
}

// RolePolicyText returns the Vault policy, in HCL, of the tokens of one role's credentials, and its name. Its error
// wraps plugins.ErrInvalidRole.
func RolePolicyText(role plugins.Role) (name, text string, err error) {
	r, err := recipe.Parse(role)
	if err != nil {
		return "", "", err
	}
	rule := r.Rule()
	var out strings.Builder
	fmt.Fprintf(&out, "# Of the tokens of credentials of role %s: one call of one path.\n", printable(role.Name))
	fmt.Fprintf(&out, "path %s {\n  capabilities = [%s]\n", quote(rule.Path), quote(rule.Capability))
	if len(rule.Allowed) > 0 {
		keys := slices.Sorted(maps.Keys(rule.Allowed))
		fmt.Fprintf(&out, "  required_parameters = %s\n  allowed_parameters = {\n", quoteList(keys))
		for _, key := range keys {
			fmt.Fprintf(&out, "    %s = %s\n", quote(key), quoteList(rule.Allowed[key]))
		}
		out.WriteString("  }\n")
	}
	out.WriteString("}\n")
	return r.Policy, out.String(), nil
}

// TokenRole returns the settings of the token role that makes the tokens of credentials, for
// `vault write auth/token/roles/NAME`, sorted.
func TokenRole() []string {
	return []string{
		"allowed_policies_glob=" + recipe.Prefix + "*", "disallowed_policies=root", "orphan=true", "renewable=true",
		"token_no_default_policy=true", "token_type=service",
	}
}

func quoteList(items []string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = quote(item)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote writes a string as HCL reads it.
func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(string(text))
}

func printable(s string) string { return strings.Trim(quote(s), `"`) }

// errNoLeases is why a role cannot be listed.
var errNoLeases = errors.New("stored values have no leases")
