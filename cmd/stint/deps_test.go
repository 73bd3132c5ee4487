package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestLinksNoServer keeps what only the daemon needs out of a program that runs beside every agent.
func TestLinksNoServer(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains("\n"+string(out), "\ndatabase/sql\n") {
		t.Error("stint links database/sql")
	}
	const module = "github.com/stint-dev/stint/"
	pure := map[string]bool{module + "broker/audit": true, module + "broker/task": true}
	for line := range strings.Lines(string(out)) {
		path := strings.TrimSpace(line)
		for _, kept := range []string{
			"modernc.org/", "github.com/jackc/", "github.com/go-sql-driver/", "github.com/pressly/", "github.com/hashicorp/", "github.com/smallstep/",
			"github.com/cedar-policy/", module + "broker", module + "plugins/vault", module + "plugins/stepca",
			"testing",
		} {
			if (path == kept || strings.HasPrefix(path, strings.TrimSuffix(kept, "/")+"/")) && !pure[path] {
				t.Errorf("stint links %s", path)
			}
		}
	}
}
