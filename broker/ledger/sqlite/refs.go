package sqlite

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker/lease"
)

// minRef is the length from which a part of a handle is worth finding.
const minRef = 8

// refs returns what a person may find somewhere and look the lease up by: its public reference, its handle, and the
// string values of a handle that is JSON, with the last segment of those that are paths.
func refs(l lease.Lease) []string {
	var out []string
	add := func(s string) {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	add(l.PublicRef)
	var parts any
	if err := json.Unmarshal([]byte(l.Handle), &parts); err != nil {
		parts = string(l.Handle)
	}
	walk(parts, func(s string) {
		if len(s) < minRef {
			return
		}
		add(s)
		if i := strings.LastIndexByte(s, '/'); len(s)-i-1 >= minRef {
			add(s[i+1:])
		}
	})
	return out
}

// walk calls fn for every string value in a JSON value.
func walk(v any, fn func(string)) {
	switch v := v.(type) {
	case string:
		fn(v)
	case []any:
		for _, x := range v {
			walk(x, fn)
		}
	case map[string]any:
		for _, x := range v {
			walk(x, fn)
		}
	}
}
