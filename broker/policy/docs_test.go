package policy_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
)

// documented are the roles and the profile that docs/policy.md speaks of.
const documented = `
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: invoice-agent}
spec:
  agents: ["spiffe://example.org/agent/invoice/*"]
  owner: a
  sponsor: b
  purposes: [reconcile-invoices]
  roles: [{name: orders-db-read}, {name: ledger-api}]
  permit: ceiling
`

// TestTheDocumentationCompiles holds every policy of docs/policy.md to the schema, and every fact of the schema to the
// page.
func TestTheDocumentationCompiles(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	files := []resource.File{{Name: "documented", YAML: documented}}
	for _, name := range []string{"orders-db-read", "ledger-api", "ssh-otp", "payments-approve", "payments-create"} {
		files = append(files, resource.File{Name: name, YAML: "apiVersion: stint.dev/v1\nkind: Role\nmetadata: {name: " + name +
			"}\nspec: {backend: vault/prod, ttl: {max: 15m}, parameters: [{name: ip, pattern: '[0-9.]+'}]}\n"})
	}
	blocks := strings.Split(string(page), "```cedar\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("the page holds no policy")
	}
	for i, block := range blocks {
		text, _, _ := strings.Cut(block, "```")
		files = append(files, resource.File{Name: "block", YAML: policyDoc("block-"+string(rune('a'+i)), text)})
	}
	set, problems := resource.Parse(files, resource.Backends{"vault/prod": backend{}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if _, problems = policy.Compile(set); len(problems) > 0 {
		t.Error(problems)
	}
	for line := range strings.Lines(policy.Schema(set)) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		name = strings.TrimSuffix(name, "?")
		fact := ok && name != "context" && !strings.ContainsAny(name, `" /[`) && !strings.HasPrefix(name, "segment")
		if fact && !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("the page does not say what %s is", name)
		}
	}
}
