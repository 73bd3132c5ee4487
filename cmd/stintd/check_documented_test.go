package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFindingsAreDocumented holds docs/check.md to every code in the source.
func TestFindingsAreDocumented(t *testing.T) {
	t.Parallel()
	said := regexp.MustCompile(`(?:Code: |f\.Code = |code = |unreachable\(|breaks\(|weakens\(|broken\(|weak\(|faultsOf\(|resourceWarning\()"([a-z]+(?:-[a-z]+)*)"`)
	doc := string(read(t, "../../docs/check.md"))
	codes := map[string]bool{}
	for _, pattern := range []string{"../../plugins/vault/*.go", "../../plugins/stepca/*.go", "check*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range said.FindAllStringSubmatch(string(read(t, file)), -1) {
				codes[m[1]] = true
				if !strings.Contains(doc, "`"+m[1]+"`") {
					t.Errorf("docs/check.md does not name %s of %s", m[1], file)
				}
			}
		}
	}
	planted := plantedCodes(t)
	for _, m := range regexp.MustCompile("(?m)^\\| (`[a-z-]+`(?:, `[a-z-]+`)*) \\| (?:error|warning)").FindAllStringSubmatch(doc, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if !codes[strings.Trim(name, "`")] {
				t.Errorf("docs/check.md names %s, which nothing finds", name)
			}
			if !planted[strings.Trim(name, "`")] {
				t.Errorf("no test plants what %s finds", name)
			}
		}
	}
}

// plantedCodes are the codes that tests of check expect to find: in quotes, in an assertion, in no comment.
func plantedCodes(t *testing.T) map[string]bool {
	t.Helper()
	const list = `(?:\[\]string\{)?("[a-z-]+"(?:, "[a-z-]+")*)`
	asserted := []*regexp.Regexp{
		regexp.MustCompile(`\b(?:breaks\(|weakens\(|one\(t, plugins\.[A-Z][a-z]+, )` + list), // the finding of a misdeed
		regexp.MustCompile(`\b[cC]odes?(?:: +| [!=]= )` + list),                              // a field
		regexp.MustCompile(`\b(?:codesOf\(found\)|codes), ` + list),                          // all that was found
		regexp.MustCompile(`\bprobes\(t, c, [^"]+, ` + list),                                 // all that a probe found
		regexp.MustCompile(`"(?:error|warning) ([a-z-]+) [^"]+"`),                            // with its severity
		regexp.MustCompile(`"([a-z-]+) (?:error|warning)"`),
	}
	code := regexp.MustCompile(`[a-z-]+`)
	codes := map[string]bool{}
	for _, pattern := range []string{"../../plugins/vault/check*_test.go", "../../plugins/stepca/*check*_test.go", "*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for line := range strings.Lines(string(read(t, file))) {
				said, _, _ := strings.Cut(line, "// ")
				for _, expects := range asserted {
					for _, m := range expects.FindAllStringSubmatch(said, -1) {
						for _, name := range code.FindAllString(m[1], -1) {
							codes[name] = true
						}
					}
				}
			}
		}
	}
	return codes
}
