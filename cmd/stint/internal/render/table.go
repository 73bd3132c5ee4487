package render

import (
	"io"
	"strings"
	"unicode/utf8"
)

const gap = "  "

// Table is text in columns.
type Table struct {
	rows [][]string
}

// NewTable returns a table with a heading; without one, with none.
func NewTable(heading ...string) *Table {
	t := &Table{}
	if len(heading) > 0 {
		t.Row(heading...)
	}
	return t
}

// Row adds a row. Every cell is cleaned; empty ones at the end are left out.
func (t *Table) Row(cells ...string) {
	row := make([]string, 0, len(cells))
	for _, cell := range cells {
		row = append(row, Clean(cell))
	}
	for len(row) > 0 && row[len(row)-1] == "" {
		row = row[:len(row)-1]
	}
	t.rows = append(t.rows, row)
}

// Write writes the table, one row a line, columns two spaces apart.
func (t *Table) Write(w io.Writer) error {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)) + gap)
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
