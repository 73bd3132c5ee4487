package handover

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/secret"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

func newFolder(t *testing.T) *Folder {
	t.Helper()
	f, err := open(t.TempDir(), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func credential(d *stintv1.Delivery, fields map[string]string) *agent.Credential {
	c := &agent.Credential{Delivery: d, Fields: map[string]secret.Value{}}
	for name, value := range fields {
		c.Fields[name] = secret.FromString(value)
	}
	return c
}

func TestValuesAreNoTemplates(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	env := NewEnvironment(f)
	const hostile = `{{ .password }}{{ range . }}x{{ end }}$(id)` + "\x1b[2J"
	err := env.Add("db", credential(&stintv1.Delivery{
		Env: map[string]string{"USER_": "{{ .username }}"}, With: map[string]string{"RAW": "{{ .username }}"},
		Files: map[string]string{"sub/pgpass": "{{ .username }}:{{ .password }}"},
	}, map[string]string{"username": hostile, "password": "p"}))
	if err != nil {
		t.Fatal(err)
	}
	list := env.List(nil)
	for _, want := range []string{"USER_=" + hostile, "RAW={{ .username }}", EnvCredentials + "=" + f.Path()} {
		if !slices.Contains(list, want) {
			t.Errorf("environment %q lacks %q", list, want)
		}
	}
	got, err := os.ReadFile(filepath.Join(f.Path(), "db", "sub", "pgpass"))
	if err != nil || string(got) != hostile+":p" {
		t.Errorf("file %q, %v", got, err)
	}
}

func TestDeliveryRefuses(t *testing.T) {
	t.Parallel()
	const password = "hunter2"
	for name, d := range map[string]*stintv1.Delivery{
		"an unknown field":         {Env: map[string]string{"A": "{{ .nope }}"}},
		"a broken template":        {Env: map[string]string{"A": "{{ .password"}},
		"a call that fails":        {Env: map[string]string{"A": `{{ index .password 99 }}`}},
		"an endless value":         {Env: map[string]string{"A": `{{ range 100000 }}{{ $.password }}{{ end }}`}},
		"a bad name":               {Env: map[string]string{"A=B": "x"}},
		"an empty name":            {With: map[string]string{"": "x"}},
		"a zero byte":              {With: map[string]string{"A": "x\x00y"}},
		"a file that climbs out":   {Files: map[string]string{"../../escape": "x"}},
		"an absolute file":         {Files: map[string]string{"/tmp/stint-escape": "x"}},
		"a variable of stint's":    {With: map[string]string{EnvCredentials: "/"}},
		"a variable that is taken": {With: map[string]string{"A": "x"}, Env: map[string]string{"A": "y"}},
	} {
		f := newFolder(t)
		err := NewEnvironment(f).Add("db", credential(d, map[string]string{"password": password}))
		if err == nil {
			t.Errorf("%s was accepted", name)
		} else if strings.Contains(err.Error(), password) {
			t.Errorf("%s: the error holds the secret: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(f.Path()), "escape")); err == nil {
			t.Errorf("%s: wrote outside of its folder", name)
		}
	}
	for _, role := range []string{"", ".", "..", "a/b", "/a"} {
		if err := NewEnvironment(newFolder(t)).Add(role, credential(nil, nil)); err == nil {
			t.Errorf("role %q was accepted", role)
		}
	}
}

func TestSecretWithoutDeliveryBecomesFiles(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	if err := NewEnvironment(f).Add("db", credential(nil, map[string]string{"password": "p"})); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.Path(), "db", "password")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := NewEnvironment(f).Add("odd", credential(nil, map[string]string{"../password": "p"})); err == nil {
		t.Error("a field that climbs out was accepted")
	}
}

func TestListReplaces(t *testing.T) {
	t.Parallel()
	env := NewEnvironment(newFolder(t))
	if err := env.Add("db", credential(&stintv1.Delivery{With: map[string]string{"PGHOST": "new"}}, nil)); err != nil {
		t.Fatal(err)
	}
	list := env.List([]string{"PATH=/bin", "PGHOST=old", "PGHOSTADDR=1"})
	if slices.Contains(list, "PGHOST=old") || !slices.Contains(list, "PGHOST=new") || !slices.Contains(list, "PGHOSTADDR=1") {
		t.Errorf("environment %q", list)
	}
}

// Files with credentials lie in memory where there is a tmpfs of the user's, and in a folder of mode 0700 everywhere.
func TestFoldersAreInMemoryWhereTheyCanBe(t *testing.T) {
	t.Parallel()
	const shm = "/dev/shm" // on Linux a tmpfs, as $XDG_RUNTIME_DIR is
	disk := os.TempDir()
	for _, tc := range []struct {
		candidates []string
		base       string
		memory     bool
	}{
		{[]string{"", shm}, shm, inMemory(shm)},
		{[]string{"dev/shm", shm}, shm, inMemory(shm)}, // relative to nowhere
		{[]string{"/proc", shm}, shm, inMemory(shm)},
		{[]string{"/nonexistent"}, disk, false},
		{nil, disk, false},
	} {
		if !tc.memory {
			tc.base = disk
		}
		if base, memory := chooseBase(tc.candidates...); base != tc.base || memory != tc.memory {
			t.Errorf("of %q: %s, in memory %t; want %s, %t", tc.candidates, base, memory, tc.base, tc.memory)
		}
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err == nil && strings.Contains(string(mounts), " "+shm+" tmpfs ") != inMemory(shm) {
		t.Errorf("in memory is %s: %t, not as /proc/mounts says", shm, inMemory(shm))
	}
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(f.Path())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v", info.Mode(), err)
	}
	if err = f.Close(); err != nil {
		t.Error(err)
	}
}

func TestFoldersOfTheDeadAreRemoved(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	alive, err := open(base, true)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := open(base, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does for a process that is killed
		t.Fatal(err)
	}
	young, old := filepath.Join(base, folderPrefix+"young"), filepath.Join(base, folderPrefix+"old")
	for _, dir := range []string{young, old} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(base, folderPrefix+"link")); err != nil {
		t.Fatal(err)
	}
	sweep(base, time.Now())
	for path, want := range map[string]bool{alive.path: true, dead.path: false, young: true, old: false, filepath.Join(base, folderPrefix+"link"): true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
	if err := alive.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(alive.path); err == nil {
		t.Error("a closed folder is still there")
	}
}

func TestSaveReplacesAndKeepsPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	for _, value := range []string{"first", "second"} {
		paths, err := Save(dir, credential(nil, map[string]string{"password": value}))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(paths[0])
		if err != nil || string(got) != value {
			t.Errorf("saved %q, %v", got, err)
		}
		info, err := os.Stat(paths[0])
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if _, err := Save(dir, credential(nil, map[string]string{"../x": "y"})); err == nil {
		t.Error("a field that climbs out was saved")
	}
	// A link in the way is replaced, not followed.
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	if _, err := Save(dir, credential(nil, map[string]string{"token": "t"})); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "untouched" {
		t.Errorf("the link's target holds %q, %v", got, err)
	}
}
