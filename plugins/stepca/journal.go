package stepca

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
)

const (
	// journalDir stands in the data directory, and sinceFile in it.
	journalDir = "issued"
	sinceFile  = "since"
	// hourLayout names a file by the hour in which the certificates end that it holds, in UTC.
	hourLayout = "2006-01-02T15"
)

// journal is the list of what was signed, beside the ledger and not a part of it: it knows what an older copy of the ledger does
// not. One line is one certificate; a file is removed when everything in it has expired, so nothing is ever written again.
// Many issues share one write.
type journal struct {
	settings *settings
	dir      string
	// since is from when on it holds everything; zero: from the CA's first certificate on.
	since time.Time
	group *group[issuance]
	// begun are the files whose names are on disk. It belongs to the run of the group.
	begun map[string]bool
}

// issuance is a certificate that was or may have been signed.
type issuance struct {
	lease            plugins.LeaseID
	issued, notAfter time.Time
}

// openJournal goes on with the journal in a data directory, or begins one that holds everything since then; if zero, since ever.
func openJournal(s *settings, dataDir string, since time.Time) (*journal, error) {
	if dataDir == "" {
		return nil, fmt.Errorf("%w: no data directory", errConfig)
	}
	j := &journal{
		settings: s, dir: filepath.Join(dataDir, journalDir), since: since.UTC().Truncate(time.Second), group: newGroup[issuance](),
		begun: map[string]bool{},
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", journalDir, err)
	}
	if err := removeUnfinished(j.dir); err != nil {
		return nil, err
	}
	mark, err := readIfThere(filepath.Join(j.dir, sinceFile))
	if err != nil {
		return nil, err
	}
	if since, err := time.Parse(time.RFC3339, strings.TrimSpace(string(mark))); err == nil {
		j.since = since
		return j, nil
	}
	if err := s.writeFile(filepath.Join(j.dir, sinceFile), []byte(j.since.Format(time.RFC3339)+"\n")); err != nil {
		return nil, err
	}
	return j, syncDir(dataDir)
}

// add returns when a certificate is on disk. An error wraps ErrUnavailable; the line may be there all the same.
func (j *journal) add(ctx context.Context, l *leaf) error {
	err := j.group.do(ctx, j.append, issuance{lease: l.lease, issued: time.Now(), notAfter: l.notAfter})
	if err != nil {
		return fmt.Errorf("note what is signed: %w", err)
	}
	return nil
}

// append writes lines to their files. Only one runs at a time: it is called by way of the group.
func (j *journal) append(items []issuance) error {
	files := map[string][]string{}
	for _, i := range items {
		name := i.notAfter.UTC().Format(hourLayout)
		files[name] = append(files[name], i.line())
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		// The first line break ends a line that a full disk or a kill has cut off.
		if err := j.write(name, "\n"+strings.Join(files[name], "\n")+"\n"); err != nil {
			return fmt.Errorf("%w: %w", plugins.ErrUnavailable, err)
		}
	}
	return nil
}

// write appends to a file, and sees to it that its name is on disk, too.
func (j *journal) write(name, text string) error {
	f, err := os.OpenFile(filepath.Join(j.dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = j.settings.sync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if j.begun[name] {
		return nil
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	j.begun[name] = true
	return j.prune(time.Now())
}

// prune removes the files of what has expired so long ago that no clock which is set back brings it to life.
func (j *journal) prune(now time.Time) error {
	hours, err := j.hours()
	if err != nil {
		return err
	}
	for name, hour := range hours {
		if now.After(hour.Add(time.Hour + keepExpired)) {
			delete(j.begun, name)
			if err := os.Remove(filepath.Join(j.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove what has expired: %w", err)
			}
		}
	}
	return nil
}

// hours returns the files by name, with the hour that each is of.
func (j *journal) hours() (map[string]time.Time, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", journalDir, err)
	}
	hours := map[string]time.Time{}
	for _, e := range entries {
		if hour, err := time.Parse(hourLayout, e.Name()); err == nil {
			hours[e.Name()] = hour
		}
	}
	return hours, nil
}
