package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestEveryCommandIsDocumentedAndRun holds the command tree against docs/cli.md and the scripts.
func TestEveryCommandIsDocumentedAndRun(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts := readScripts(t)
	root := (&app{}).root()
	visit(root, func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		words := strings.Fields(path)
		documented := strings.Contains(string(page), path)
		if words[1] == "get" { // documented as "stint get profiles|roles|policies"
			documented = strings.Contains(string(page), "stint get profiles|roles|policies")
		}
		if !documented {
			t.Errorf("docs/cli.md does not name %q", path)
		}
		if !regexp.MustCompile(`(?m)(exec|exec-code \d+|'|^)\s*` + path + `( |$)`).MatchString(scripts) {
			t.Errorf("no script runs %q", path)
		}
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(string(page), "--"+f.Name) && !strings.Contains(string(page), "`-"+f.Shorthand+"`") &&
				!strings.Contains(string(page), " -"+f.Shorthand+" ") {
				t.Errorf("docs/cli.md does not name --%s of %q", f.Name, path)
			}
		})
	})
}

func visit(cmd *cobra.Command, f func(*cobra.Command)) {
	for _, child := range cmd.Commands() {
		if child.HasSubCommands() {
			visit(child, f)
			continue
		}
		f(child)
	}
}

func readScripts(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../../testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var all strings.Builder
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	return all.String()
}
