package devdomain

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSweep removes a directory whose owner is dead, and no other.
func TestSweep(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dead, owner, err := ownDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(dead, "agent.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	alive, living, err := ownDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(parent, dirPattern+"data")
	link := filepath.Join(parent, dirPattern+"link")
	if err = os.Mkdir(foreign, dirMode); err != nil {
		t.Fatal(err)
	}
	if err = os.Symlink(dead, link); err != nil {
		t.Fatal(err)
	}
	if err = owner.Close(); err != nil { // as the end of its process does
		t.Fatal(err)
	}
	next, third, err := ownDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("the directory of a dead owner is there: %v", err)
	}
	for _, dir := range []string{alive, foreign, link, next} {
		if _, err = os.Lstat(dir); err != nil {
			t.Errorf("swept: %v", err)
		}
	}
	for _, f := range []*os.File{living, third} {
		if err = f.Close(); err != nil {
			t.Error(err)
		}
	}
}
