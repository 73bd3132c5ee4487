package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// exportEvery is how often the copy is brought up to date at most; retryEvery, how long a failed attempt rests.
const (
	exportEvery = 200 * time.Millisecond
	retryEvery  = 5 * time.Second
)

// errShorter: the log holds less than was exported, and no restore says why.
var errShorter = errors.New("the log is shorter than its exported copy: its end was cut off")

// Source is a log that can be followed. *ledger.Ledger is one.
type Source interface {
	// ViewLog runs fn on a snapshot.
	ViewLog(ctx context.Context, fn func(Reader) error) error
	// Grown returns a channel that is closed when the log next grows.
	Grown() <-chan struct{}
}

// ExportConfig says what is copied where. An empty path switches that copy off.
type ExportConfig struct {
	Source Source
	// File gets one line of JSON per record: {"index":N,"record":{…}}, the record byte for byte as it was hashed. After a
	// restore, indexes go on from where the new epoch began, and lines also say "epoch".
	File string
	// Checkpoints gets one line of JSON per round: {"time":…,"size":N,"checkpoint":"…"}. It is only ever appended to.
	Checkpoints string
	Logger      *zap.Logger
}

// Exporter keeps copies of the log outside the ledger: the records for a SIEM, the checkpoints for shipping away. The
// ledger is the truth; an exporter that stops or lags holds up nobody. Where it left off stands in the files' last lines.
type Exporter struct {
	cfg    ExportConfig // its paths are touched by Run's goroutine only
	reopen chan struct{}
	paths  atomic.Pointer[exportPaths] // those that Reopen goes to

	file, checkpoints *os.File
	next              place // of the first record that is not exported yet
	noted             place // the size of the last checkpoint in its file
}

// place is an index or a size in the log of an epoch.
type place struct{ epoch, at int64 }

// later returns the later of two places: logs of later epochs come later.
func (p place) later(o place) place {
	if o.epoch > p.epoch || (o.epoch == p.epoch && o.at > p.at) {
		return o
	}
	return p
}

// exportPaths are where the copies go.
type exportPaths struct{ file, checkpoints string }

// exportedRecord is what is read back of a line of the copy.
type exportedRecord struct {
	Epoch int64 `json:"epoch"` // absent for the first
	Index int64 `json:"index"`
}

// place is where the checkpoint of a line stands.
func (c exportedCheckpoint) place() place {
	cp, err := ReadCheckpoint([]byte(c.Checkpoint))
	if err != nil {
		return place{1, c.Size}
	}
	return place{cp.Epoch(), cp.Size}
}

// exportedCheckpoint is a line of the checkpoint file.
type exportedCheckpoint struct {
	Time       time.Time `json:"time"`
	Size       int64     `json:"size"`
	Checkpoint string    `json:"checkpoint"`
}

// NewExporter opens the files, if any, made with mode 0600 where they are not there, and finds where they left off. A torn last
// line, as a crash leaves it, is cut.
func NewExporter(cfg ExportConfig) (*Exporter, error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	e := &Exporter{cfg: cfg, reopen: make(chan struct{}, 1), next: place{epoch: 1}, noted: place{epoch: 1}}
	e.paths.Store(&exportPaths{cfg.File, cfg.Checkpoints})
	if err := e.open(); err != nil {
		return nil, err
	}
	return e, nil
}

// Reopen makes Run open the files anew, after a log rotation moved them.
func (e *Exporter) Reopen() {
	p := e.paths.Load()
	e.Move(p.file, p.checkpoints)
}

// CanMove returns nil where copies can be appended to at these paths. It makes the files where they are not there.
func CanMove(file, checkpoints string) error {
	var errs []error
	for _, path := range []string{file, checkpoints} {
		if path == "" {
			continue
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, exportMode)
		if err != nil {
			errs = append(errs, fmt.Errorf("audit export: %w", err))
			continue
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Move makes Run open the files anew at these paths. A copy goes on at its new path where it was at the old one; one that was
// not made until now begins as at a start.
func (e *Exporter) Move(file, checkpoints string) {
	e.paths.Store(&exportPaths{file, checkpoints})
	select {
	case e.reopen <- struct{}{}:
	default:
	}
}

// Run follows the log until ctx is done, copies what there is then, and returns nil. A fault is logged and tried again.
func (e *Exporter) Run(ctx context.Context) error {
	defer func() { _ = e.close() }() // every round ends with what it wrote written
	for {
		grown := e.cfg.Source.Grown()
		rest := exportEvery
		if e.cfg.File == "" && e.cfg.Checkpoints == "" {
			grown, rest = nil, math.MaxInt64 // until there is something to do
		} else if err := e.export(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Logger.Warn("audit export failed; it is tried again", zap.Int64("index", e.next.at), zap.Error(err))
			grown, rest = nil, retryEvery
			if err := e.close(); err != nil { // opening again cuts what was half written
				e.cfg.Logger.Warn("audit export not closed", zap.Error(err))
			}
		}
		if !e.wait(ctx, grown, rest) {
			e.last(ctx)
			return nil
		}
	}
}

// last copies what came since the latest round: what a broker says as it stops is in the copies too.
func (e *Exporter) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryEvery)
	defer cancel()
	if err := e.export(ctx); err != nil {
		e.cfg.Logger.Warn("audit export lacks the newest records; they follow when the broker is back", zap.Int64("index", e.next.at), zap.Error(err))
	}
}

// wait rests, then waits for growth (unless it is nil) or for Reopen. It returns false when ctx is done.
func (e *Exporter) wait(ctx context.Context, grown <-chan struct{}, rest time.Duration) bool {
	timer := time.NewTimer(rest)
	defer timer.Stop()
	rested := false
	for {
		woken := grown
		if !rested {
			woken = nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-e.reopen:
			if err := e.follow(); err != nil {
				e.cfg.Logger.Warn("audit export not reopened", zap.Error(err))
			}
			return true
		case <-timer.C:
			rested = true
			if grown == nil {
				return true
			}
		case <-woken:
			return true
		}
	}
}

// follow goes to where the copies are wanted now.
func (e *Exporter) follow() error {
	if p := e.paths.Load(); p.file != e.cfg.File || p.checkpoints != e.cfg.Checkpoints {
		if e.cfg.File == "" {
			e.next = place{epoch: 1} // a copy that was not made begins as at a start
		}
		e.cfg.File, e.cfg.Checkpoints = p.file, p.checkpoints
	}
	return e.open()
}

// export copies what is new, page by page.
func (e *Exporter) export(ctx context.Context) error {
	if (e.file == nil) != (e.cfg.File == "") || (e.checkpoints == nil) != (e.cfg.Checkpoints == "") {
		if err := e.open(); err != nil { // an earlier attempt to open failed
			return err
		}
	}
	for {
		var entries []Entry
		var head Head
		var cp Checkpoint
		err := e.cfg.Source.ViewLog(ctx, func(r Reader) (err error) {
			if head, err = r.Head(); err != nil {
				return err
			}
			if cp, err = e.placed(head); err != nil {
				return err
			}
			if e.cfg.File == "" {
				e.next.at = head.Size
				return nil
			}
			entries, err = r.Entries(e.next.at, page, "")
			return err
		})
		if err != nil {
			return err
		}
		if err := e.putRecords(entries, cp); err != nil {
			return err
		}
		if e.next.at >= head.Size {
			return e.putCheckpoint(head)
		}
		if len(entries) == 0 {
			return fmt.Errorf("record %d is missing in the log", e.next.at)
		}
	}
}

// placed returns the checkpoint of the log's head. Where a new epoch has begun, it goes back to what the log kept of the
// one before: from there on, everything is new.
func (e *Exporter) placed(head Head) (Checkpoint, error) {
	var cp Checkpoint
	if head.Size > 0 {
		var err error
		if cp, err = ReadCheckpoint(head.Checkpoint); err != nil {
			return cp, err
		}
	}
	cp.Size = head.Size
	if kept := cp.Kept(e.next.epoch); e.next.at > kept {
		if e.next.epoch >= cp.Epoch() {
			return cp, fmt.Errorf("%w (%d, was %d)", errShorter, head.Size, e.next.at)
		}
		e.next.at = kept
	}
	e.next.epoch = max(e.next.epoch, cp.Epoch())
	return cp, nil
}

// putRecords writes a page of records in one go.
func (e *Exporter) putRecords(entries []Entry, cp Checkpoint) error {
	if len(entries) == 0 {
		return nil
	}
	var lines []byte
	for _, x := range entries {
		lines = fmt.Appendf(lines, "{\"index\":%d,", x.Index)
		if epoch := cp.epochAt(x.Index); epoch > 1 {
			lines = fmt.Appendf(lines, "\"epoch\":%d,", epoch)
		}
		lines = append(append(append(lines, `"record":`...), x.JSON...), '}', '\n')
	}
	if _, err := e.file.Write(lines); err != nil {
		return fmt.Errorf("export records: %w", err)
	}
	e.next.at = entries[len(entries)-1].Index + 1
	return nil
}

// putCheckpoint writes the newest checkpoint, if it is new.
func (e *Exporter) putCheckpoint(head Head) error {
	at := place{e.next.epoch, head.Size}
	if e.checkpoints == nil || at == e.noted {
		return nil
	}
	line, err := json.Marshal(exportedCheckpoint{
		Time: time.Now().UTC(), Size: head.Size, Checkpoint: string(head.Checkpoint),
	})
	if err != nil {
		return fmt.Errorf("export checkpoint: %w", err)
	}
	if _, err := e.checkpoints.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("export checkpoint: %w", err)
	}
	e.noted = at
	return nil
}

// open opens both files and finds where they left off. What was known before counts too: a rotated file is empty.
func (e *Exporter) open() error {
	if err := e.close(); err != nil {
		return fmt.Errorf("close audit export: %w", err)
	}
	var rec exportedRecord
	var cp exportedCheckpoint
	var err error
	var found, noted bool
	if e.file, found, err = openLines(e.cfg.File, &rec); err != nil {
		return err
	}
	if e.checkpoints, noted, err = openLines(e.cfg.Checkpoints, &cp); err != nil {
		return err
	}
	if found {
		e.next = e.next.later(place{max(1, rec.Epoch), rec.Index + 1})
	}
	if noted {
		e.next, e.noted = e.next.later(cp.place()), e.noted.later(cp.place())
	}
	return nil
}

func (e *Exporter) close() error {
	var errs []error
	for _, f := range []**os.File{&e.file, &e.checkpoints} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}

// ReadCheckpoints reads a checkpoint file as the exporter writes it, for LogCheck.Known. A torn last line is left out.
func ReadCheckpoints(r io.Reader) ([][]byte, error) {
	dec := json.NewDecoder(r)
	var known [][]byte
	for {
		var line exportedCheckpoint
		err := dec.Decode(&line)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return known, nil
		case err != nil:
			return nil, fmt.Errorf("read checkpoint %d: %w", len(known)+1, err)
		}
		known = append(known, []byte(line.Checkpoint))
	}
}
