package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	// maxUsers is how many names one request takes, and maxUser how long one may be.
	maxUsers = 1000
	maxUser  = 128
	// listingTakes is how long before its last write a file may have been begun.
	listingTakes = 10 * time.Second
)

// readUsers reads the names of database users, and when they were listed at the earliest: for a file, when it was written;
// for standard input, now, before it is read.
func (a *app) readUsers(file string) ([]string, time.Time, error) {
	listed := time.Now()
	in := a.stdin
	if file != standardInput {
		opened, err := os.Open(file)
		if err != nil {
			return nil, listed, usage("%v", err)
		}
		defer func() { _ = opened.Close() }() // it was only read
		info, err := opened.Stat()
		if err != nil {
			return nil, listed, fmt.Errorf("look at %s: %w", file, err)
		}
		in, listed = opened, info.ModTime().Add(-listingTakes)
	}
	names, err := parseUsers(in)
	if err == nil && len(names) == 0 {
		err = usage("there is no name in %s", file)
	}
	return names, listed, err
}

// parseUsers reads one name a line. Empty lines are left out.
func parseUsers(in io.Reader) ([]string, error) {
	var names []string
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		name := strings.TrimSpace(lines.Text())
		switch {
		case name == "":
		case len(name) > maxUser:
			return nil, usage("line %d: a name has at most %d bytes; is it a list of users, one a line?", len(names)+1, maxUser)
		default:
			names = append(names, name)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, usage("read the names: %v", err)
	}
	return names, nil
}
