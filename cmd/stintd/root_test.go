package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
)

// TestVersion names the version, Go's, and the platform.
func TestVersion(t *testing.T) {
	t.Parallel()
	root := newRoot()
	root.SetArgs([]string{"version"})
	var out strings.Builder
	root.SetOut(&out)
	want := fmt.Sprintf("stintd %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if err := root.ExecuteContext(t.Context()); err != nil || out.String() != want {
		t.Errorf("%q, %v; want %q", out.String(), err, want)
	}
}

// TestUsage exits with 2 where the command line is wrong, and says what was meant.
func TestUsage(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"bogus":                        `no command "bogus"`,
		"serv":                         "did you mean",
		"demo extra":                   "extra",
		"audit bogus":                  "stintd audit --help",
		"audit verify":                 "ledger",
		"serve --nope":                 "--nope",
		"dev --listen nonsense":        `--listen "nonsense"`,
		"dev --http 127.0.0.1:http":    "--http",
		"dev --log-level loud":         "--log-level",
		"dev --svid-ttl 0s":            "--svid-ttl",
		"dev --vault-addr 127.0.0.1:1": "--vault-addr",
		"demo --vault --no-vault":      "vault",
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			root := newRoot()
			root.SetArgs(strings.Fields(line))
			root.SetOut(io.Discard)
			root.SetErr(io.Discard)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // what is run all the same ends at once
			err := root.ExecuteContext(ctx)
			if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want status %d and %q", err, exitUsage, want)
			}
		})
	}
}
