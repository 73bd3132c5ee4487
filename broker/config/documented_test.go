package config

import (
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

// keys are all keys by the heading under which docs/configuration.md explains them.
func keys() map[string]block {
	var c Config
	d := &decoder{at: map[string]hcl.Range{}}
	top := d.top(&c, nil)
	return map[string]block{
		"The file itself": {fields: top.fields},
		"listen":          listen(&c.Listen),
		"identity":        identity(&c.Identity),
		"audit":           audit(&c.Audit),
		"limits":          limits(&c.Limits),
		"teardown":        teardown(&c.Teardown),
		"reconcile":       reconciling(&c.Reconcile),
		"log":             logging(&c.Log),
		"admins":          {fields: map[string]field{"role": {}}},
		"ledger":          {fields: map[string]field{"stop_issuing_below": {}}},
		"backend":         {},
	}
}

// sections returns the page's sections by the first word of their headings in backticks, or the heading.
func sections(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for section := range strings.SplitSeq(string(page), "\n## ") {
		heading, text, _ := strings.Cut(section, "\n")
		if name, ok := strings.CutPrefix(heading, "`"); ok {
			heading = strings.FieldsFunc(name, func(r rune) bool { return r == '`' || r == ' ' })[0]
		}
		found[heading] += text
	}
	return found
}

// Each key has a row on the page for people, and each block a section.
func TestDocumented(t *testing.T) {
	page := sections(t)
	var c Config
	for kind := range new(decoder).top(&c, nil).blocks {
		if _, ok := keys()[kind]; !ok {
			t.Errorf("this test does not know the block %s", kind)
		}
	}
	for heading, b := range keys() {
		text, ok := page[heading]
		if !ok {
			t.Errorf("docs/configuration.md has no section on %s", heading)
		}
		for key := range b.fields {
			if !strings.Contains(text, "\n| `"+key+"` | ") {
				t.Errorf("docs/configuration.md: no row for %s in the section %s", key, heading)
			}
		}
		if rows := strings.Count(text, "\n| `"); heading != "backend" && rows != len(b.fields) {
			t.Errorf("docs/configuration.md: %d rows for %d keys in the section %s", rows, len(b.fields), heading)
		}
	}
}

// The configuration that comes with the project is accepted.
func TestDeployed(t *testing.T) {
	c, err := Load("../../deploy/stint.hcl", "stepca", "vault")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Backends) != 2 || len(c.Admins) != 3 || c.Resources == "" {
		t.Errorf("got %+v", c)
	}
}
