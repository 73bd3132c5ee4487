package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/stint-dev/stint/plugins"
)

// report prints findings and turns the worst into an exit status.
func report(out io.Writer, show func(io.Writer, []plugins.Finding) error, found []plugins.Finding) error {
	code := 0
	for _, f := range found {
		switch f.Severity {
		case plugins.Breaks:
			code = exitBreaks
		case plugins.Weakens:
			if code == 0 {
				code = exitWeakens
			}
		}
	}
	if err := show(out, found); err != nil {
		return err
	}
	if code == 0 {
		return nil
	}
	if len(found) == 1 {
		return &codeError{code, errors.New("1 finding")}
	}
	return &codeError{code, fmt.Errorf("%d findings", len(found))}
}

// printJSON prints findings for programs: a list, empty when nothing was found.
func printJSON(out io.Writer, found []plugins.Finding) error {
	type finding struct {
		Severity string `json:"severity"`
		Code     string `json:"code"`
		Subject  string `json:"subject"`
		Problem  string `json:"problem"`
		Remedy   string `json:"remedy,omitempty"`
	}
	list := make([]finding, 0, len(found))
	for _, f := range found {
		list = append(list, finding{string(f.Severity), f.Code, f.Subject, f.Problem, f.Remedy})
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(list)
}

// printText prints findings for people.
func printText(out io.Writer, found []plugins.Finding) error {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%-7s %s: %s (%s)\n", f.Severity, f.Subject, f.Problem, f.Code)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "        mend: %s\n", f.Remedy)
		}
	}
	if len(found) == 0 {
		b.WriteString("ok: nothing found\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
