package secret_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// exposed lists every place outside of tests where material leaves a Value, and why it may. A new one is a decision: add
// it here, and say where the bytes go.
func exposed() map[string]string {
	return map[string]string{
		"broker/server/convert.go answerOf":                       "into the answer to the agent whom it was issued to",
		"cmd/stint/internal/cli/credential.go expose":             "to standard output, as the caller asked",
		"cmd/stint/internal/handover/deliver.go add":              "into the environment or private files of the command that is run",
		"cmd/stint/internal/handover/deliver.go writeCertificate": "into a private file: the key that was made here",
		"cmd/stint/internal/handover/save.go Save":                "into private files that the caller named",
		"cmd/stintd/demo_story.go redeem":                         "to the demo's own Vault, to show what the password is good for",
		"cmd/stintd/dev_vault_call.go client":                     "to the development Vault: its root token",
		"cmd/stintd/dev_vault.go startVault":                      "into the environment of the development Vault that needs it",
		"plugins/internal/database/mysql.go openMySQL":            "to the database, to log in",
		"plugins/internal/database/postgres.go askPostgres":       "to the database, to log in",
		"plugins/plugintest/checks.go checkNoSecret":              "looked for in texts where it must not be",
		"plugins/secret/secret.go Equal":                          "compares in constant time",
		"plugins/secret/secret.go Wipe":                           "overwrites it",
		"plugins/stepca/issuer.go parseKey":                       "into a parsed key, in memory",
		"plugins/stepca/token.go newTokens":                       "into a parsed key, in memory",
		"plugins/vault/internal/login/method.go login":            "to Vault, to log in",
		"plugins/vault/internal/rest/rest.go send":                "to Vault, as the token of a call",
	}
}

// TestExpose walks the module's code for calls of Expose.
func TestExpose(t *testing.T) {
	found := map[string]string{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(root, path)
		switch {
		case err != nil || relErr != nil:
			return err
		case d.IsDir() && (rel == "tools" || strings.HasPrefix(d.Name(), ".") && rel != "."):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			return exposures(path, filepath.ToSlash(rel), found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := exposed()
	for place := range found {
		found[place] = want[place]
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("places where a secret leaves its Value (-listed +found):\n%s", diff)
	}
}

// exposures adds the functions of a file that mention a method Expose, called or not.
func exposures(path, rel string, found map[string]string) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, decl := range file.Decls {
		name := "(package)"
		if fn, ok := decl.(*ast.FuncDecl); ok {
			name = fn.Name.Name
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Expose" {
				found[rel+" "+name] = ""
			}
			return true
		})
	}
	return nil
}
