package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"github.com/stint-dev/stint/broker/audit"
)

func TestKeyFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.key")
	made, err := audit.CreateKey(path, "log.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	if info, serr := os.Stat(path); serr != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file is not 600: %v", serr)
	}
	if _, err = audit.CreateKey(path, "log.example/audit"); !errors.Is(err, os.ErrExist) {
		t.Errorf("create twice: %v", err)
	}
	loaded, err := audit.LoadKey(path)
	if err != nil || loaded.Text != made.Text || loaded.Signer.Name() != "log.example/audit" {
		t.Fatalf("loaded %q, made %q: %v", loaded.Text, made.Text, err)
	}
	signed, err := note.Sign(&note.Note{Text: "x\n"}, loaded.Signer)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(made.Text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
		t.Errorf("the public text does not verify what the key signs: %v", err)
	}
}

func TestBadKeyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := audit.CreateKey(good, "log.example/audit"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(good, 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("PRIVATE+KEY+x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{good, empty, dir, filepath.Join(dir, "none")} {
		if _, err := audit.LoadKey(path); !errors.Is(err, audit.ErrKey) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := audit.CreateKey(filepath.Join(dir, "new"), "two words"); !errors.Is(err, audit.ErrKey) {
		t.Errorf("a name of two words: %v", err)
	}
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	want := audit.Checkpoint{
		Origin: "log.example/audit", Size: 12, Root: [32]byte{1, 2}, Epochs: []audit.Epoch{{Number: 2, Start: 5}, {Number: 4, Start: 11}},
	}
	signed, err := want.Sign(key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if got, oerr := audit.OpenCheckpoint(signed, key.Verifier); oerr != nil || !cmp.Equal(got, want) {
		t.Errorf("got %+v: %v", got, oerr)
	}
	for i := range signed {
		bad := []byte(string(signed))
		bad[i] ^= 0x20 // not the lowest bits: base64 of a signature ends in two that mean nothing
		if _, err = audit.OpenCheckpoint(bad, key.Verifier); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	other, err := audit.Checkpoint{Origin: "other.example/log", Size: 1}.Sign(key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenCheckpoint(other, key.Verifier); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("a checkpoint of another log: %v", err)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	f.Add(audit.Checkpoint{Origin: "log.example/audit", Size: 12}.Text())
	f.Add("o\n-1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
	f.Add("o\n9\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nepoch 2 5\nepoch 3 8\next\n")
	f.Add("o\n01\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\next\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := audit.ParseCheckpoint(text)
		if err != nil {
			if !errors.Is(err, audit.ErrCheckpoint) {
				t.Errorf("error %v", err)
			}
			return
		}
		if got := c.Text(); len(text) < len(got) || text[:len(got)] != got {
			t.Errorf("%q was read as %q", text, got)
		}
	})
}

// TestEpochsOfCheckpoints: what a checkpoint says of its epochs, and what it must not.
func TestEpochsOfCheckpoints(t *testing.T) {
	t.Parallel()
	const head = "o\n12\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
	c, err := audit.ParseCheckpoint(head + "epoch 2 5\nepoch 4 11\nsomething else\n")
	if err != nil || c.Epoch() != 4 {
		t.Fatalf("got %+v, %v", c, err)
	}
	for epoch, kept := range map[int64]int64{1: 5, 2: 11, 3: 11, 4: 12, 5: 12} {
		if got := c.Kept(epoch); got != kept {
			t.Errorf("of epoch %d it keeps %d records, want %d", epoch, got, kept)
		}
	}
	if plain, err := audit.ParseCheckpoint(head + "something else\n"); err != nil || plain.Epoch() != 1 || plain.Kept(1) != 12 {
		t.Errorf("without epochs: %+v, %v", plain, err)
	}
	for _, bad := range []string{
		"epoch 1 5", "epoch 2 12", "epoch 2 -1", "epoch 02 5", "epoch 2 5 ", "epoch 2", "epoch two 5", "epoch 2 5\nepoch 2 6",
		"epoch 3 5\nepoch 2 6", "epoch 2 6\nepoch 3 6", "something else\nepoch 2 5",
	} {
		if c, err := audit.ParseCheckpoint(head + bad + "\n"); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("%q was read as %+v, %v", bad, c, err)
		}
	}
}
