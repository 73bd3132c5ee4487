package acceptance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const soon = 30 * time.Second

// call is a program to run.
type call struct {
	args  []string
	env   []string
	dir   string
	stdin io.Reader
}

// result is how a program ended.
type result struct {
	what           string
	code           int // -1: by a signal
	stdout, stderr string
}

// output is what a program prints, which may be read while it does.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// process is a program that runs and ends with its test at the latest.
type process struct {
	what           string
	cmd            *exec.Cmd
	stdout, stderr output
	exited         chan struct{} // closed once it has been waited for
}

// start starts a program.
func start(tb testing.TB, c call) *process {
	tb.Helper()
	p := &process{what: strings.Join(c.args, " "), exited: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(tb.Context()), c.args[0], c.args[1:]...)
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.env, c.dir, c.stdin, &p.stdout, &p.stderr
	p.cmd.WaitDelay = 5 * time.Second // for what keeps its output open
	dieTogether(p.cmd)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Linux ends the child of a thread that ends
		defer runtime.UnlockOSThread()
		defer close(p.exited)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // ProcessState says how it ended
		}
	}()
	if err := <-started; err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		p.signal(tb, syscall.SIGKILL)
		<-p.exited
		if strings.Contains(p.stderr.String(), "DATA RACE") {
			tb.Errorf("%s: the race detector says:\n%s", p.what, p.stderr.String())
		}
	})
	return p
}

// signal sends a signal, unless the process has ended.
func (p *process) signal(tb testing.TB, s syscall.Signal) {
	tb.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Error(err)
	}
}

// wait returns how it ended.
func (p *process) wait(tb testing.TB) result {
	tb.Helper()
	select {
	case <-p.exited:
	case <-time.After(2 * soon):
		tb.Fatalf("%s still runs after %s; it said:\n%s%s", p.what, 2*soon, p.stdout.String(), p.stderr.String())
	}
	return result{what: p.what, code: p.cmd.ProcessState.ExitCode(), stdout: p.stdout.String(), stderr: p.stderr.String()}
}

// prints waits until the program has printed a text on standard output.
func (p *process) prints(tb testing.TB, text string) {
	tb.Helper()
	eventually(tb, func() error {
		if strings.Contains(p.stdout.String(), text) {
			return nil
		}
		select {
		case <-p.exited:
			tb.Fatalf("%s ended before it printed %q: %s", p.what, text, p.wait(tb))
		default:
		}
		return fmt.Errorf("%s does not print %q; it said:\n%s%s", p.what, text, p.stdout.String(), p.stderr.String())
	})
}

// run runs a program to its end.
func run(tb testing.TB, c call) result {
	tb.Helper()
	return start(tb, c).wait(tb)
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit code %d\n%s%s", r.what, r.code, r.stdout, r.stderr)
}

// exits ends the test unless the program ended with this code.
func (r result) exits(tb testing.TB, code int) result {
	tb.Helper()
	if r.code != code {
		tb.Fatalf("want exit code %d: %s", code, r)
	}
	return r
}

// eventually calls check until it returns nil.
func eventually(tb testing.TB, check func() error) {
	tb.Helper()
	over := time.After(soon)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-over:
			tb.Fatalf("not within %s: %v", soon, err)
		case <-tick.C:
		}
	}
}

func read(tb testing.TB, path ...string) []byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func write(tb testing.TB, path string, content []byte) {
	tb.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// decode reads JSON that a program printed.
func decode[T any](tb testing.TB, text string) T {
	tb.Helper()
	var out T
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		tb.Fatalf("%v in %s", err, text)
	}
	return out
}
