package main

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"testing"
)

// window is how much of a secret is looked up first. Every secret of the soak is longer.
const window = 8

// verifySecrets looks for every secret that was handed out, by value, in every file of the installation and in what the
// status port serves. There are thousands: a text is read once, and looked up by its windows.
func (s *soak) verifySecrets(t *testing.T) {
	t.Helper()
	hidden := map[[window]byte][][]byte{}
	count := 0
	for _, credential := range s.issued {
		for _, value := range (secrets{}).with(credential) {
			if len(value) < window {
				t.Fatalf("a secret of %s is too short to look for", credential.Lease.GetRole())
			}
			count++
			key := [window]byte(value)
			hidden[key] = append(hidden[key], value)
		}
	}
	if !holds(bytes.Join([][]byte{[]byte("before"), anyOf(hidden), []byte("after")}, nil), hidden) {
		t.Fatal("the search finds nothing where there is something")
	}
	files := 0
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		if holds(read(t, path), hidden) {
			t.Errorf("%s holds a secret", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/metrics", "/readyz", "/bundle.pem", "/crl.pem"} {
		if holds(s.get(t, path), hidden) {
			t.Errorf("%s serves a secret", path)
		}
	}
	for _, text := range s.errors {
		if holds(text, hidden) {
			t.Error("an error that an agent was told holds a secret") // and is not printed
		}
	}
	t.Logf("looked for %d secrets in %d files and %d errors: none is there", count, files, len(s.errors))
}

// holds reports whether a text holds one of the secrets, or what looks like a token of Vault's.
func holds(text []byte, hidden map[[window]byte][][]byte) bool {
	for i := range max(0, len(text)-window+1) {
		for _, value := range hidden[[window]byte(text[i:])] {
			if bytes.HasPrefix(text[i:], value) {
				return true
			}
		}
	}
	return bytes.Contains(text, []byte("hvs."))
}

// anyOf returns one of them.
func anyOf(hidden map[[window]byte][][]byte) []byte {
	for _, values := range hidden {
		return values[0]
	}
	return nil
}
