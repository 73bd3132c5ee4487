package resource

import "strings"

// piece is the text of one document within a file.
type piece struct {
	text string
	line int // of the file, on which the text begins
}

// split cuts a stream at its document markers. YAML (1.2.2, section 9.1) forbids both markers at the beginning of a
// line within a document, so no parsing is needed and every document keeps its own text. Pieces without content are
// left out.
func split(text string) []piece {
	var out []piece
	var cur strings.Builder
	start, n := 1, 0
	flush := func(next int) {
		if hasContent(cur.String()) {
			out = append(out, piece{text: cur.String(), line: start})
		}
		cur.Reset()
		start = next
	}
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		n++
		switch rest, marker := cutMarker(line); {
		case !marker:
			cur.WriteString(line)
		case hasContent(rest): // "--- {kind: Role}"
			flush(n)
			cur.WriteString(line)
		default:
			flush(n + 1)
		}
	}
	flush(n + 1)
	return out
}

// cutMarker reports whether a line begins with a document marker, and what follows it.
func cutMarker(line string) (string, bool) {
	for _, marker := range []string{"---", "..."} {
		rest, ok := strings.CutPrefix(line, marker)
		if ok && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n")) {
			return rest, true
		}
	}
	return "", false
}

// hasContent reports whether there is more than blank lines and comments.
func hasContent(text string) bool {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return true
		}
	}
	return false
}
