package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/servertest"
)

// runMain makes the test binary stintd, so that a test's daemon is built as the test is, with the race detector too.
const runMain = "STINTD_TEST_MAIN"

// servers are shared by the tests that leave them as they found them.
var servers servertest.Shared

func TestMain(m *testing.M) {
	if faults := os.Getenv(faultsEnv); faults != "" {
		os.Exit(mainWithFaults(faults))
	}
	if os.Getenv(runMain) != "" {
		main()
		return
	}
	servers.Run(m)
}

// daemon is a stintd that runs as a process of its own and ends with its test.
type daemon struct {
	cmd    *exec.Cmd
	stdout string // files
	stderr string
	exited chan struct{} // closed once it has been waited for
}

// hostile are variables of Vault's own tools that stintd must not read: a proxy where nobody listens, a CA that is not there.
func hostile() []string {
	return []string{
		"VAULT_ADDR=http://127.0.0.1:1", "VAULT_PROXY_ADDR=http://127.0.0.1:1", "VAULT_HTTP_PROXY=http://127.0.0.1:1", "VAULT_NAMESPACE=none",
		"VAULT_TOKEN=hvs.none", "VAULT_CACERT=/none", "VAULT_MAX_RETRIES=many", `VAULT_HEADERS={"X-Vault-Namespace":"none"}`,
	}
}

// launch starts stintd with these arguments, in a directory that also takes what it prints.
func launch(tb testing.TB, dir string, args ...string) *daemon {
	tb.Helper()
	return launchWith(tb, dir, nil, args...)
}

// launchWith is launch with more in the environment.
func launchWith(tb testing.TB, dir string, env []string, args ...string) *daemon {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	return program{self, env}.launch(tb, dir, args...)
}

// program is a test binary that is to be stintd, with more in its environment.
type program struct {
	path string
	env  []string
}

func (p program) launch(tb testing.TB, dir string, args ...string) *daemon {
	tb.Helper()
	out, err := os.CreateTemp(dir, "stdout-")
	if err != nil {
		tb.Fatal(err)
	}
	errs, err := os.CreateTemp(dir, "stderr-")
	if err != nil {
		tb.Fatal(err)
	}
	d := &daemon{stdout: out.Name(), stderr: errs.Name(), exited: make(chan struct{})}
	d.cmd = exec.CommandContext(context.WithoutCancel(tb.Context()), p.path, args...)
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = dir, out, errs
	d.cmd.Env = []string{runMain + "=1", "HOME=" + dir, "TMPDIR=" + dir, "PATH=" + vaultDir() + ":/usr/bin:/bin", "GORACE=halt_on_error=0"}
	d.cmd.Env = slices.Concat(d.cmd.Env, hostile(), p.env)
	dieTogether(d.cmd)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Linux ends the child of a thread that ends
		defer runtime.UnlockOSThread()
		defer close(d.exited)
		err := d.cmd.Start()
		started <- err
		if err == nil {
			_ = d.cmd.Wait() // ProcessState says how it ended
		}
		_, _ = out.Close(), errs.Close()
	}()
	if err := <-started; err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		d.signal(tb, syscall.SIGKILL)
		<-d.exited
		if log := d.log(tb); strings.Contains(log, "DATA RACE") {
			tb.Errorf("the race detector in stintd says:\n%s", log)
		}
	})
	return d
}

// run runs stintd to its end and returns its exit status and what it printed.
func run(tb testing.TB, dir string, args ...string) (code int, stdout, stderr string) {
	tb.Helper()
	d := launch(tb, dir, args...)
	code = d.wait(tb, 2*time.Minute)
	return code, string(read(tb, d.stdout)), d.log(tb)
}

// signal sends a signal, unless the process has ended.
func (d *daemon) signal(tb testing.TB, s syscall.Signal) {
	tb.Helper()
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Error(err)
	}
}

// wait returns the exit status, -1 for the end by a signal.
func (d *daemon) wait(tb testing.TB, limit time.Duration) int {
	tb.Helper()
	select {
	case <-d.exited:
	case <-time.After(limit):
		tb.Fatalf("stintd still runs after %s; it said:\n%s", limit, tail(d.log(tb)))
	}
	return d.cmd.ProcessState.ExitCode()
}

// kill ends it as a crash does.
func (d *daemon) kill(tb testing.TB) {
	tb.Helper()
	d.signal(tb, syscall.SIGKILL)
	<-d.exited
}

// stop asks it to end, and expects status 0.
func (d *daemon) stop(tb testing.TB) {
	tb.Helper()
	d.signal(tb, syscall.SIGTERM)
	if code := d.wait(tb, time.Minute); code != 0 {
		tb.Fatalf("stintd exited with %d after SIGTERM; it said:\n%s", code, tail(d.log(tb)))
	}
}

// log returns what it printed on standard error so far.
func (d *daemon) log(tb testing.TB) string {
	tb.Helper()
	return string(read(tb, d.stderr))
}

// ended reports whether it has ended.
func (d *daemon) ended() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}

// says waits until the log holds a text.
func (d *daemon) says(tb testing.TB, text string) {
	tb.Helper()
	d.prints(tb, d.stderr, text)
}

// saysAtOnce waits until one line of the log holds all of these.
func (d *daemon) saysAtOnce(tb testing.TB, texts ...string) {
	tb.Helper()
	eventually(tb, time.Minute, func() error {
		for line := range strings.Lines(d.log(tb)) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return nil
			}
		}
		return fmt.Errorf("no line of stintd's holds all of %q; it said:\n%s", texts, tail(d.log(tb)))
	})
}

// prints waits until one of its files holds a text.
func (d *daemon) prints(tb testing.TB, file, text string) {
	tb.Helper()
	eventually(tb, time.Minute, func() error {
		if bytes.Contains(read(tb, file), []byte(text)) {
			return nil
		}
		select {
		case <-d.exited:
			tb.Fatalf("stintd ended with %d before it said %q; it said:\n%s", d.cmd.ProcessState.ExitCode(), text, tail(d.log(tb)))
		default:
		}
		return fmt.Errorf("stintd does not say %q; it said:\n%s", text, tail(d.log(tb)))
	})
}

// eventually calls check until it returns nil.
func eventually(tb testing.TB, limit time.Duration, check func() error) {
	tb.Helper()
	over := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-over:
			tb.Fatalf("not within %s: %v", limit, err)
		case <-tick.C:
		}
	}
}

func read(tb testing.TB, path string) []byte {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// tail returns the last lines of a text.
func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// vaultDir returns a directory that holds a program vault, for those who look for one on PATH; "/nonexistent" without.
func vaultDir() string {
	for _, path := range []string{os.Getenv("VAULT_BIN"), "../../.bin/vault"} {
		if found, err := exec.LookPath(path); err == nil && filepath.Base(found) == "vault" {
			if abs, err := filepath.Abs(filepath.Dir(found)); err == nil {
				return abs
			}
		}
	}
	return "/nonexistent"
}
