package recipe

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/stint-dev/stint/plugins"
)

// maxValue is the longest parameter value, in bytes.
const maxValue = 512

// placeholder is {{ .params.NAME }} or {{ .ttl }}.
var placeholder = regexp.MustCompile(`\{\{\s*\.(?:params\.([A-Za-z_][A-Za-z0-9_-]*)|(ttl))\s*\}\}`)

var errStrayBraces = errors.New("only {{ .params.NAME }} and {{ .ttl }} are known")

// piece is literal text, or a parameter, or the TTL.
type piece struct {
	literal string
	param   string
	ttl     bool
}

// template is text with placeholders, taken apart.
type template []piece

func parseTemplate(text string) (template, error) {
	var t template
	rest := text
	for rest != "" {
		at := placeholder.FindStringSubmatchIndex(rest)
		if at == nil {
			break
		}
		if at[0] > 0 {
			t = append(t, piece{literal: rest[:at[0]]})
		}
		if at[2] >= 0 {
			t = append(t, piece{param: rest[at[2]:at[3]]})
		} else {
			t = append(t, piece{ttl: true})
		}
		rest = rest[at[1]:]
	}
	if rest != "" {
		t = append(t, piece{literal: rest})
	}
	for _, p := range t {
		if strings.Contains(p.literal, "{{") || strings.Contains(p.literal, "}}") {
			return nil, fmt.Errorf("%q: %w", text, errStrayBraces)
		}
	}
	return t, nil
}

// constant reports whether the template holds no placeholder.
func (t template) constant() bool {
	for _, p := range t {
		if p.param != "" || p.ttl {
			return false
		}
	}
	return true
}

// prefix is the literal text before the first placeholder.
func (t template) prefix() string {
	if len(t) == 0 {
		return ""
	}
	return t[0].literal
}

// Values are what fills the placeholders of one request.
type Values struct {
	Params map[string]string
	TTL    int64 // seconds
}

func (t template) fill(v Values) (string, error) {
	var out strings.Builder
	for _, p := range t {
		switch {
		case p.ttl:
			fmt.Fprintf(&out, "%ds", v.TTL)
		case p.param != "":
			value, ok := v.Params[p.param]
			if !ok {
				return "", &plugins.RejectedError{Field: "parameters." + p.param, Problem: "is missing"}
			}
			if problem := badValue(value); problem != "" {
				return "", &plugins.RejectedError{Field: "parameters." + p.param, Problem: problem}
			}
			out.WriteString(value)
		default:
			out.WriteString(p.literal)
		}
	}
	return out.String(), nil
}

// badValue says what is wrong with a parameter's value, or nothing. The broker has matched it against its pattern
// before; this stands behind a pattern that is too wide. Spaces are refused because net/url and Vault disagree on them.
func badValue(value string) string {
	switch {
	case value == "":
		return "is empty"
	case len(value) > maxValue:
		return fmt.Sprintf("is longer than %d bytes", maxValue)
	case !utf8.ValidString(value):
		return "is not valid UTF-8"
	case value == "." || strings.Contains(value, ".."):
		return `is "." or holds ".."`
	}
	if i := strings.IndexFunc(value, refused); i >= 0 {
		r, _ := utf8.DecodeRuneInString(value[i:])
		return fmt.Sprintf("holds %q, which no parameter may", r)
	}
	return ""
}

// refusedRunes mean something to Vault's paths or policies, or to URLs.
const refusedRunes = `/ \ * + % ? # { } "`

func refused(r rune) bool {
	return strings.ContainsRune(refusedRunes, r) || unicode.IsSpace(r) || !unicode.IsPrint(r)
}
