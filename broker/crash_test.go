package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

const (
	// crashDir, crashKind and crashAddr tell the child where its ledger is, of which kind, and where its backends are.
	crashDir  = "STINT_BROKER_CRASH_DIR"
	crashKind = "STINT_BROKER_CRASH_KIND"
	crashAddr = "STINT_BROKER_CRASH_ADDR"
)

// TestStepsAreComplete: the list of steps holds every step that there is in the code, and no other.
func TestStepsAreComplete(t *testing.T) {
	hit := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	var found []string
	for _, pattern := range []string{"*.go", "teardown/*.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range hit.FindAllSubmatch(raw, -1) {
				found = append(found, string(m[1]))
			}
		}
	}
	steps := failpoint.Steps()
	slices.Sort(found)
	slices.Sort(steps)
	if !slices.Equal(slices.Compact(found), steps) {
		t.Errorf("the code hits %v, the list holds %v", slices.Compact(found), steps)
	}
}

// TestCrash kills a process with SIGKILL at every step of declaring, issuing and ending, and around its commits, and
// starts again on its ledger, of each kind of store. What was handed out is in the ledger and its log; what is alive at a
// backend is in the ledger, and is gone in the end.
func TestCrash(t *testing.T) {
	child := buildChild(t)
	for kind := range stores() {
		t.Run(kind, func(t *testing.T) { crashEverywhere(t, child, kind) })
	}
}

// crashPoint is where a process dies: at the nth hit of a step.
type crashPoint struct {
	kind string // of store
	step string
	n    int
}

func crashEverywhere(t *testing.T, child, kind string) {
	t.Helper()
	for _, step := range failpoint.Steps() {
		for n := 1; n <= 3; n++ {
			if !crashAt(t, child, crashPoint{kind, step, n}) {
				if n == 1 {
					t.Errorf("no process came to %s", step)
				}
				break
			}
		}
	}
	for _, n := range []int{3, 4, 5, 8, 13, 21} {
		crashAt(t, child, crashPoint{kind, "ledger.commit", n})
		crashAt(t, child, crashPoint{kind, "ledger.committed", n})
	}
}

// buildChild builds this package's tests with the steps at which a process can be killed.
func buildChild(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "crash.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "failpoints", "-o", name, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return name
}

// crashAt kills one process and checks what is left. It returns false where it came to no kill.
func crashAt(t *testing.T, child string, at crashPoint) (killed bool) {
	t.Helper()
	t.Run(fmt.Sprintf("%s:%d", at.step, at.n), func(t *testing.T) {
		inv := &inventory{
			horizon: plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon}),
			vault:   plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: horizon}),
		}
		dir := t.TempDir()
		key, err := audit.CreateKey(filepath.Join(dir, "key"), "example.org/audit")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), child, "-test.run=^TestCrashChild$", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashAddr+"="+inv.serve(t), crashKind+"="+at.kind,
			fmt.Sprintf("STINT_FAILPOINT=%s:kill:%d", at.step, at.n))
		out, err := cmd.Output()
		exit, ended := errors.AsType[*exec.ExitError](err)
		status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		killed = ended && status.Signaled() && status.Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("the child failed by itself: %v\n%s\n%s", err, out, exit.Stderr)
		}
		now := time.Now()
		synctest.Test(t, func(t *testing.T) {
			pass(time.Until(now)) // a bubble's clock begins long before the child's
			h := &house{
				tb: t, dir: dir, kind: at.kind, key: key, meter: newMeter(), horizon: inv.horizon, vault: inv.vault,
				plain: plugintest.NewMemory(plugintest.MemoryConfig{}), // as an embedded CA's: gone with the process
			}
			h.backends = map[string]plugins.Backend{"memory/plain": h.plain, "memory/horizon": h.horizon, "memory/vault": h.vault}
			h.start()
			defer func() { h.stop() }()
			h.accounted(t)
			h.acknowledged(t, out)
			h.startLoop()
			defer h.endLoop()
			h.endAll(t)
			h.gone()
			h.verify()
		})
	})
	return killed
}

// accounted holds what is alive at the backends against the ledger.
func (h *house) accounted(t *testing.T) {
	t.Helper()
	known := map[lease.ID]lease.State{}
	for _, l := range h.leases() {
		known[l.ID] = l.State
	}
	for _, id := range append(h.horizon.Alive(), h.vault.Alive()...) {
		if state, ok := known[id]; !ok || state.Final() {
			t.Errorf("credential %s is alive, and its lease is %q", id, state)
		}
	}
}

// acknowledged looks for what a killed process said that it had handed out.
func (h *house) acknowledged(t *testing.T, out []byte) {
	t.Helper()
	for line := range bytes.Lines(out) {
		name, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("acked "))
		if ok && len(h.recorded(audit.LeaseActive, string(name))) != 1 {
			t.Errorf("lease %s was handed out and is not in the log", name)
		}
	}
}

// anyTask chooses all tasks.
func anyTask() ledger.TaskFilter { return ledger.TaskFilter{Limit: 1000} }

// endAll stops every task and waits until all are CLOSED.
func (h *house) endAll(t *testing.T) {
	t.Helper()
	all, err := h.broker.AllTasks(t.Context(), anyTask())
	if err != nil {
		t.Fatal(err)
	}
	for _, work := range all {
		out, err := h.broker.Stop(t.Context(), operator(), ref(work), "", longWait)
		if err != nil || out.Task.State != task.Closed || out.Task.Summary.Final != len(out.Leases) {
			t.Errorf("stopped: %+v, %v", out, err)
		}
	}
}
