package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/stint-dev/stint/plugins/secret"
)

// maxSecret bounds a secret's file, in bytes.
const maxSecret = 1 << 20

// SecretRef says where a secret is: file:///path or env://NAME. It is no secret itself and can be printed.
type SecretRef string

// ParseSecretRef reads a reference. Its error never repeats s, which may be a secret that was pasted.
func ParseSecretRef(s string) (SecretRef, error) {
	ref := SecretRef(s)
	return ref, ref.check()
}

// check says what is wrong with a reference, without repeating it.
func (r SecretRef) check() error {
	if path, ok := strings.CutPrefix(string(r), "file://"); ok {
		if !filepath.IsAbs(path) {
			return errors.New("secret reference: write file:// and an absolute path, as in file:///etc/stint/key")
		}
		return nil
	}
	if name, ok := strings.CutPrefix(string(r), "env://"); ok {
		if name == "" || strings.ContainsAny(name, "= \x00/") {
			return errors.New("secret reference: write env:// and the name of a variable, as in env://VAULT_SECRET_ID")
		}
		return nil
	}
	return errors.New("a secret must not stand here; write where it is: file:///path or env://NAME")
}

// Load reads the secret now, without the line break at its end. A file must be a regular one that nobody but its owner
// can read; below $CREDENTIALS_DIRECTORY the group may, because there systemd shows the mask of an ACL as its mode.
// An empty secret is an error.
func (r SecretRef) Load() (secret.Value, error) {
	if err := r.check(); err != nil {
		return secret.Value{}, err
	}
	if name, ok := strings.CutPrefix(string(r), "env://"); ok {
		return fromEnvironment(name)
	}
	path := strings.TrimPrefix(string(r), "file://")
	raw, err := readPrivate(path)
	if err != nil {
		return secret.Value{}, fmt.Errorf("secret %s: %w", r, err)
	}
	raw = bytes.TrimRight(raw, "\r\n")
	if len(raw) == 0 {
		return secret.Value{}, fmt.Errorf("secret %s is empty", r)
	}
	return secret.New(raw), nil
}

func fromEnvironment(name string) (secret.Value, error) {
	value := os.Getenv(name)
	if value == "" {
		return secret.Value{}, fmt.Errorf("secret env://%s: the variable is not set", name)
	}
	return secret.FromString(value), nil
}

// readPrivate reads a file whose mode it has checked.
func readPrivate(path string) (_ []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if open := info.Mode().Perm() & forbidden(path); open != 0 {
		return nil, fmt.Errorf("others can read or write it (mode %04o); chmod 600 %s", info.Mode().Perm(), path)
	}
	if info.Size() > maxSecret {
		return nil, fmt.Errorf("it has %d bytes, more than %d", info.Size(), maxSecret)
	}
	return io.ReadAll(io.LimitReader(file, maxSecret))
}

// forbidden returns the bits of a mode that a secret's file must not have.
func forbidden(path string) os.FileMode {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && within(path, dir) {
		return 0o037
	}
	return 0o077
}
