package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseUsers(t *testing.T) {
	t.Parallel()
	names, err := parseUsers(strings.NewReader("v-a\r\n\n  v-b  \nv-c"))
	if diff := cmp.Diff([]string{"v-a", "v-b", "v-c"}, names); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	for _, bad := range []string{strings.Repeat("x", maxUser+1), strings.Repeat("x", 1<<20)} {
		if _, err := parseUsers(strings.NewReader("v-a\n" + bad)); !isUsage(err) {
			t.Errorf("a name of %d bytes: %v", len(bad), err)
		}
	}
}

func FuzzParseUsers(f *testing.F) {
	f.Add("v-a\n\nv-b\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		names, err := parseUsers(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, name := range names {
			if name == "" || len(name) > maxUser || strings.ContainsRune(name, '\n') {
				t.Errorf("%q gave the name %q", text, name)
			}
		}
	})
}

// A list counts as made before its file was written, so that nothing that ended meanwhile looks alive.
func TestUsersAreAsOldAsTheirFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "users.txt")
	if err := os.WriteFile(file, []byte("v-a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	written := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, written, written); err != nil {
		t.Fatal(err)
	}
	a := &app{stdin: strings.NewReader("v-b\n")}
	if _, listed, err := a.readUsers(file); err != nil || listed.After(written.Add(-listingTakes+time.Second)) {
		t.Errorf("listed at %v, %v", listed, err)
	}
	before := time.Now()
	if names, listed, err := a.readUsers(standardInput); err != nil || listed.Before(before) || len(names) != 1 {
		t.Errorf("%v listed at %v, %v", names, listed, err)
	}
}

func isUsage(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.code == codeUsage
}
