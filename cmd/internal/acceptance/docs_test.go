package acceptance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// mark stands above a block of commands that are run against `stintd dev`, whose data directory is .stint.
const mark = "<!-- run: dev -->"

// want is in the comment of a command that must not exit with 0.
var want = regexp.MustCompile(`#.*\bexit (\d+)$`)

// command is one of a page.
type command struct {
	line int
	text string
	code int
}

// Every command of a marked block runs as it stands there, in the order of the page, with the exit code that its comment
// says, else 0. The commands of a page are one session in one directory, with a link to the folder docs in it.
func TestCommandsOfTheDocs(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"jq", "openssl", "python3"} {
		need(t, program, program)
	}
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	marked := map[string]bool{}
	for _, page := range append(pages, "../../../README.md") {
		commands := commandsOf(t, string(read(t, page)))
		if len(commands) == 0 {
			continue
		}
		marked[filepath.Base(page)] = true
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			d := startDev(t, []string{"--no-vault", "--data-dir", ".stint"})
			docs, err := filepath.Abs("../../../docs")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(docs, d.dir+"/docs"); err != nil {
				t.Fatal(err)
			}
			d.env = d.plain() // they source .stint/env themselves
			d.sh(t, script(commands)).exits(t, 0)
		})
	}
	for _, page := range []string{"README.md", "dev.md", "cli.md", "receipts.md"} {
		if !marked[page] {
			t.Errorf("%s has no commands that run", page)
		}
	}
}

// script runs commands one by one and ends at the first that exits otherwise than it should.
func script(commands []command) string {
	var b strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&b, "echo %s >&2\n{ %s\n}\ncode=$?\nif [ $code != %d ]; then echo 'line %d: exit code' $code, not %d >&2; exit 1; fi\n",
			quoted("$ "+c.text), c.text, c.code, c.line, c.code)
	}
	return b.String()
}

// quoted quotes for the shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// commandsOf reads the marked blocks: in console blocks the lines after "$ ", in sh blocks every line; a backslash at the
// end continues a command.
func commandsOf(tb testing.TB, page string) []command {
	tb.Helper()
	var out []command
	lines := strings.Split(page, "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] != mark {
			continue
		}
		kind := lines[i+1]
		if kind != "```console" && kind != "```sh" {
			tb.Fatalf("line %d: %s is not above a console or sh block but %q", i+1, mark, kind)
		}
		for i += 2; lines[i] != "```"; i++ {
			text, isCommand := strings.CutPrefix(lines[i], "$ ")
			if (!isCommand && kind == "```console") || strings.TrimSpace(text) == "" {
				continue
			}
			c := command{line: i + 1, text: text}
			for strings.HasSuffix(c.text, `\`) {
				i++
				c.text += "\n" + lines[i]
			}
			if found := want.FindStringSubmatch(c.text); found != nil {
				c.code, _ = strconv.Atoi(found[1]) // digits
			}
			out = append(out, c)
		}
	}
	return out
}
