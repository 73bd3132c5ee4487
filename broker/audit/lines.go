package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// tail is how much of a file's end is searched for its last line.
const tail = 1 << 20

// exportMode is that of the copies.
const exportMode = 0o600

// openLines opens a file of JSON lines for appending and reads its last whole line into last. What follows that line is
// what a crash left of another, and is cut off. It returns false where there is no line, and no file for an empty path.
func openLines(path string, last any) (f *os.File, found bool, err error) {
	if path == "" {
		return nil, false, nil
	}
	f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, exportMode)
	if err != nil {
		return nil, false, fmt.Errorf("open audit export: %w", err)
	}
	size, whole, err := lastLine(f, last)
	if err == nil && whole != size {
		err = f.Truncate(whole)
	}
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("open audit export %s: %w", path, err), f.Close())
	}
	return f, whole > 0, nil
}

// lastLine reads the last whole line of a file, and returns how long the file is and how long up to the end of that line;
// zero where there is none.
func lastLine(f *os.File, last any) (size, whole int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	from := max(0, info.Size()-tail)
	b, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return 0, 0, err
	}
	for end := bytes.LastIndexByte(b, '\n'); end >= 0; end = bytes.LastIndexByte(b[:end], '\n') {
		line := b[bytes.LastIndexByte(b[:end], '\n')+1 : end]
		if json.Unmarshal(line, last) == nil {
			return info.Size(), from + int64(end) + 1, nil
		}
	}
	if from > 0 {
		return 0, 0, fmt.Errorf("its last %d bytes hold no line of JSON; move it away", tail)
	}
	return info.Size(), 0, nil
}

// NewestCheckpoint returns the newest checkpoint in a file that an exporter writes, nil where there is none. It reads the
// end of the file only, and changes nothing.
func NewestCheckpoint(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the newest checkpoint: %w", err)
	}
	var line exportedCheckpoint
	_, whole, err := lastLine(f, &line)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read the newest checkpoint of %s: %w", path, err)
	}
	if whole == 0 {
		return nil, nil
	}
	return []byte(line.Checkpoint), nil
}
