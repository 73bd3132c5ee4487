// Package render writes what the programs tell people and machines: text without control characters, tables, JSON and
// YAML.
package render

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	escape = '\x1b'
	csi    = '\u009b' // ESC [ in one character
)

// Clean makes text of others safe for a terminal: ANSI control sequences, C0 and C1 control characters, and all format
// characters (bidirectional overrides, zero width, tags) are removed, line breaks and tabs become spaces, and what is not
// UTF-8 becomes U+FFFD. Text that an agent wrote is an attack on the terminal of who reads it.
func Clean(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r == escape && strings.HasPrefix(s, "["):
			s = skipCSI(s[1:])
		case r == csi:
			s = skipCSI(s)
		case r == '\n', r == '\r', r == '\t', unicode.In(r, unicode.Zl, unicode.Zp):
			b.WriteByte(' ')
		case !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs):
			b.WriteRune(r)
		}
	}
	return b.String()
}

// plain says that there is nothing to do, which is nearly always.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// skipCSI drops parameters and final byte of a control sequence (ECMA-48, 5.4).
func skipCSI(s string) string {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0x40 && c <= 0x7e:
			return s[i+1:]
		case c < 0x20 || c > 0x3f:
			return s[i:] // not a sequence after all
		}
	}
	return ""
}

// escapeJSON writes control and format characters in JSON as \u escapes: the same document, but harmless on a terminal.
func escapeJSON(doc []byte) []byte {
	const hex = "0123456789abcdef"
	var b []byte
	unit := func(u uint16) {
		b = append(b, '\\', 'u', hex[u>>12], hex[u>>8&15], hex[u>>4&15], hex[u&15])
	}
	for _, r := range string(doc) { // JSON is UTF-8; outside of strings it is ASCII
		switch {
		case r < utf8.RuneSelf && r != 0x7f, !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Zl, unicode.Zp):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			unit(uint16(0xd800 + r>>10)) //nolint:gosec // ten bits
			unit(uint16(0xdc00 + r&0x3ff))
		default:
			unit(uint16(r)) //nolint:gosec // checked above
		}
	}
	return b
}
