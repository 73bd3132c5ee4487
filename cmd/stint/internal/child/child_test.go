package child_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/cmd/stint/internal/child"
)

func start(t *testing.T, script string, grace time.Duration) (*child.Running, *os.File, *os.File) {
	t.Helper()
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	running, err := child.Start(child.Command{
		Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}, Stdin: inR, Stdout: outW, Stderr: os.Stderr, Grace: grace,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(inR.Close(), outW.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Stop)
	return running, inW, outR
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() }) // most are closed already
	return r, w
}

// ready waits for the command's first line.
func ready(t *testing.T, out *os.File) {
	t.Helper()
	if _, err := out.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
}

func code(t *testing.T, r *child.Running, want int) {
	t.Helper()
	got, err := r.Wait()
	if err != nil || got != want {
		t.Errorf("exit code %d, %v, want %d", got, err, want)
	}
}

func TestInputOutputAndCode(t *testing.T) {
	t.Parallel()
	running, in, out := start(t, `cat; env | grep -c SECRET; exit 7`, time.Minute)
	if _, err := in.WriteString("through\n"); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(out)
	if err != nil || string(got) != "through\n0\n" {
		t.Errorf("output %q, %v", got, err)
	}
	code(t, running, 7)
}

func TestSignals(t *testing.T) {
	t.Parallel()
	running, _, out := start(t, `trap 'exit 9' USR2; echo ready; while :; do sleep 0.02; done`, time.Minute)
	ready(t, out)
	running.Forward(syscall.SIGUSR2)
	code(t, running, 9)

	running, _, out = start(t, `echo ready; exec sleep 60`, time.Minute)
	ready(t, out)
	running.Forward(syscall.SIGTERM)
	code(t, running, 128+int(syscall.SIGTERM))
	running.Forward(syscall.SIGTERM) // it is gone: nothing happens
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	t.Parallel()
	running, _, out := start(t, `trap '' TERM; echo ready; while :; do sleep 0.02; done`, 50*time.Millisecond)
	ready(t, out)
	running.Stop()
	code(t, running, 128+int(syscall.SIGKILL))
}

func TestStopWakesWhatIsStopped(t *testing.T) {
	t.Parallel()
	running, _, out := start(t, `trap 'exit 5' TERM; echo ready; kill -STOP $$; while :; do sleep 0.02; done`, time.Minute)
	ready(t, out)
	running.Stop()
	code(t, running, 5)
}

func TestCannotStart(t *testing.T) {
	t.Parallel()
	plain := t.TempDir() + "/plain"
	if err := os.WriteFile(plain, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]int{
		"/no/such/program": child.CodeNotFound, "no-such-program-anywhere": child.CodeNotFound, plain: child.CodeNotExecutable,
	} {
		_, err := child.Start(child.Command{Args: []string{program}})
		e, ok := errors.AsType[*child.StartError](err)
		if !ok || e.Code != want || !strings.Contains(err.Error(), "start command") {
			t.Errorf("%s: %v, want code %d", program, err, want)
		}
	}
}
