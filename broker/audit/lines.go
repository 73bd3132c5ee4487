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
	if found, err = lastLine(f, last); err != nil {
		return nil, false, errors.Join(fmt.Errorf("open audit export %s: %w", path, err), f.Close())
	}
	return f, found, nil
}

// lastLine reads the last whole line of a file and cuts what follows it.
func lastLine(f *os.File, last any) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	from := max(0, info.Size()-tail)
	b, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return false, err
	}
	for end := bytes.LastIndexByte(b, '\n'); end >= 0; end = bytes.LastIndexByte(b[:end], '\n') {
		line := b[bytes.LastIndexByte(b[:end], '\n')+1 : end]
		if json.Unmarshal(line, last) == nil {
			return true, cut(f, info.Size(), from+int64(end)+1)
		}
	}
	if from > 0 {
		return false, fmt.Errorf("its last %d bytes hold no line of JSON; move it away", tail)
	}
	return false, cut(f, info.Size(), 0)
}

func cut(f *os.File, size, to int64) error {
	if size == to {
		return nil
	}
	return f.Truncate(to)
}
