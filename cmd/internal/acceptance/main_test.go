// Package acceptance_test does what people do, with the programs that they get: it builds stintd and stint, runs them
// on loopback ports of its own, and looks at the outcome with programs that know nothing of Stint: openssl, psql, a stock
// go-spiffe client, a stock Python client.
package acceptance_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stint-dev/stint/plugins/servertest"
)

// servers are the real ones, shared by all tests.
var servers servertest.Shared

// programs are built once.
var programs struct {
	dir string
	err error
}

func TestMain(m *testing.M) {
	programs.dir, programs.err = os.MkdirTemp("", "stint-acceptance-")
	if programs.err == nil {
		defer os.RemoveAll(programs.dir)
		programs.err = build("./cmd/stintd", "./cmd/stint", "./cmd/internal/acceptance/testdata/stockgo")
	}
	servers.Run(m)
}

// build builds programs as the tests are built.
func build(packages ...string) error {
	args := []string{"build", "-o", programs.dir + "/"}
	if instrumented {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, packages...)...) //nolint:noctx // no test is there yet to end it
	cmd.Dir = "../../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

// program returns the path of one that was built.
func program(tb testing.TB, name string) string {
	tb.Helper()
	if programs.err != nil {
		tb.Fatal(programs.err)
	}
	return filepath.Join(programs.dir, name)
}

// need ends the test if somebody else's program is missing, as servertest does with a missing server.
func need(tb testing.TB, name, debianPackage string) {
	tb.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(tb, fmt.Sprintf("no %s (apt-get install %s)", name, debianPackage))
	}
}

// missing ends a test that lacks something: it fails under `make test`, else it is skipped.
func missing(tb testing.TB, why string) {
	tb.Helper()
	if os.Getenv("STINT_REAL_SERVERS") == "1" {
		tb.Fatal(why)
	}
	tb.Skip(why)
}
