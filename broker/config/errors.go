package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// Fault is one fault of a configuration. It never holds the value of a secret.
type Fault struct {
	File    string
	Line    int // from 1; 0 where no line can be named
	Problem string
}

// String returns "stint.hcl:12: problem".
func (f Fault) String() string {
	if f.Line == 0 {
		return f.File + ": " + f.Problem
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Problem)
}

// Error holds all faults of a configuration, by position.
type Error struct {
	Faults []Fault
}

// Error returns the faults, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// faults collects.
type faults struct {
	list []Fault
}

// add notes a problem at a place. The line is where the place begins.
func (f *faults) add(at hcl.Range, problem string) {
	f.list = append(f.list, Fault{File: at.Filename, Line: at.Start.Line, Problem: problem})
}

// diagnose notes what the parser found.
func (f *faults) diagnose(diags hcl.Diagnostics) {
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		var at hcl.Range
		if d.Subject != nil {
			at = *d.Subject
		}
		f.add(at, strings.TrimSuffix(lowerFirst(d.Summary)+": "+oneLine(d.Detail), "."))
	}
}

// err returns an *Error, or nil if nothing was noted.
func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	slices.SortStableFunc(f.list, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return &Error{Faults: slices.Compact(f.list)}
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
