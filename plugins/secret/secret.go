// Package secret holds credential material so that it can be carried but not printed.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// redacted is what every formatting verb and encoder sees.
const redacted = "[secret]"

// ErrNotEncodable is returned by every encoder that is asked to write a Value.
var ErrNotEncodable = errors.New("secret: a value cannot be encoded; use Expose where it must leave")

// Value is credential material: a password, a token, a private key. Its bytes sit in a closure, because a
// struct's unexported field is still printed by %v and %d, and a closure by no verb. The zero Value is empty.
//
// Expose is the only way out. Every call of it stands in a list that a test keeps.
type Value struct {
	expose func() []byte
}

// New takes ownership of b: the caller MUST NOT keep or change it.
func New(b []byte) Value {
	return Value{expose: func() []byte { return b }}
}

// FromString copies s into a Value. The string itself stays in memory until it is collected, so bytes are better
// where there is a choice.
func FromString(s string) Value {
	return New([]byte(s))
}

// Expose returns the material itself, not a copy. The caller MUST NOT log it, store it, or put it into an error.
func (v Value) Expose() []byte {
	if v.expose == nil {
		return nil
	}
	return v.expose()
}

// IsZero reports whether there is no material.
func (v Value) IsZero() bool {
	return v.expose == nil || len(v.expose()) == 0
}

// Equal compares in constant time.
func (v Value) Equal(w Value) bool {
	return subtle.ConstantTimeCompare(v.Expose(), w.Expose()) == 1
}

// Wipe overwrites the material with zeros. Copies of the Value share it and are wiped with it.
func (v Value) Wipe() {
	clear(v.Expose())
}

// String returns a fixed word, never the material.
func (Value) String() string { return redacted }

// Format writes a fixed word for every verb.
func (Value) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, redacted) // fmt.State offers no way to report this
}

// MarshalText refuses, so that no JSON, YAML or text encoder writes the material or a false one.
func (Value) MarshalText() ([]byte, error) { return nil, ErrNotEncodable }
