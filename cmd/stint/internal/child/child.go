// Package child runs a command as if it had been started directly: it inherits standard input and output, gets the
// signals, and its exit code is handed on.
package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Exit codes as shells use them.
const (
	CodeNotExecutable = 126
	CodeNotFound      = 127
	codeSignal        = 128
)

// Command is what to run.
type Command struct {
	Args   []string // the program, then its arguments
	Env    []string // its whole environment
	Stdin  *os.File // handed on as they are
	Stdout *os.File
	Stderr *os.File
	// Grace is how long it has after SIGTERM, when its time is over, before SIGKILL.
	Grace time.Duration
}

// Running is a command that was started.
type Running struct {
	process *os.Process
	group   bool // it has a process group of its own
	grace   time.Duration
	done    chan struct{} // closed when it has ended
	code    int
	err     error
}

// StartError says that a command could not be started. Code is 127 where there is no such program, else 126.
type StartError struct {
	Code  int
	Cause error
}

// Error implements error.
func (e *StartError) Error() string { return fmt.Sprintf("start command: %v", e.Cause) }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Cause }

// Start starts a command. An error is a [*StartError].
//
// With a controlling terminal the command stays in our process group, so that job control and pipelines work; a key that
// makes a signal then reaches it from the terminal. Without one it gets a group of its own, and signals go to all of it.
func Start(c Command) (*Running, error) {
	controlled, _ := hasTerminal()
	r := &Running{group: !controlled, grace: c.Grace, done: make(chan struct{})}
	started := make(chan error, 1)
	go r.run(c, started)
	if err := <-started; err != nil {
		return nil, startError(err)
	}
	return r, nil
}

// run starts and awaits the command on one thread: on Linux the command is told when that thread ends.
func (r *Running) run(c Command, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(c.Args[0], c.Args[1:]...) //nolint:gosec,noctx // to run what it is told is its purpose; ended by Stop
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Env, c.Stdin, c.Stdout, c.Stderr
	cmd.SysProcAttr = attributes(r.group)
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	r.process = cmd.Process
	started <- nil
	r.code, r.err = result(cmd.Wait())
	close(r.done)
}

// Done is closed when the command has ended.
func (r *Running) Done() <-chan struct{} { return r.done }

// Wait returns the exit code, 128+n after signal n.
func (r *Running) Wait() (int, error) {
	<-r.done
	return r.code, r.err
}

// Forward hands a signal on. What a terminal has sent to the whole foreground group has reached the command already.
func (r *Running) Forward(sig os.Signal) {
	if sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGWINCH {
		if _, sent := hasTerminal(); sent {
			return
		}
	}
	r.send(sig)
}

// Stop ends the command: SIGTERM, and SIGKILL when it is still there after its grace. It returns when it has ended.
func (r *Running) Stop() {
	r.send(syscall.SIGTERM)
	r.send(syscall.SIGCONT) // a stopped command cannot end
	timer := time.NewTimer(r.grace)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
		r.send(syscall.SIGKILL)
		<-r.done
	}
}

// send signals the command or its group. That it has just ended is no error.
func (r *Running) send(sig os.Signal) {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return
	}
	select {
	case <-r.done: // its number may be somebody else's by now
		return
	default:
	}
	if r.group {
		_ = syscall.Kill(-r.process.Pid, number) // see above
		return
	}
	_ = r.process.Signal(number) // see above
}

// result turns what Wait says into an exit code.
func result(err error) (int, error) {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return 0, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return codeSignal + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}

func startError(err error) *StartError {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return &StartError{Code: CodeNotFound, Cause: err}
	}
	return &StartError{Code: CodeNotExecutable, Cause: err}
}
