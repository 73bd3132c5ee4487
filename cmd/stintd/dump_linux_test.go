package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNoDump ends stintd in the ways that make a core dump, just after it has handed out secrets, where dumps are allowed and
// Go is told to make them: there is none. What Go prints of its goroutines holds no secret.
func TestNoDump(t *testing.T) {
	t.Parallel()
	f := sharedVault(t)
	allowDumps(t)
	for _, by := range []syscall.Signal{syscall.SIGABRT, syscall.SIGQUIT} {
		t.Run(by.String(), func(t *testing.T) {
			t.Parallel()
			auth, _ := tokenAuth(t, f)
			s := newSite(t, "", vaultBackend(f.Server, auth)+embeddedCA, catalog(limits{}, dbRole, otpRole))
			d := launchWith(t, s.dir, []string{"GOTRACEBACK=crash"}, "serve", "--config", s.file("stint.hcl"))
			d.says(t, `"msg":"ready"`)
			task := declare(t, s.agent(t, agentPath), 5*time.Minute, dbRole, otpRole)
			hidden := secrets{}.with(issue(t, task, dbRole)).with(issue(t, task, otpRole))
			closed(t, d)

			d.signal(t, by)
			d.wait(t, time.Minute)
			state, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || !state.Signaled() || state.CoreDump() {
				t.Errorf("it ended with %v; want a signal and no dump", d.cmd.ProcessState)
			}
			if dumps, err := filepath.Glob(s.file("core*")); err != nil || len(dumps) > 0 {
				t.Errorf("dumps: %v, %v", dumps, err)
			}
			if log := d.log(t); !strings.Contains(log, "goroutine 1 ") {
				t.Errorf("Go has printed no goroutines:\n%s", tail(log))
			}
			hidden.inNoFile(t, s)
		})
	}
}

// allowDumps lets children of this process dump, and tries it.
func allowDumps(t *testing.T) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: before.Max, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &before); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "kill -ABRT $$")
	cmd.Dir = t.TempDir()
	_ = cmd.Run() // it ends by the signal
	state, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	t.Logf("another process that ends by SIGABRT here: %v, dump %t", cmd.ProcessState, state.CoreDump())
}

// closed expects a process to have closed itself to dumps, and to others of its user.
func closed(t *testing.T, d *daemon) {
	t.Helper()
	pid := d.cmd.Process.Pid
	limits := string(read(t, fmt.Sprintf("/proc/%d/limits", pid)))
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).MatchString(limits) {
		t.Errorf("its limits are\n%s", limits)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || owner.Uid != 0 {
		t.Errorf("its memory belongs to user %v, want root", owner)
	}
}

// asChild makes this binary the child of TestForbidden.
const asChild = "STINTD_TEST_FORBIDDEN"

// TestForbidden asks the kernel, in a process of its own because it is for good: the limit alone would not keep a dump from a
// program that the kernel hands it to.
func TestForbidden(t *testing.T) {
	if os.Getenv(asChild) != "" {
		if err := keepFromDumps(); err != nil {
			t.Fatal(err)
		}
		if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
			t.Fatalf("dumpable is %d, %v", dumpable, err)
		}
		return
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestForbidden$")
	cmd.Env = []string{asChild + "=1"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
