package resource

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"go.yaml.in/yaml/v4"
)

// decoder reads one document and collects its problems.
type decoder struct {
	file     string
	offset   int // what to add to a node's line to get the file's
	problems []Problem
}

func (d *decoder) at(n *yaml.Node) Position { return Position{File: d.file, Line: n.Line + d.offset} }

func (d *decoder) problem(n *yaml.Node, format string, args ...any) {
	d.problems = append(d.problems, Problem{At: d.at(n), Message: fmt.Sprintf(format, args...)})
}

// load parses a piece into its root mapping. nil means that a problem was noted.
func (d *decoder) load(p piece) *yaml.Node {
	d.offset = p.line - 1
	var doc yaml.Node
	if err := yaml.Load([]byte(p.text), &doc); err != nil {
		line, msg := yamlError(err)
		d.problems = append(d.problems, Problem{Position{d.file, line + d.offset}, "not YAML: " + msg})
		return nil
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		d.problem(&doc, "a document must be a mapping with apiVersion, kind, metadata and spec")
		return nil
	}
	if !d.plain(doc.Content[0]) {
		return nil
	}
	return doc.Content[0]
}

// plain refuses anchors, aliases, merge keys, tags of one's own, and duplicate or odd keys, in the whole tree.
func (d *decoder) plain(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.problem(n, "anchors and aliases are not accepted; write the value out")
		return false
	}
	if !knownTag(n) {
		d.problem(n, "the tag %s is not accepted", n.Tag)
		return false
	}
	ok := true
	seen := map[string]int{}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			ok = d.plainKey(child, seen) && ok
		} else {
			ok = d.plain(child) && ok
		}
	}
	return ok
}

func (d *decoder) plainKey(key *yaml.Node, seen map[string]int) bool {
	if key.Kind != yaml.ScalarNode || key.Anchor != "" || key.ShortTag() != "!!str" {
		d.problem(key, "a key must be plain text")
		return false
	}
	if line, ok := seen[key.Value]; ok {
		d.problem(key, "%q is given twice; first in line %d", key.Value, line)
		return false
	}
	seen[key.Value] = d.at(key).Line
	return true
}

// knownTag reports whether a node has one of the tags of YAML's core schema, or a timestamp's, which is read as text.
func knownTag(n *yaml.Node) bool {
	switch n.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!map", "!!seq", "!!timestamp":
		return true
	}
	return false
}

// yamlError returns the line and the text of a parser's error; line 1 where it names none.
func yamlError(err error) (int, string) {
	e, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return 1, err.Error()
	}
	return max(e.Mark.Line, 1), e.Message
}

// mapping reads the keys of one mapping and remembers which were asked for.
type mapping struct {
	*decoder
	node  *yaml.Node // nil for one that is not there
	owner *yaml.Node // where to report what is missing
	path  string     // "spec.ttl"
	known []string
}

// mapping wraps a node; nil gives an empty mapping, in which everything is missing and nothing is reported twice.
func (d *decoder) mapping(n, owner *yaml.Node, path string) *mapping {
	if n != nil && n.Kind != yaml.MappingNode {
		d.problem(n, "%s must be a mapping, not %s", path, describe(n))
		return &mapping{decoder: d, owner: n, path: path}
	}
	return &mapping{decoder: d, node: n, owner: owner, path: path}
}

// child returns the value of a key, or nil where it is missing or null.
func (m *mapping) child(key string) *yaml.Node {
	m.known = append(m.known, key)
	if m.node == nil {
		return nil
	}
	for i := 0; i+1 < len(m.node.Content); i += 2 {
		if m.node.Content[i].Value == key {
			if v := m.node.Content[i+1]; v.ShortTag() != "!!null" {
				return v
			}
			return nil
		}
	}
	return nil
}

// need is child for a key that must be there.
func (m *mapping) need(key string) *yaml.Node {
	n := m.child(key)
	if n == nil && m.node != nil {
		m.problem(m.node, "%s is missing", m.join(key))
	}
	return n
}

func (m *mapping) join(key string) string {
	if m.path == "" {
		return key
	}
	return m.path + "." + key
}

// sub returns the mapping under a key; one that is missing is empty.
func (m *mapping) sub(key string) *mapping {
	return m.mapping(m.child(key), m.node, m.join(key))
}

// done reports the keys that nobody asked for.
func (m *mapping) done() {
	if m.node == nil {
		return
	}
	for i := 0; i+1 < len(m.node.Content); i += 2 {
		key := m.node.Content[i]
		if !slices.Contains(m.known, key.Value) {
			m.problem(key, "unknown key %s%s", m.join(key.Value), didYouMean(key.Value, m.known))
		}
	}
}

// text returns a string; "" where it is missing.
func (m *mapping) text(key string) string { return m.textOf(m.child(key), m.join(key)) }

func (m *mapping) textOf(n *yaml.Node, path string) string {
	switch {
	case n == nil:
		return ""
	case n.Kind != yaml.ScalarNode || (n.ShortTag() != "!!str" && n.ShortTag() != "!!timestamp"):
		m.problem(n, "%s must be text, not %s", path, describe(n))
		return ""
	}
	return n.Value
}

// line returns a string without control characters, of at most 1,024 bytes.
func (m *mapping) line(key string) string {
	n := m.child(key)
	s := m.textOf(n, m.join(key))
	if len(s) > maxLine || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		m.problem(n, "%s must be one line of at most %d bytes", m.join(key), maxLine)
	}
	return s
}

const maxLine = 1024

// flag returns a boolean; false where it is missing.
func (m *mapping) flag(key string) bool {
	n := m.child(key)
	if n == nil {
		return false
	}
	if n.ShortTag() != "!!bool" {
		m.problem(n, "%s must be true or false, not %s", m.join(key), describe(n))
	}
	return strings.EqualFold(n.Value, "true")
}

// count returns a whole number from 1 to most; def where it is missing.
func (m *mapping) count(key string, def, most int) int {
	n := m.child(key)
	if n == nil {
		return def
	}
	var v int
	if err := n.Load(&v); err != nil || n.ShortTag() != "!!int" || v < 1 || v > most {
		m.problem(n, "%s must be a whole number from 1 to %d, not %s", m.join(key), most, describe(n))
		return def
	}
	return v
}

// maxDuration bounds every duration, so that no sum of a few overflows.
const maxDuration = 366 * 24 * time.Hour

// duration returns a duration of whole seconds from 1 s; def where it is missing or wrong.
func (m *mapping) duration(key string, def time.Duration) time.Duration {
	n := m.child(key)
	if n == nil {
		return def
	}
	v, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil:
		m.problem(n, "%s must be a duration such as 60s, 15m or 1h, not %s", m.join(key), describe(n))
	case v < time.Second || v%time.Second != 0 || v > maxDuration:
		m.problem(n, "%s must be in whole seconds, from 1s to %s, not %s", m.join(key), "8784h", n.Value)
	default:
		return v
	}
	return def
}

// list returns the elements of a sequence; none where it is missing.
func (m *mapping) list(key string) []*yaml.Node {
	n := m.child(key)
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		m.problem(n, "%s must be a list, not %s", m.join(key), describe(n))
		return nil
	}
	return n.Content
}

// describe says what a node is, for messages.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "nothing"
	}
	if len(n.Value) > 64 {
		return fmt.Sprintf("%.61q…", n.Value[:61])
	}
	return fmt.Sprintf("%q", n.Value)
}

// didYouMean proposes what is close to a word, or lists what is known.
func didYouMean(word string, known []string) string {
	known = slices.Compact(slices.Sorted(slices.Values(known)))
	best, dist := "", len(word)/2+1
	for _, k := range known {
		if n := levenshtein.Distance(word, k, nil); n < dist {
			best, dist = k, n
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %s?", best)
	case len(known) == 0:
		return ""
	case len(known) > 12:
		return fmt.Sprintf("; there are %d others", len(known))
	}
	return "; known are " + strings.Join(known, ", ")
}
