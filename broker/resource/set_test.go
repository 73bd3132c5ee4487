package resource_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/resource"
)

func ids(set resource.Set) string {
	var out []string
	for _, d := range set.Documents() {
		out = append(out, d.ID())
	}
	return strings.Join(out, " ")
}

func TestDocumentsKeepTheirText(t *testing.T) {
	files := []resource.File{
		{Name: "/etc/a.yaml", YAML: "# head\n---\n" + roleDoc + "---  # marker\n# about the profile\n" + profileDoc + "...\n"},
		{Name: "upload", YAML: "\ufeff" + policyText, Source: "api"},
	}
	set, problems := resource.Parse(files, backends())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	equal(t, "ids", ids(set), "policies/allow profiles/invoice-agent roles/orders-db-read")
	for id, want := range map[string]struct{ text, source string }{
		"roles/orders-db-read":   {roleDoc, "/etc/a.yaml"},
		"profiles/invoice-agent": {"# about the profile\n" + profileDoc, "/etc/a.yaml"},
		"policies/allow":         {policyText, "api"},
	} {
		d, ok := set.Document(id)
		if !ok {
			t.Fatalf("no %s", id)
		}
		equal(t, id, d.YAML, want.text)
		equal(t, id, d.Source, want.source)
		if len(d.ETag()) != 64 {
			t.Errorf("etag %q", d.ETag())
		}
	}
	var stored []resource.File // as the ledger gives them back
	for _, d := range set.Documents() {
		stored = append(stored, resource.File{Name: d.ID(), YAML: d.YAML, Source: d.Source})
	}
	again, problems := resource.Parse(stored, backends())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	equal(t, "hash", again.Hash(), set.Hash())
	equal(t, "diff", resource.Diff(set, again), []resource.Change{
		{ID: "policies/allow", Action: resource.Unchanged},
		{ID: "profiles/invoice-agent", Action: resource.Unchanged},
		{ID: "roles/orders-db-read", Action: resource.Unchanged},
	})
}

func TestUpdateWithoutDiff(t *testing.T) {
	first := parse(t, roleDoc+"---\n"+profileDoc)
	wider := strings.Replace(roleDoc, "max: 1h", "max: 2h", 1)
	second, problems := first.Update([]resource.File{{Name: "new.yaml", YAML: wider + "---\n" + policyText}}, backends())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	equal(t, "diff", resource.Diff(first, second), []resource.Change{
		{ID: "policies/allow", Action: resource.Created},
		{ID: "profiles/invoice-agent", Action: resource.Unchanged},
		{ID: "roles/orders-db-read", Action: resource.Updated},
	})
	third, problems := second.Without("policies/allow", backends())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	equal(t, "ids", ids(third), "profiles/invoice-agent roles/orders-db-read")
	equal(t, "deleted", resource.Diff(second, third)[0], resource.Change{ID: "policies/allow", Action: resource.Deleted})
	equal(t, "the set itself", ids(second), "policies/allow profiles/invoice-agent roles/orders-db-read")
	if first.Hash() == second.Hash() || second.Hash() == third.Hash() {
		t.Error("different sets have the same hash")
	}
	_, problems = third.Without("roles/orders-db-read", backends())
	if len(problems) != 1 || problems[0].String() != "r.yaml:28: profile invoice-agent names role orders-db-read, which there is not" {
		t.Errorf("a role that a profile names: %v", problems)
	}
	_, problems = first.Update([]resource.File{{Name: "n", YAML: strings.Replace(profileDoc, "orders-db-read", "gone", 1)}}, backends())
	if len(problems) != 1 {
		t.Errorf("an update is checked as a whole: %v", problems)
	}
}

func TestHashIgnoresLayout(t *testing.T) {
	a := parse(t, policyText)
	b := parse(t, "# a comment\nkind: Policy\nmetadata:\n  name: allow\napiVersion: stint.dev/v1\nspec:\n  cedar: \"permit (principal, action, resource);\\n\"\n")
	equal(t, "hash", b.Hash(), a.Hash())
	equal(t, "diff", resource.Diff(a, b), []resource.Change{{ID: "policies/allow", Action: resource.Updated}})
	moved, problems := resource.Parse([]resource.File{{Name: "r.yaml", YAML: policyText, Source: "api"}}, nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	equal(t, "moved", resource.Diff(a, moved), []resource.Change{{ID: "policies/allow", Action: resource.Updated}})
}

func TestTheEmptySet(t *testing.T) {
	set, problems := resource.Parse([]resource.File{{Name: "x", YAML: "# nothing\n---\n\n"}}, nil)
	if len(problems) > 0 || len(set.Documents()) > 0 || set.Hash() != (resource.Set{}).Hash() {
		t.Errorf("set %v, problems %v", set, problems)
	}
	if _, ok := set.Role("x"); ok {
		t.Error("an empty set has a role")
	}
	if _, ok := set.Document("roles/x"); ok {
		t.Error("an empty set has a document")
	}
	equal(t, "collection", resource.Kind("x").Collection(), "")
	equal(t, "position", resource.Position{File: "f"}.String(), "f")
}

func TestInlineDocuments(t *testing.T) {
	text := `--- {apiVersion: stint.dev/v1, kind: Policy, metadata: {name: a}, spec: {cedar: x}}
---	{apiVersion: stint.dev/v1, kind: Policy, metadata: {name: b}, spec: {cedar: x}}
`
	equal(t, "ids", ids(parse(t, text)), "policies/a policies/b")
	equal(t, "line", problemsOf(t, text+"--- {x: y}"), `r.yaml:3: apiVersion is missing
r.yaml:3: kind is missing
r.yaml:3: metadata is missing
r.yaml:3: spec is missing
r.yaml:3: unknown key x; known are apiVersion, kind, metadata, spec`)
}
