package stepca

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// lineShape is what a line looks like: X is a hexadecimal digit, 0 a decimal one, all else itself. Every line is as long.
const lineShape = "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX 0000-00-00T00:00:00Z 0000-00-00T00:00:00Z"

var errJournal = errors.New("the list of what was signed is damaged")

// line is the serial number, when it was issued, and its end.
func (i issuance) line() string {
	return i.lease.String() + " " + i.issued.UTC().Format(time.RFC3339) + " " + i.notAfter.UTC().Format(time.RFC3339)
}

// readLine reads one line of the file of an hour.
func readLine(line string, hour time.Time) (issuance, error) {
	fields := strings.Fields(line)
	if len(line) != len(lineShape) || len(fields) != 3 {
		return issuance{}, errJournal
	}
	raw, err := hex.DecodeString(fields[0])
	i := issuance{}
	if err != nil || copy(i.lease[:], raw) != len(i.lease) {
		return issuance{}, errJournal
	}
	var issuedErr error
	i.issued, issuedErr = time.Parse(time.RFC3339, fields[1])
	i.notAfter, err = time.Parse(time.RFC3339, fields[2])
	if err != nil || issuedErr != nil || !i.notAfter.Truncate(time.Hour).Equal(hour) {
		return issuance{}, errJournal
	}
	return i, nil
}

// cutOff reports whether a line is the beginning of one, as a kill, a full disk or a loss of power leave it. Nothing that it was
// of has left: who writes a line waits until all of it is on disk.
func cutOff(line string) bool {
	line = strings.TrimRight(line, "\x00")
	if len(line) >= len(lineShape) {
		return false
	}
	for i := range len(line) {
		c := line[i]
		digit := c >= '0' && c <= '9'
		switch lineShape[i] {
		case '0':
			if !digit {
				return false
			}
		case 'X':
			if !digit && (c < 'A' || c > 'F') {
				return false
			}
		default:
			if c != lineShape[i] {
				return false
			}
		}
	}
	return true
}

// issued yields what has not expired. What is damaged is the last that is yielded; the rest is listed all the same.
func (j *journal) issued(ctx context.Context, now time.Time) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		hours, err := j.hours()
		if err != nil {
			yield(plugins.Found{}, fmt.Errorf("%w: %w", plugins.ErrUnavailable, err))
			return
		}
		var faults []error
		for _, name := range slices.Sorted(maps.Keys(hours)) {
			if !now.Before(hours[name].Add(time.Hour)) {
				continue
			}
			found, err := j.read(name, hours[name], now)
			faults = append(faults, err)
			for _, f := range found {
				if !yield(f, nil) {
					return
				}
			}
			if ctx.Err() != nil {
				yield(plugins.Found{}, fmt.Errorf("%w: %w", plugins.ErrUnavailable, context.Cause(ctx)))
				return
			}
		}
		if err := errors.Join(faults...); err != nil {
			yield(plugins.Found{}, err)
			return
		}
		if until := j.since.Add(j.settings.MaxTTL); now.Before(until) && !j.since.IsZero() {
			yield(plugins.Found{}, &plugins.PartialError{Since: j.since, Problem: fmt.Sprintf(
				"what was signed before %s, when the list begins, may be valid until %s", j.since.Format(time.RFC3339), until.Format(time.RFC3339))})
		}
	}
}

// read reads a file. With an error it returns what could be read.
func (j *journal) read(name string, hour, now time.Time) ([]plugins.Found, error) {
	text, err := os.ReadFile(filepath.Join(j.dir, name))
	if err != nil {
		return nil, fmt.Errorf("%w: read what was signed: %w", plugins.ErrUnavailable, err)
	}
	var found []plugins.Found
	for n, line := range strings.Split(string(text), "\n") {
		i, fault := readLine(line, hour)
		switch {
		case fault == nil && now.Before(i.notAfter):
			serial := i.lease.String()
			found = append(found, plugins.Found{
				Handle: plugins.Handle(serial), PublicRef: "serial " + serial, IssuedAt: i.issued, NotAfter: i.notAfter,
			})
		case fault != nil && !cutOff(line):
			err = errors.Join(err, fmt.Errorf("%w: %w: line %d of %s", plugins.ErrMisconfigured, fault, n+1, name))
		}
	}
	return found, err
}
