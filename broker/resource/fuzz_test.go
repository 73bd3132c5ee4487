package resource_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/resource"
)

// FuzzParse: any text either has problems, each with a line of the text, or its documents alone make the same set.
func FuzzParse(f *testing.F) {
	f.Add(roleDoc + "---\n" + profileDoc + "---\n" + policyText)
	f.Add("--- {apiVersion: stint.dev/v1, kind: Policy, metadata: {name: a}, spec: {cedar: x}}\n...\n--- # x\n")
	f.Add("%YAML 1.2\n---\na: &a [*a]\n")
	f.Add("\ufeffapiVersion: \"stint.dev/v1\"\nkind: >-\n  Role\n? [a]\n: b\n")
	f.Fuzz(func(t *testing.T, text string) {
		set, problems := resource.Parse([]resource.File{{Name: "f", YAML: text}}, backends())
		lines := 1 // by YAML's own breaks
		for _, br := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += strings.Count(text, br)
		}
		for _, p := range problems {
			if p.At.File != "f" || p.At.Line < 1 || p.At.Line > lines+1 || p.Message == "" {
				t.Fatalf("problem %q at line %d of %d", p.Message, p.At.Line, lines)
			}
		}
		if len(problems) > 0 {
			return
		}
		var files []resource.File
		for _, d := range set.Documents() {
			if !strings.Contains(text, d.YAML) {
				t.Fatalf("text of %s is not in the file: %q", d.ID(), d.YAML)
			}
			files = append(files, resource.File{Name: d.ID(), YAML: d.YAML})
		}
		again, problems := resource.Parse(files, backends())
		if len(problems) > 0 || again.Hash() != set.Hash() {
			t.Fatalf("documents alone: %v", problems)
		}
	})
}
