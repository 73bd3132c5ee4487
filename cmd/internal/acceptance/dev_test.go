package acceptance_test

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stint-dev/stint/plugins/servertest"
)

// dev is a `stintd dev` and a person beside it, who has sourced its env file and works in a directory of their own.
type dev struct {
	*process

	dir   string   // where the person works; the data directory is .stint in it
	env   []string // of the person, as identity "agent"
	admin string   // admin socket
}

// startDev starts `stintd dev` with these flags, and variables for its environment.
func startDev(tb testing.TB, flags []string, variables ...string) *dev {
	tb.Helper()
	d := &dev{dir: tb.TempDir()}
	d.launch(tb, flags, variables...)
	return d
}

// launch starts the broker, also once more in the same directory.
func (d *dev) launch(tb testing.TB, flags []string, variables ...string) {
	tb.Helper()
	args := []string{program(tb, "stintd"), "dev", "--listen", servertest.FreeAddress(tb), "--http", servertest.FreeAddress(tb)}
	d.process = start(tb, call{args: append(args, flags...), dir: d.dir, env: append(d.plain(), variables...)})
	tb.Cleanup(func() { // before the one that kills
		d.signal(tb, syscall.SIGTERM)
		d.wait(tb)
	})
	d.prints(tb, "Ready in ")
	d.env = d.plain()
	for line := range strings.Lines(string(read(tb, d.dir, ".stint", "env"))) {
		if variable, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			d.env = append(d.env, variable)
		}
	}
	d.admin = strings.Replace(d.variable("SPIFFE_ENDPOINT_SOCKET"), "/agent.sock", "/admin.sock", 1)
}

// plain is an environment without anything of Stint but its programs on PATH.
func (d *dev) plain() []string {
	return []string{
		"HOME=" + d.dir, "LC_ALL=C.UTF-8", "GORACE=atexit_sleep_ms=0",
		"PATH=" + programs.dir + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
	}
}

// variable returns one of the person's environment.
func (d *dev) variable(name string) string {
	for _, v := range d.env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// as returns the environment of another identity: agent2, operator.
func (d *dev) as(name string) []string {
	at := slices.IndexFunc(d.env, func(v string) bool { return strings.HasPrefix(v, "SPIFFE_ENDPOINT_SOCKET=") })
	env := slices.Clone(d.env)
	env[at] = strings.Replace(env[at], "/agent.sock", "/"+name+".sock", 1)
	return env
}

// stint runs stint as "agent".
func (d *dev) stint(tb testing.TB, args ...string) result {
	tb.Helper()
	return d.stintAs(tb, "agent", args...)
}

// stintAs runs stint as an identity.
func (d *dev) stintAs(tb testing.TB, identity string, args ...string) result {
	tb.Helper()
	return run(tb, call{args: append([]string{program(tb, "stint")}, args...), dir: d.dir, env: d.as(identity)})
}

// begin starts stint as "agent" and does not wait for it. What is written to the pipe is its standard input.
func (d *dev) begin(tb testing.TB, args ...string) (*process, *os.File) {
	tb.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	defer in.Close()
	tb.Cleanup(func() { _ = out.Close() }) // it may be closed already
	return start(tb, call{args: append([]string{program(tb, "stint")}, args...), dir: d.dir, env: d.env, stdin: in}), out
}

// sh runs a script as "agent".
func (d *dev) sh(tb testing.TB, script string) result {
	tb.Helper()
	return run(tb, call{args: []string{"/bin/bash", "-c", script}, dir: d.dir, env: d.env})
}

// declare opens a task for these roles and returns its short name.
func (d *dev) declare(tb testing.TB, roles ...string) string {
	tb.Helper()
	args := []string{"task", "declare", "--purpose", "try-it", "-o", "json"}
	for _, role := range roles {
		args = append(args, "--role", role)
	}
	answer := decode[struct{ Task struct{ ShortName string } }](tb, d.stint(tb, args...).exits(tb, 0).stdout)
	return answer.Task.ShortName
}
