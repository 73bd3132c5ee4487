package resource

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxValue is the longest value of a parameter in bytes, as in the API.
const maxValue = 256

// Pattern is an RE2 expression that a whole value must match. The zero value matches nothing.
type Pattern struct {
	text string
	re   *regexp.Regexp
}

// ParsePattern compiles an RE2 expression and anchors it at both ends.
func ParsePattern(text string) (Pattern, error) {
	if text == "" {
		return Pattern{}, errors.New("pattern is empty")
	}
	if _, err := regexp.Compile(text); err != nil { // alone first: "a)(b" would pass once it stands in a group
		return Pattern{}, fmt.Errorf("pattern: %w", err)
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return Pattern{}, fmt.Errorf("pattern: %w", err)
	}
	return Pattern{text: text, re: re}, nil
}

// String returns the expression as it was written.
func (p Pattern) String() string { return p.text }

// Match reports whether the whole value matches.
func (p Pattern) Match(value string) bool { return p.re != nil && p.re.MatchString(value) }

// Parameter is what an agent may fill in a role.
type Parameter struct {
	Name        string
	Description string
	Pattern     Pattern
	Required    bool // when a credential is issued; a declaration may leave it open
}

// CheckValue returns nil if the value matches the pattern and can stand in one segment of a path, else what is wrong
// with it. It never repeats the value.
func (p Parameter) CheckValue(value string) error {
	if err := checkSegment(value); err != nil {
		return err
	}
	if !p.Pattern.Match(value) {
		return fmt.Errorf("must match %s", p.Pattern)
	}
	return nil
}

// checkSegment refuses what could leave a path segment or reach more than one thing, whatever a pattern allows.
func checkSegment(value string) error {
	switch {
	case value == "":
		return errors.New("must not be empty")
	case len(value) > maxValue:
		return fmt.Errorf("must not be longer than %d bytes", maxValue)
	case !utf8.ValidString(value):
		return errors.New("must be UTF-8")
	case strings.ContainsAny(value, `/\*+%`), strings.Contains(value, ".."):
		return errors.New(`must not contain "/", "\", "..", "*", "+" or "%"`)
	case strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("must not contain control characters")
	}
	return nil
}
