package attestor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	anySegment = "*"  // matches exactly one path segment
	anyTail    = "**" // last segment only: matches one or more segments
)

// Pattern is a SPIFFE ID in whose path a whole segment may be "*", which matches exactly one segment, and whose last
// segment may be "**", which matches one or more. A star inside a segment and in the trust domain is refused, so a
// pattern always names one trust domain. A pattern without a star matches that one ID. The zero value matches nothing.
type Pattern struct {
	td       spiffeid.TrustDomain
	segments []string
	text     string
}

// ParsePattern parses a pattern such as "spiffe://example.org/agent/invoice/*". The rest of it must be a valid SPIFFE
// ID with a path.
func ParsePattern(text string) (Pattern, error) {
	rest, ok := strings.CutPrefix(text, "spiffe://")
	if !ok {
		return Pattern{}, fmt.Errorf("pattern %q must begin with spiffe://", text)
	}
	name, path, ok := strings.Cut(rest, "/")
	if !ok || path == "" {
		return Pattern{}, fmt.Errorf("pattern %q has no path; a whole trust domain is written spiffe://%s/**", text, name)
	}
	if strings.Contains(name, anySegment) {
		return Pattern{}, fmt.Errorf("pattern %q: the trust domain cannot be a wildcard", text)
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return Pattern{}, fmt.Errorf("pattern %q: %w", text, err)
	}
	segments := strings.Split(path, "/")
	if err := checkSegments(segments); err != nil {
		return Pattern{}, fmt.Errorf("pattern %q: %w", text, err)
	}
	return Pattern{td: td, segments: segments, text: text}, nil
}

// checkSegments says what is wrong with the path of a pattern.
func checkSegments(segments []string) error {
	for i, s := range segments {
		switch {
		case s == anySegment:
		case s == anyTail:
			if i != len(segments)-1 {
				return errors.New("** may only be the last segment")
			}
		case strings.Contains(s, anySegment):
			return fmt.Errorf("segment %q: a star stands for a whole segment", s)
		default:
			if err := spiffeid.ValidatePathSegment(s); err != nil {
				return fmt.Errorf("segment %q: %w", s, err)
			}
		}
	}
	return nil
}

// String returns the pattern as it was written.
func (p Pattern) String() string { return p.text }

// TrustDomain returns the one trust domain that the pattern names.
func (p Pattern) TrustDomain() spiffeid.TrustDomain { return p.td }

// Exact returns the single SPIFFE ID that the pattern matches; false if it has a star.
func (p Pattern) Exact() (spiffeid.ID, bool) {
	if p.td.IsZero() || slices.Contains(p.segments, anySegment) || p.tail() {
		return spiffeid.ID{}, false
	}
	id, err := spiffeid.FromSegments(p.td, p.segments...)
	return id, err == nil
}

// Match says whether the pattern matches an ID.
func (p Pattern) Match(id spiffeid.ID) bool {
	if p.td.IsZero() || id.TrustDomain() != p.td {
		return false
	}
	path := strings.TrimPrefix(id.Path(), "/")
	for i, want := range p.segments {
		if want == anyTail {
			return path != ""
		}
		var got string
		var more bool
		got, path, more = strings.Cut(path, "/")
		if got == "" || (want != anySegment && want != got) || (more == (i == len(p.segments)-1)) {
			return false
		}
	}
	return true
}

// Overlaps says whether there is an ID that both patterns match.
func (p Pattern) Overlaps(q Pattern) bool {
	if p.td.IsZero() || p.td != q.td {
		return false
	}
	for i := range max(len(p.segments), len(q.segments)) {
		if i >= len(p.segments) || i >= len(q.segments) {
			return false
		}
		a, b := p.segments[i], q.segments[i]
		if a == anyTail || b == anyTail {
			return true
		}
		if a != b && a != anySegment && b != anySegment {
			return false
		}
	}
	return true
}

// Compare orders patterns by how specific they are: negative if p is more specific than q. Segments are compared from
// the left, a literal before "*" before "**". Of two different patterns that match one ID, one is always more specific,
// so the most specific of several is never in doubt; patterns that match no common ID may compare equal.
func (p Pattern) Compare(q Pattern) int {
	for i := range min(len(p.segments), len(q.segments)) {
		if c := rank(p.segments[i]) - rank(q.segments[i]); c != 0 {
			return c
		}
	}
	return len(q.segments) - len(p.segments)
}

func rank(segment string) int {
	switch segment {
	case anySegment:
		return 1
	case anyTail:
		return 2
	}
	return 0
}

func (p Pattern) tail() bool {
	return len(p.segments) > 0 && p.segments[len(p.segments)-1] == anyTail
}
