package acceptance_test

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// short is a profile with an idle timeout that a test can wait for, in place of the ready-made one.
const short = `apiVersion: stint.dev/v1
kind: Profile
metadata: {name: dev-agent}
spec:
  agents: ["spiffe://dev.stint.local/agent/*"]
  owner: you@dev.stint.local
  sponsor: your-lead@dev.stint.local
  purposes: [try-it]
  roles: [{name: web-client}]
  task: {default_ttl: 20m, max_ttl: 1h, idle_timeout: 5s, max_live: 20, max_live_leases: 100}
  permit: ceiling
`

// kill -9 of `stint run` ends the task by its idle timeout, and what it was given with it; the next run takes its files away.
func TestKilledRunIsAbandoned(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	write(t, d.dir+"/short.yaml", []byte(short))
	d.stintAs(t, "operator", "apply", "-f", "short.yaml").exits(t, 0)
	p, _ := d.begin(t, "run", "--purpose", "try-it", "--role", "web-client", "--", "sh", "-c", `echo "in $STINT_CREDENTIALS"; exec sleep 60`)
	p.prints(t, "\n")
	folder := strings.TrimSpace(strings.TrimPrefix(p.stdout.String(), "in "))
	if files := present(t, folder); files == 0 {
		t.Fatalf("%s holds no file", folder)
	}
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	eventually(t, func() error {
		tasks := d.stint(t, "task", "list").exits(t, 0).stdout
		if !strings.Contains(tasks, "CLOSED (abandoned)") {
			return fmt.Errorf("the task is not abandoned: %s", tasks)
		}
		return nil
	})
	if leases := d.stint(t, "lease", "list").exits(t, 0).stdout; !strings.Contains(leases, "REVOKED") || strings.Contains(leases, "ACTIVE") {
		t.Errorf("leases after the task was abandoned: %s", leases)
	}
	d.stint(t, "run", "-q", "--purpose", "try-it", "--", "true").exits(t, 0)
	if files := present(t, folder); files != 0 {
		t.Errorf("%s still holds %d files", folder, files)
	}
}

// A run that is heard of is not abandoned, however long its command says nothing.
func TestRunKeepsItsTaskAlive(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	write(t, d.dir+"/short.yaml", []byte(short))
	d.stintAs(t, "operator", "apply", "-f", "short.yaml").exits(t, 0)
	r := d.stint(t, "run", "--purpose", "try-it", "--role", "web-client", "--", "sleep", "11").exits(t, 0)
	if !strings.Contains(r.stderr, "CLOSED (completed)") {
		t.Errorf("its end: %s", r)
	}
}

// Signals reach the command; exit codes are its own; the task is completed and its files are gone on every way out.
func TestRunHandsOn(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	for _, c := range []struct {
		name   string
		trap   string // what the command sets up before it prints the folder and a newline
		script string // what it does after that
		signal syscall.Signal
		code   int
	}{
		{"exit code 0", "", "exit 0", 0, 0},
		{"exit code 42", "", "exit 42", 0, 42},
		{"dead by a signal", "", "kill -KILL $$", 0, 137},
		{"TERM handled", `trap "exit 17" TERM`, "while :; do sleep 0.05; done", syscall.SIGTERM, 17},
		{"TERM not handled", "", "exec sleep 60", syscall.SIGTERM, 143},
		{"INT handled", `trap "exit 18" INT`, "while :; do sleep 0.05; done", syscall.SIGINT, 18},
		{"INT not handled", "", "exec sleep 60", syscall.SIGINT, 130},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, _ := d.begin(t, "run", "--purpose", "try-it", "--role", "web-client", "--", "bash", "-c", c.trap+`
echo "in $STINT_CREDENTIALS"
`+c.script)
			p.prints(t, "\n")
			folder := strings.TrimSpace(strings.TrimPrefix(p.stdout.String(), "in "))
			if c.signal != 0 {
				p.signal(t, c.signal)
			}
			r := p.wait(t).exits(t, c.code)
			if files := present(t, folder); files != 0 {
				t.Errorf("%s still holds %d files", folder, files)
			}
			if !strings.Contains(r.stderr, "CLOSED (") || !strings.Contains(r.stderr, ": 1 revoked") {
				t.Errorf("the end of the task is not told: %s", r)
			}
		})
	}
}

// Standard input and output are the command's: what goes through is the same, byte for byte.
func TestRunLeavesThePipeAlone(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent) // never fails
	r := run(t, call{
		args: []string{program(t, "stint"), "run", "--purpose", "try-it", "--role", "web-client", "--", "cat"},
		env:  d.env, dir: d.dir, stdin: bytes.NewReader(sent),
	}).exits(t, 0)
	if r.stdout != string(sent) {
		t.Errorf("%d bytes were sent, %d others came back", len(sent), len(r.stdout))
	}
}

// The private key is in a file that only its owner reads, and nowhere on the command line or in the environment.
func TestRunKeepsTheKeyOffTheProcessTable(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	p, in := d.begin(t, "run", "--purpose", "try-it", "--role", "web-client", "--", "sh", "-c",
		`echo "$$ $KEY $(stat -c %a $KEY) $(stat -c %a $STINT_CREDENTIALS)"; exec cat`)
	p.prints(t, "\n")
	words := strings.Fields(p.stdout.String())
	if len(words) != 4 || words[2] != "600" || words[3] != "700" {
		t.Fatalf("the command says %q", words)
	}
	block, _ := pem.Decode(read(t, words[1]))
	if block == nil {
		t.Fatalf("%s is no PEM", words[1])
	}
	key := strings.Split(string(pem.EncodeToMemory(block)), "\n")[1]
	notOnTheProcessTable(t, p.cmd.Process.Pid, key)
	pid, err := strconv.Atoi(words[0])
	if err != nil {
		t.Fatal(err)
	}
	notOnTheProcessTable(t, pid, key)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	p.wait(t).exits(t, 0)
}

// notOnTheProcessTable fails the test if a process has a secret in its command line or its environment.
func notOnTheProcessTable(tb testing.TB, pid int, secret string) {
	tb.Helper()
	for _, name := range []string{"cmdline", "environ"} {
		content := read(tb, "/proc", strconv.Itoa(pid), name)
		if len(content) == 0 {
			tb.Errorf("process %d has no %s", pid, name)
		}
		if bytes.Contains(content, []byte(secret)) {
			tb.Errorf("%s of process %d holds the secret", name, pid)
		}
	}
}

// present counts the files below a folder, which need not be there.
func present(tb testing.TB, folder string) int {
	tb.Helper()
	if !filepath.IsAbs(folder) {
		tb.Fatalf("%q is no folder", folder)
	}
	n := 0
	err := filepath.WalkDir(folder, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Fatal(err)
	}
	return n
}
