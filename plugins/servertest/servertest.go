// Package servertest starts the real servers that tests run against: Vault, step-ca, PostgreSQL, MariaDB and SPIRE.
//
// Each server listens on a loopback port of its own, keeps its files in a directory of its own, inherits nothing from
// the environment, and ends with the test that started it, on Linux also when the test process is killed. Tests of one
// package share one with Shared. The package is imported from tests only.
//
// Binaries are looked for in VAULT_BIN, STEP_CA_BIN (files), POSTGRES_BIN, MARIADB_BIN and SPIRE_BIN (directories), then in
// .bin of the module, then in Debian's folders, then on PATH. A test whose server is not there is skipped and says what to run;
// with STINT_REAL_SERVERS=1, as `make test` sets it, it fails.
package servertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// ErrNotInstalled says that the binary of a server was not found.
var ErrNotInstalled = errors.New("server is not installed")

// Program returns the path of a program on PATH, such as openssl, by the same rule: a test without it is skipped, and fails
// with STINT_REAL_SERVERS=1.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	give(tb, err)
	return path
}

// give ends the test if err is not nil: it skips when the server is not installed and need not be.
func give(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case errors.Is(err, ErrNotInstalled) && os.Getenv("STINT_REAL_SERVERS") != "1":
		tb.Skip(err)
	default:
		tb.Fatal(err)
	}
}
