package servertest

import (
	"context"
	"errors"
	"fmt"
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

const (
	readyTimeout = 30 * time.Second // a loaded machine; unloaded, each server is ready within 3 s
	stopTimeout  = 10 * time.Second
	pollInterval = 20 * time.Millisecond
)

// errNotRunning is returned for a signal to a process that has ended.
var errNotRunning = errors.New("server is not running")

// command says how a server is started and ended. It does not change afterwards.
type command struct {
	path       string
	args       []string
	env        []string
	dir        string                      // working directory; holds the log too
	credential *syscall.Credential         // nil: as the test process
	ready      func(context.Context) error // nil once the server answers
	stop       syscall.Signal              // asks for an orderly end
	kill       syscall.Signal              // ends it at once
}

// Process is the operating system's process behind a server. Its methods may be called from several goroutines.
type Process struct {
	command command

	// mu guards what follows.
	mu     sync.Mutex
	pid    int
	exited chan struct{} // closed when the process has been waited for; nil before the first start
}

// Stop asks the server to end in order and returns when it has. A server that does not end within 10 s is killed, and
// one that has ended is left alone.
func (p *Process) Stop(tb testing.TB) {
	tb.Helper()
	give(tb, p.end(p.command.stop))
}

// Kill ends the server at once, as a crash would, and returns when it has ended. PostgreSQL gets SIGQUIT, which skips
// its checkpoint but leaves no orphans; the others get SIGKILL.
func (p *Process) Kill(tb testing.TB) {
	tb.Helper()
	give(tb, p.end(p.command.kill))
}

// Pause freezes the server: connections are accepted by the kernel and nothing answers. PostgreSQL's open sessions go
// on, since each is a process of its own. A test that pauses must resume.
func (p *Process) Pause(tb testing.TB) {
	tb.Helper()
	give(tb, p.signal(syscall.SIGSTOP))
}

// Resume ends a Pause.
func (p *Process) Resume(tb testing.TB) {
	tb.Helper()
	give(tb, p.signal(syscall.SIGCONT))
}

// start runs the command and returns when it is ready.
func (p *Process) start(ctx context.Context) error {
	exited, err := p.spawn(ctx)
	if err != nil {
		return err
	}
	if err := p.awaitReady(ctx, exited); err != nil {
		return errors.Join(err, p.end(p.command.kill))
	}
	return nil
}

// spawn starts the process from a thread that waits for it: Linux ends the child of a thread that ends.
func (p *Process) spawn(ctx context.Context) (<-chan struct{}, error) {
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of server: %w", err)
	}
	// The process outlives the call that starts it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), p.command.path, p.command.args...) //nolint:gosec // the test names the binary
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.command.dir, p.command.env, log, log
	cmd.SysProcAttr = attributes(p.command.credential, p.command.kill)

	started, exited := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		defer func() { _ = log.Close() }()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in the log
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(p.command.path), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid, p.exited = cmd.Process.Pid, exited
	return exited, nil
}

// awaitReady returns when the server answers, or says why it does not.
func (p *Process) awaitReady(ctx context.Context, exited <-chan struct{}) error {
	if err := poll(ctx, exited, p.command.ready); err != nil {
		return fmt.Errorf("start %s: %w: %s", filepath.Base(p.command.path), err, p.logTail())
	}
	return nil
}

// poll calls check until it succeeds. It gives up after readyTimeout, or when the process has exited; exited may be nil.
func poll(ctx context.Context, exited <-chan struct{}, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return errNotRunning
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting: %w", err)
		case <-tick.C:
		}
	}
}

// end sends the signal and waits. It does nothing if the process has ended or was never started.
func (p *Process) end(signal syscall.Signal) error {
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	if exited == nil || errors.Is(p.signal(signal), errNotRunning) {
		return nil
	}
	_ = p.signal(syscall.SIGCONT) // a paused process sees no other signal
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-exited:
		return nil
	case <-timeout.C:
	}
	if err := p.signal(syscall.SIGKILL); err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	<-exited
	return nil
}

// signal sends a signal, unless the process has been waited for: its number may be another's by then.
func (p *Process) signal(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited == nil {
		return errNotRunning
	}
	select {
	case <-p.exited:
		return errNotRunning
	default:
	}
	if err := syscall.Kill(p.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal server: %w", err)
	}
	return nil
}

func (p *Process) log() string { return filepath.Join(p.command.dir, "log") }

// logTail returns the last lines that the server printed.
func (p *Process) logTail() string {
	text, err := os.ReadFile(p.log())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
