package servertest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// recorder notes how a test would have ended.
type recorder struct {
	testing.TB
	outcome string
}

func (r *recorder) Helper()      {}
func (r *recorder) Skip(...any)  { r.outcome = "skip" }
func (r *recorder) Fatal(...any) { r.outcome = "fatal" }

func TestGiveSkipsOnlyWhatNeedNotBeThere(t *testing.T) {
	other := errors.New("did not start")
	for _, test := range []struct {
		real string
		err  error
		want string
	}{
		{"", nil, ""},
		{"", ErrNotInstalled, "skip"},
		{"", other, "fatal"},
		{"1", nil, ""},
		{"1", ErrNotInstalled, "fatal"},
		{"1", other, "fatal"},
	} {
		t.Setenv("STINT_REAL_SERVERS", test.real)
		r := &recorder{TB: t}
		give(r, test.err)
		if r.outcome != test.want {
			t.Errorf("STINT_REAL_SERVERS=%q, %v: %q, want %q", test.real, test.err, r.outcome, test.want)
		}
	}
}

func TestFindBinary(t *testing.T) {
	dir := t.TempDir()
	nested := filepath.Join(dir, "a", "b")
	for _, path := range []string{nested, filepath.Join(dir, ".bin"), filepath.Join(dir, "path")} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	program := func(path string) string {
		path = filepath.Join(dir, path)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	program("go.mod")
	t.Chdir(nested)
	t.Setenv("PATH", filepath.Join(dir, "path"))
	t.Setenv("SOME_BIN", "")

	check := func(step, want string) {
		t.Helper()
		got, err := findBinary("SOME_BIN", "some")
		if got != want || (want == "") != errors.Is(err, ErrNotInstalled) {
			t.Errorf("%s: %q, %v; want %q", step, got, err, want)
		}
	}
	check("nowhere", "")
	check("on PATH", program("path/some"))
	check("in .bin of the module above", program(".bin/some"))
	named := program("named")
	t.Setenv("SOME_BIN", named)
	check("named", named)
	t.Setenv("SOME_BIN", filepath.Join(dir, "absent"))
	check("named but absent", "")
}
