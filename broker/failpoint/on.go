//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

//nolint:gochecknoglobals // the count of hits is of the process; only test builds hold it
var hits atomic.Int64

// Hit ends the process with SIGKILL, or freezes it with SIGSTOP, when STINT_FAILPOINT names the step: "issue.intent",
// "issue.intent:kill", "teardown.revoked:stop", and with a third part only at the nth hit: "issue.intent:kill:5". With
// "print" it prints a line "hit issue.intent" at each step.
func Hit(step string) {
	name, rest, _ := strings.Cut(os.Getenv("STINT_FAILPOINT"), ":")
	if name == "print" {
		_, _ = fmt.Fprintf(os.Stdout, "hit %s\n", step) // who reads it counts
	}
	if name != step {
		return
	}
	action, count, _ := strings.Cut(rest, ":")
	if n, err := strconv.ParseInt(count, 10, 64); err == nil && hits.Add(1) != n {
		return
	}
	sig := syscall.SIGKILL
	if action == "stop" {
		sig = syscall.SIGSTOP
	}
	_ = syscall.Kill(os.Getpid(), sig)
	if sig == syscall.SIGKILL {
		select {} // until the signal arrives
	}
}
