package audit

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// epochLine begins the extension line of a checkpoint (C2SP tlog-checkpoint) that names an epoch and where it began.
const epochLine = "epoch "

// Epoch is a stretch of the log that began with a restore: the ledger went on from an older copy, whose records the log
// keeps, and what had come after them was lost. The first epoch is 1, begins at 0, and is named nowhere.
type Epoch struct {
	// Number is greater than that of every epoch before it that was known.
	Number int64 `json:"epoch"`
	// Start is how many records the log kept: the index of the first of this epoch, a log.restored.
	Start int64 `json:"start"`
}

// String is the extension line without its end.
func (e Epoch) String() string {
	return epochLine + strconv.FormatInt(e.Number, 10) + " " + strconv.FormatInt(e.Start, 10)
}

// Epoch returns the number of the epoch that the checkpoint is of.
func (c Checkpoint) Epoch() int64 {
	if n := len(c.Epochs); n > 0 {
		return c.Epochs[n-1].Number
	}
	return 1
}

// Kept returns how many of the first records of an epoch's log are in this one: all, unless a later epoch began before its
// end. A checkpoint of that epoch over more than these is of records that a restore has lost.
func (c Checkpoint) Kept(epoch int64) int64 {
	for _, e := range c.Epochs {
		if e.Number > epoch {
			return e.Start
		}
	}
	return c.Size
}

// epochAt returns the epoch that the record at an index was written in.
func (c Checkpoint) epochAt(index int64) int64 {
	number := int64(1)
	for _, e := range c.Epochs {
		if e.Start <= index {
			number = e.Number
		}
	}
	return number
}

// parseEpochs reads the extension lines of a checkpoint. Those that name epochs come first; others are ignored.
func parseEpochs(lines string, size int64) ([]Epoch, error) {
	var epochs []Epoch
	last, others := Epoch{Number: 1, Start: -1}, false
	for line := range strings.Lines(lines) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasPrefix(line, epochLine) {
			others = true
			continue
		}
		var e Epoch
		if _, err := fmt.Sscanf(line, epochLine+"%d %d", &e.Number, &e.Start); err != nil || e.String() != line || others {
			return nil, fmt.Errorf("%w: %q is no line of an epoch, or out of place", ErrCheckpoint, line)
		}
		if e.Number <= last.Number || e.Start <= last.Start || e.Start >= size {
			return nil, fmt.Errorf("%w: epoch %d cannot begin at record %d", ErrCheckpoint, e.Number, e.Start)
		}
		epochs, last = append(epochs, e), e
	}
	return epochs, nil
}

// Found is how it is known that a ledger is older than what there was.
type Found string

// The ways.
const (
	// FoundCopy: the file says itself that it is a copy, made by `stintd backup`.
	FoundCopy Found = "copy"
	// FoundOlder: a checkpoint that was kept outside the ledger is of records that the ledger does not hold.
	FoundOlder Found = "older"
)

// Restore is what the first record of an epoch says about it. Its fields stand in the order of RFC 8785.
type Restore struct {
	// At is when the copy was made, or when it was found that the ledger is older.
	At    time.Time `json:"at"`
	Epoch int64     `json:"epoch"` // that begins with this record
	Found Found     `json:"found"`
	// Known is the newest checkpoint, kept outside the ledger, of what was lost: its epoch, its root in hex and its size.
	// Zero where none was known.
	KnownEpoch int64  `json:"known_epoch,omitempty"`
	KnownRoot  string `json:"known_root,omitempty"`
	KnownSize  int64  `json:"known_size,omitempty"`
	Size       int64  `json:"size"` // how many records the log keeps: the index of this one
}
