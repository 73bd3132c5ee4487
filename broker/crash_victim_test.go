package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// crashPoint is where a process dies: at the nth hit of a step.
type crashPoint struct {
	kind  string // of store
	story string
	step  string
	n     int
}

// hitsToTry says at which hits of a step that is hit so often a process is killed: at the first, the last, and some between
// them. There are many commits.
func hitsToTry(step string, count int) []int {
	kills := 4
	if strings.HasPrefix(step, "ledger.") {
		kills = max(4, count/8)
	}
	var try []int
	for i := range kills {
		try = append(try, 1+i*(count-1)/(kills-1))
	}
	return slices.Compact(try)
}

// TestHitsToTry: processes are killed all over a story, at its first and last steps too.
func TestHitsToTry(t *testing.T) {
	for _, tc := range []struct {
		step  string
		count int
		want  []int
	}{
		{"issue.intent", 1, []int{1}},
		{"issue.intent", 3, []int{1, 2, 3}},
		{"issue.intent", 10, []int{1, 4, 7, 10}},
		{"ledger.commit", 13, []int{1, 5, 9, 13}},
		{"ledger.commit", 61, []int{1, 11, 21, 31, 41, 51, 61}},
	} {
		if got := hitsToTry(tc.step, tc.count); !slices.Equal(got, tc.want) {
			t.Errorf("%s of %d hits: %v, want %v", tc.step, tc.count, got, tc.want)
		}
	}
}

// killed returns a process that died where it was to. What several commits hold at one time one may hold at another: where a
// process comes to its end before that, the next dies a hit earlier.
func (at crashPoint) killed(t *testing.T, child string) (victim, []byte) {
	t.Helper()
	for n := at.n; n > 0; n-- {
		v := newVictim(t)
		out, killed := v.run(t, child, at.kind, at.story, fmt.Sprintf("%s:kill:%d", at.step, n))
		if killed {
			return v, out
		}
	}
	t.Fatalf("no process came to %s", at.step)
	return victim{}, nil
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

// victim is a child with what outlives it: its ledger, and the backends' inventory.
type victim struct {
	dir string
	key audit.Key
	inv *inventory
}

func newVictim(t *testing.T) victim {
	t.Helper()
	v := victim{dir: t.TempDir(), inv: &inventory{
		horizon: plugintest.NewMemory(plugintest.MemoryConfig{Horizon: horizon}),
		vault:   plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: horizon}),
	}}
	var err error
	if v.key, err = audit.CreateKey(filepath.Join(v.dir, "key"), "example.org/audit"); err != nil {
		t.Fatal(err)
	}
	return v
}

// run lets a child go through a story with a fail point, and returns what it said and whether it was killed.
func (v victim) run(t *testing.T, child, kind, story, fail string) (out []byte, killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), child, "-test.run=^TestCrashChild$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), crashDir+"="+v.dir, crashAddr+"="+v.inv.serve(t), crashKind+"="+kind, crashStory+"="+story,
		"STINT_FAILPOINT="+fail)
	out, err := cmd.Output()
	exit, ended := errors.AsType[*exec.ExitError](err)
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	killed = ended && status.Signaled() && status.Signal() == syscall.SIGKILL
	if err != nil && !killed {
		t.Fatalf("the child failed by itself: %v\n%s\n%s", err, out, exit.Stderr)
	}
	return out, killed
}

// stepsOf counts how often a story comes to each step.
func stepsOf(t *testing.T, child, kind, story string) map[string]int {
	t.Helper()
	out, _ := newVictim(t).run(t, child, kind, story, "print")
	hits := map[string]int{}
	for step := range told(out, "hit") {
		hits[step]++
	}
	return hits
}

// told yields what a child said after a word.
func told(out []byte, word string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(out) {
			rest, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte(word+" "))
			if ok && !yield(string(rest)) {
				return
			}
		}
	}
}
