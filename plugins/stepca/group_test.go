package stepca

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stint-dev/stint/plugins"
)

// TestGroup has one run go on while others join: they share the next run, a caller that gives up leaves its item in
// it, and an error reaches exactly the run's own callers.
func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup[int]()
		var runs [][]int
		gate, fault := make(chan struct{}), errors.New("second run")
		run := func(items []int) error {
			runs = append(runs, items) // runs never overlap
			if len(runs) == 1 {
				<-gate
				return nil
			}
			return fault
		}
		results := make(chan error, 3)
		go func() { results <- g.do(t.Context(), run, 1) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() { gone <- g.do(ctx, run, 2) }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("a caller that gave up: %v, want ErrUnavailable", err)
		}
		for _, item := range []int{3, 4} {
			go func() { results <- g.do(t.Context(), run, item) }()
			synctest.Wait()
		}
		close(gate)
		var errs []error
		for range 3 {
			errs = append(errs, <-results)
		}
		if len(runs) != 2 || !slices.Equal(runs[0], []int{1}) || !slices.Equal(runs[1], []int{2, 3, 4}) {
			t.Errorf("runs %v, want [1] and [2 3 4]", runs)
		}
		if failed := slices.DeleteFunc(errs, func(err error) bool { return !errors.Is(err, fault) }); len(failed) != 2 {
			t.Errorf("%d callers saw the second run's error, want 2", len(failed))
		}
	})
}

// TestLightDependencies keeps step-ca's authority, with its hundreds of packages, out of the program.
func TestLightDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		p := strings.TrimSpace(line)
		if strings.HasPrefix(p, "github.com/smallstep/certificates/") && !strings.HasPrefix(p, "github.com/smallstep/certificates/cas/") {
			t.Errorf("%s is linked", p)
		}
	}
}
