package servertest_test

import (
	"bufio"
	"errors"
	"net"
	"os"
	osexec "os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/servertest"
)

// TestServersDieWithTheProcess runs this test binary again, kills it while it holds servers, and looks for them.
func TestServersDieWithTheProcess(t *testing.T) {
	if os.Getenv("SERVERTEST_HOLD") != "" {
		hold(t)
		return
	}
	servers.Postgres(t) // skips here, not in the child, when it is not installed
	servers.Vault(t)
	servertest.StartMariaDB(t).Stop(t)

	child := osexec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServersDieWithTheProcess$")
	child.Env = append(os.Environ(), "SERVERTEST_HOLD=1", "TMPDIR="+openDir(t))
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addresses := strings.Fields(line)
	for _, address := range addresses {
		if !answers(t, address) {
			t.Errorf("%s does not answer while the child lives", address)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *osexec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) {
		t.Fatal(err)
	}
	for _, address := range addresses {
		eventually(t, address+" answers after its test was killed", func() bool { return !answers(t, address) })
	}
}

// openDir returns a directory that the databases' users may enter too, which t.TempDir's parent forbids. The killed child
// leaves its files there.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "servertest-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, dir+" cannot be removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}

// eventually fails with complaint unless check holds within 10 s.
func eventually(t *testing.T, complaint string, check func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !check() {
		select {
		case <-deadline:
			t.Fatal(complaint)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answers says whether something listens at a TCP address.
func answers(t *testing.T, address string) bool {
	t.Helper()
	connection, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return false
	}
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
	return true
}

// hold starts servers, prints their addresses, and waits to be killed.
func hold(t *testing.T) {
	t.Helper()
	postgres := servertest.StartPostgres(t)
	vault, mariadb := servertest.StartVault(t, servertest.VaultOptions{}), servertest.StartMariaDB(t)
	if _, err := os.Stdout.WriteString(postgres.Addr + " " + mariadb.Addr + " " + strings.TrimPrefix(vault.Addr, "http://") + "\n"); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done()
}
