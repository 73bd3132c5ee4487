package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrKey means that a key file cannot be used. The message says why and what to type.
var ErrKey = errors.New("audit key is not usable")

// Key is the log's Ed25519 key (C2SP signed-note). Its name is the log's origin.
type Key struct {
	Signer   note.Signer
	Verifier note.Verifier
	// Text is the public part in the form that people and tools exchange: <name>+<hash>+<base64>.
	Text string
}

// CreateKey makes a key for the log with the given name in a new file of mode 0600. It never overwrites. The file holds
// one line in the form of golang.org/x/mod/sumdb/note: PRIVATE+KEY+<name>+<hash>+<base64>.
func CreateKey(path, name string) (Key, error) {
	skey, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	key, err := parseKey(skey)
	if err != nil {
		return Key{}, fmt.Errorf("%w: the name %q must be one word without + or spaces: %w", ErrKey, name, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	_, err = f.WriteString(skey + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return Key{}, errors.Join(fmt.Errorf("write audit key: %w", err), os.Remove(path))
	}
	return key, nil
}

// LoadKey reads a key file. One that others can read is refused.
func LoadKey(path string) (Key, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Key{}, fmt.Errorf("%w: %s is not there: %w", ErrKey, path, err)
	case err != nil:
		return Key{}, fmt.Errorf("%w: %w", ErrKey, err)
	case !info.Mode().IsRegular():
		return Key{}, fmt.Errorf("%w: %s is not a file", ErrKey, path)
	case info.Mode().Perm()&0o077 != 0:
		return Key{}, fmt.Errorf("%w: %s has mode %04o and can be read by others: chmod 600 %s",
			ErrKey, path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Key{}, fmt.Errorf("%w: %w", ErrKey, err)
	}
	key, err := parseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return Key{}, fmt.Errorf("%w: %s does not hold one line PRIVATE+KEY+<name>+<hash>+<base64>", ErrKey, path)
	}
	return key, nil
}

// ParseVerifier reads the public part of a key: <name>+<hash>+<base64> (C2SP signed-note).
func ParseVerifier(text string) (note.Verifier, error) {
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is no verifier key of the form <name>+<hash>+<base64>: %w", ErrKey, text, err)
	}
	return v, nil
}

// parseKey reads a private key and derives the public one from its seed.
func parseKey(skey string) (Key, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return Key{}, err
	}
	parts := strings.SplitN(skey, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return Key{}, errors.New("malformed key")
	}
	public, ok := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return Key{}, errors.New("malformed key")
	}
	text, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return Key{}, err
	}
	verifier, err := note.NewVerifier(text)
	return Key{Signer: signer, Verifier: verifier, Text: text}, err
}
