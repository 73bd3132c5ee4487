// Package stint_test keeps what is said about the packages, and the links between the pages, from rotting.
package stint_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// skipped are folders that are no part of the module's own text.
func skipped(path string, d fs.DirEntry) bool {
	name := d.Name()
	return path != "." && d.IsDir() &&
		(strings.HasPrefix(name, ".") || name == "testdata" || path == "tools" || path == "third_party")
}

// walk calls fn for each file of the module with the ending.
func walk(t *testing.T, ending string, fn func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case skipped(path, d):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ending):
			fn(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every package has exactly one package comment, and it begins by saying of what.
func TestPackageComments(t *testing.T) {
	begins := regexp.MustCompile(`^(Package|Command) \w+ `)
	comments := map[string][]string{}
	walk(t, ".go", func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(path)
		if _, ok := comments[dir]; !ok {
			comments[dir] = nil
		}
		if file.Doc.Text() != "" {
			comments[dir] = append(comments[dir], file.Doc.Text())
		}
	})
	if len(comments) < 20 {
		t.Fatalf("only %d packages were found", len(comments))
	}
	for dir, found := range comments {
		if len(found) != 1 {
			t.Errorf("%s has %d package comments", dir, len(found))
		} else if !begins.MatchString(found[0]) {
			t.Errorf("%s: the package comment does not begin with Package or Command: %.60q", dir, found[0])
		}
	}
}

// Links from one page to another lead somewhere.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	seen := 0
	walk(t, ".md", func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			seen++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
	})
	if seen < 20 {
		t.Errorf("only %d links were found", seen)
	}
}
