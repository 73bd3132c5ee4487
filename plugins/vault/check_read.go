package vault

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// CheckPolicy is the usual name of the policy of CheckPolicyText. The token role cannot hand it out.
const CheckPolicy = "stint_check"

// CheckPolicyText returns the Vault policy, in HCL, of what CheckWith reads beyond PolicyText. It is for a token of its
// own: serving must not have it. Its error wraps plugins.ErrInvalidRole.
func CheckPolicyText(roles []plugins.Role) (string, error) {
	paths := map[string]bool{"sys/policies/acl/" + StintPolicy: true, "sys/mounts/auth/token/tune": true}
	for _, role := range roles {
		r, err := recipe.Parse(role)
		if err != nil {
			return "", err
		}
		paths["sys/policies/acl/"+r.Policy] = true
		if r.Kind != recipe.Lease {
			continue
		}
		paths["sys/mounts/"+r.Mount()] = true
		paths["sys/mounts/"+r.Mount()+"/tune"] = true
		if path, ok := engineRole(r); ok {
			paths[path] = true
		}
		if r.Certificate() {
			paths[r.Mount()+"/config/crl"] = true
		}
	}
	var out strings.Builder
	out.WriteString("# For `stintd check --vault-token-file` only. Serving does not have these rights.\n")
	out.WriteString("path \"sys/policies/acl\" { capabilities = [\"list\"] }\n")
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		fmt.Fprintf(&out, "path %s { capabilities = [\"read\"] }\n", quote(path))
	}
	return out.String(), nil
}
