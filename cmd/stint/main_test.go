package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent/agenttest"
)

const soon = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"stint": main})
}

// TestScripts runs each script against a broker of its own. Beyond testscript's commands there are
//
//	end WHY           closes the newest task from outside: STOPPED, ABANDONED, …
//	suspend           suspends the agent, which closes its tasks
//	hold, release     keep tasks CLOSING, and let them close
//	stray USER        makes a credential at the backend that the broker has not issued
//	recycle           ends the next stream of records after its first
//	await-task STATE  waits until the newest task is in a state
//	await-file FILE [TEXT]  waits until a file exists and holds a text
//	await-calls METHOD N  waits until a method was called so often
//	exec-code N CMD…  runs a command that must exit with code N
//	pick NAME PREFIX FILE  puts the rest of a line into a variable
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			b := agenttest.Start(t, agenttest.Config{})
			receipts, doc := writeReceipts(t)
			b.SetReceipt(doc)
			testscript.Run(t, testscript.Params{
				Files: []string{file}, RequireExplicitExec: true, RequireUniqueNames: true,
				Setup: func(env *testscript.Env) error {
					env.Setenv("RECEIPTS", receipts)
					return setup(env, b)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"end":        func(ts *testscript.TestScript, _ bool, args []string) { end(t, ts, b, args) },
					"suspend":    func(*testscript.TestScript, bool, []string) { b.Suspend() },
					"stray":      func(_ *testscript.TestScript, _ bool, args []string) { b.Stray(args[0]) },
					"stray-user": func(_ *testscript.TestScript, _ bool, args []string) { b.StrayUser(args[0]) },
					"restored":   func(*testscript.TestScript, bool, []string) { b.HoldLedger() },
					"hold":       func(*testscript.TestScript, bool, []string) { b.HoldTeardown() },
					"recycle":    func(*testscript.TestScript, bool, []string) { b.RecycleStream() },
					"release":    func(*testscript.TestScript, bool, []string) { b.ReleaseTeardown() },
					"await-task": func(ts *testscript.TestScript, _ bool, args []string) { awaitTask(ts, b, args) },
					"await-file": awaitFile,
					"exec-code":  execCode,
					"await-calls": func(ts *testscript.TestScript, _ bool, args []string) {
						eventually(ts, "calls of "+args[0], func() bool { return strconv.Itoa(b.Calls(args[0])) == args[1] })
					},
					"pick": pick,
				},
			})
		})
	}
}

func setup(env *testscript.Env, b *agenttest.Broker) error {
	for name, value := range b.Env() {
		env.Setenv(name, value)
	}
	runtime := filepath.Join(env.WorkDir, ".runtime")
	env.Setenv("GORACE", "atexit_sleep_ms=20") // a program under the race detector waits a second before it exits
	env.Setenv("OTHER_API", b.OtherAPI)
	env.Setenv("ADMIN", b.AdminSocket)
	env.Setenv("SERVER_ID", b.ServerID())
	env.Setenv("XDG_RUNTIME_DIR", runtime)
	return os.Mkdir(runtime, 0o700)
}

func end(t *testing.T, ts *testscript.TestScript, b *agenttest.Broker, args []string) {
	t.Helper()
	why, ok := stintv1.CloseReason_value["CLOSE_REASON_"+args[0]]
	if !ok {
		ts.Fatalf("no close reason %s", args[0])
	}
	b.End(t, b.Task().GetName(), stintv1.CloseReason(why))
}

func awaitTask(ts *testscript.TestScript, b *agenttest.Broker, args []string) {
	eventually(ts, "task "+args[0], func() bool {
		task := b.Task()
		return task != nil && (task.GetState().String() == "TASK_STATE_"+args[0] || task.GetCloseReason().String() == "CLOSE_REASON_"+args[0])
	})
}

func awaitFile(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, "file "+strings.Join(args, " with "), func() bool {
		content, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && strings.Contains(string(content), strings.Join(args[1:], " "))
	})
}

func execCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func eventually(ts *testscript.TestScript, what string, holds func() bool) {
	for deadline := time.Now().Add(soon); !holds(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("waited %s for %s", soon, what)
		}
	}
}

// pick sets a variable to the first line of a file that begins with a prefix, without it: pick NAME PREFIX FILE.
func pick(ts *testscript.TestScript, _ bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(args[2])) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), args[1]); ok {
			ts.Setenv(args[0], strings.Trim(rest, `", `))
			return
		}
	}
	ts.Fatalf("%s has no line that begins with %q", args[2], args[1])
}
