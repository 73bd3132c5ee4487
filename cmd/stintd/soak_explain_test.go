package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// explained is how many lines of the log are shown of a lease.
const explained = 12

// explains shows, when the soak has failed, what stintd said of each lease that is still open, since it was first started.
func (s *soak) explains(t *testing.T) {
	t.Helper()
	if !t.Failed() {
		return
	}
	logs, err := filepath.Glob(s.file("stderr-*"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, log := range logs {
		lines = append(lines, strings.Split(string(read(t, log)), "\n")...)
	}
	for _, l := range s.ledger(t).leases {
		if l.State.Final() {
			continue
		}
		of := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return !strings.Contains(line, l.ID.String()) })
		slices.SortFunc(of, func(a, b string) int { return strings.Compare(when(a), when(b)) })
		t.Logf("lease %s of %s was made at %s; stintd said:\n%s", l.ID, l.Role, l.CreatedAt, strings.Join(of[max(0, len(of)-explained):], "\n"))
	}
}

// when is the time of a line of the log, as text that sorts.
func when(line string) string {
	_, rest, _ := strings.Cut(line, `"ts":"`)
	at, _, _ := strings.Cut(rest, `"`)
	return at
}
