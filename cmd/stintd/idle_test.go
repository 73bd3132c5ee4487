package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// idleMemory is what an idle stintd may have resident, in kB.
const idleMemory = 60 << 10

// TestIdle builds stintd as it is delivered, without the race detector, and holds the memory of one that only serves. How long
// the way from exec to ready took is told.
func TestIdle(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "stintd")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	cmd := exec.CommandContext(t.Context(), binary, "serve", "--config", s.file("stint.hcl"))
	dieTogether(cmd)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error { return ready(t, s) })
	t.Logf("ready %s after exec", time.Since(began).Round(time.Millisecond))
	resident, err := residentMemory(cmd.Process.Pid)
	if err != nil {
		t.Skipf("this system does not say how much memory a process has: %v", err)
	}
	t.Logf("idle: %d kB resident", resident)
	if resident >= idleMemory {
		t.Errorf("an idle stintd has %d kB resident, want less than %d", resident, idleMemory)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("stintd ends with %v", err)
	}
}

// ready asks once.
func ready(t *testing.T, s *site) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.http+"/readyz", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	if resp.StatusCode != http.StatusOK {
		return errNotYet
	}
	return nil
}

// residentMemory returns VmRSS of a process in kB, from Linux's /proc.
func residentMemory(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, errNotYet
	}
	return strconv.Atoi(fields[0])
}
