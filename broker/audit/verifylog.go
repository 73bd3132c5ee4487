package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxFaults is how many faults of a log are told before its verification stops.
const maxFaults = 100

// LogCheck is what a log is verified against.
type LogCheck struct {
	// VerifierKey is the log's public key in the text form of C2SP signed-note.
	VerifierKey string
	// Known are signed checkpoints that were kept elsewhere. Each must be of a prefix of the log: this finds what an
	// insider with the signing key rewrote or cut off. Those of records that a restore has lost, by the log's own signed
	// word, can be held against nothing; they are counted and told.
	Known [][]byte
	// Progress is called now and then with how many of the records are done. It may be nil.
	Progress func(done, total int64)
}

// LogReport is what was verified.
type LogReport struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	// Known is how many kept checkpoints the log was held against.
	Known  int `json:"known"`
	Texts  int `json:"texts"`
	Erased int `json:"erased"`
	// Restores are what the log says of itself having been restored, in order.
	Restores []RestoreReport `json:"restores,omitempty"`
	Faults   []Fault         `json:"faults,omitempty"`
}

// RestoreReport is one restore: what the log's record of it says, and what of the kept checkpoints was lost by it.
type RestoreReport struct {
	Restore

	Actor       Actor     `json:"actor"`
	ConfirmedAt time.Time `json:"confirmed_at"`
	// Lost is how many kept checkpoints are of records that this restore has lost; LostTo how many records the greatest of
	// them is over.
	Lost   int   `json:"lost"`
	LostTo int64 `json:"lost_to,omitempty"`
}

// logVerifier is one verification on its way.
type logVerifier struct {
	r     Reader
	edge  Edge
	head  Checkpoint            // of the log; without a root where its checkpoint does not verify
	known map[int64][32]byte    // roots that the log must have had, by size
	lost  map[lostSize][32]byte // roots of what was lost
	rep   LogReport
}

// lostSize is which log a checkpoint of a lost part is of.
type lostSize struct{ epoch, size int64 }

// VerifyLog recomputes a whole log from its records and holds it against its stored hashes, its signed checkpoint and the
// checkpoints that are known. It says which record is wrong. The error is a *Faults where the log is at fault.
func VerifyLog(ctx context.Context, r Reader, check LogCheck) (LogReport, error) {
	v, err := ParseVerifier(check.VerifierKey)
	if err != nil {
		return LogReport{}, err
	}
	head, err := r.Head()
	if err != nil {
		return LogReport{}, fmt.Errorf("read the log's head: %w", err)
	}
	lv := logVerifier{
		r: r, known: map[int64][32]byte{}, lost: map[lostSize][32]byte{}, rep: LogReport{Origin: v.Name(), Size: head.Size},
	}
	if lv.head, err = OpenCheckpoint(head.Checkpoint, v); err != nil {
		lv.head = Checkpoint{Size: head.Size} // checkHead tells
	}
	lv.learn(check.Known, v)
	for start := int64(0); start < head.Size && len(lv.rep.Faults) < maxFaults; start += page {
		if err := ctx.Err(); err != nil {
			return lv.rep, err
		}
		if err := lv.read(start, min(page, int(head.Size-start))); err != nil {
			return lv.rep, err
		}
		if check.Progress != nil {
			check.Progress(min(start+page, head.Size), head.Size)
		}
	}
	lv.checkHead(head, v)
	if len(lv.rep.Faults) > 0 {
		return lv.rep, &Faults{What: ErrLog, List: lv.rep.Faults}
	}
	return lv.rep, nil
}

func (lv *logVerifier) fault(index int64, format string, args ...any) {
	lv.rep.Faults = append(lv.rep.Faults, Fault{Index: index, Problem: fmt.Sprintf(format, args...)})
}

// learn takes in the checkpoints that were kept elsewhere.
func (lv *logVerifier) learn(known [][]byte, v note.Verifier) {
	for i, signed := range known {
		cp, err := OpenCheckpoint(signed, v)
		if err != nil {
			lv.fault(Whole, "kept checkpoint %d: %v", i+1, err)
			continue
		}
		lv.hold(cp)
	}
}

// hold places one kept checkpoint: it is of a prefix of the log, or of what a restore has lost, or the log is at fault.
func (lv *logVerifier) hold(cp Checkpoint) {
	epoch, kept := cp.Epoch(), lv.head.Kept(cp.Epoch())
	at := slices.IndexFunc(lv.head.Epochs, func(e Epoch) bool { return e.Number == epoch })
	switch {
	case epoch > lv.head.Epoch():
		lv.fault(Whole, "a kept checkpoint is of epoch %d, the log is in epoch %d: it is older, and nobody confirmed a restore", epoch, lv.head.Epoch())
	case at >= 0 && !slices.Equal(cp.Epochs, lv.head.Epochs[:at+1]):
		lv.fault(Whole, "a kept checkpoint over %d records is of another epoch %d: the log was forked", cp.Size, epoch)
	case cp.Size > kept && epoch == lv.head.Epoch():
		lv.fault(Whole, "a kept checkpoint is over %d records, the log has %d: its end was cut off", cp.Size, kept)
	case cp.Size > kept:
		if root, ok := lv.lost[lostSize{epoch, cp.Size}]; ok && root != cp.Root {
			lv.fault(Whole, "two kept checkpoints over %d records differ: the log was forked", cp.Size)
		}
		lv.lost[lostSize{epoch, cp.Size}] = cp.Root
	default:
		if root, ok := lv.known[cp.Size]; ok && root != cp.Root {
			lv.fault(Whole, "two kept checkpoints over %d records differ: the log was forked", cp.Size)
		}
		lv.known[cp.Size] = cp.Root
		lv.rep.Known++
	}
}

// read verifies one page of records.
func (lv *logVerifier) read(start int64, limit int) error {
	entries, err := lv.r.Entries(start, limit, "")
	if err != nil {
		return fmt.Errorf("read records from %d on: %w", start, err)
	}
	for _, e := range entries {
		for lv.edge.Size() < e.Index && len(lv.rep.Faults) < maxFaults {
			lv.missing()
		}
		if err := lv.checkEntry(e); err != nil {
			return err
		}
	}
	for lv.edge.Size() < start+int64(limit) && len(lv.rep.Faults) < maxFaults {
		lv.missing()
	}
	return nil
}

// missing notes that a record is not there, and goes on with the next.
func (lv *logVerifier) missing() {
	lv.fault(lv.edge.Size(), "it is missing")
	lv.edge.Append(nil, nil)
}

// checkEntry verifies one record and adds it to the tree.
func (lv *logVerifier) checkEntry(e Entry) error {
	var rec Record
	err := json.Unmarshal(e.JSON, &rec)
	switch {
	case err != nil || rec.V != 1:
		lv.fault(e.Index, "it is not a record of format version 1")
	case rec.Event != e.Event || rec.Task != e.Task:
		lv.fault(e.Index, "it is filed under event %q and task %q, and is of %q and %q", e.Event, e.Task, rec.Event, rec.Task)
	}
	if rec.Event == LogRestored {
		lv.restored(e.Index, &rec)
	}
	if err := lv.checkHashes(e); err != nil {
		return err
	}
	if root, ok := lv.known[lv.edge.Size()]; ok && root != lv.edge.Root() {
		lv.fault(Whole, "the first %d records are not those of a kept checkpoint: the log was rewritten", lv.edge.Size())
		clear(lv.known) // every later one would differ too
	}
	return lv.checkTexts(e.Index, &rec)
}

// restored takes in a record of a restore, and what of the kept checkpoints was lost by it.
func (lv *logVerifier) restored(index int64, rec *Record) {
	if rec.Restore == nil || rec.Restore.Size != index {
		lv.fault(index, "it is no whole record of a restore at its place")
		return
	}
	rep := RestoreReport{Restore: *rec.Restore, Actor: rec.Actor, ConfirmedAt: rec.Time}
	for lost := range lv.lost {
		if lost.epoch < rep.Epoch && lost.size > rep.Size && lv.head.Kept(lost.epoch) == rep.Size {
			rep.Lost++
			rep.LostTo = max(rep.LostTo, lost.size)
		}
	}
	lv.rep.Restores = append(lv.rep.Restores, rep)
}

// checkEpochs holds the epochs that the checkpoint names against the records of restores.
func (lv *logVerifier) checkEpochs(head Head, cp Checkpoint) {
	said := make([]Epoch, 0, len(lv.rep.Restores))
	for _, r := range lv.rep.Restores {
		said = append(said, Epoch{Number: r.Epoch, Start: r.Size})
	}
	if !slices.Equal(cp.Epochs, said) {
		lv.fault(Whole, "the checkpoint names the epochs %v, the records %v", cp.Epochs, said)
	}
	if head.Epoch != cp.Epoch() {
		lv.fault(Whole, "the checkpoint is of epoch %d, the head of %d", cp.Epoch(), head.Epoch)
	}
}

// checkHashes recomputes what the record adds to the tree and compares it with what is stored. Where the two differ, the
// tree goes on with what is stored, so that one wrong record is told once.
func (lv *logVerifier) checkHashes(e Entry) error {
	before := lv.edge
	computed := lv.edge.Append(nil, e.JSON)
	indexes := make([]int64, len(computed))
	for level := range computed {
		indexes[level] = tlog.StoredHashIndex(level, (e.Index+1)>>level-1)
	}
	stored, err := lv.r.Hashes(indexes)
	if err != nil {
		return fmt.Errorf("read the hashes of record %d: %w", e.Index, err)
	}
	if stored[0] != computed[0] {
		lv.fault(e.Index, "it is not what was hashed when it was written: it was changed")
		lv.edge = before
		computed = lv.edge.appendHash(nil, stored[0])
	}
	top := len(computed) - 1
	for level := 1; level <= top; level++ {
		if stored[level] != computed[level] {
			lv.fault(e.Index, "the stored hash over records %d to %d is not theirs: one was changed together with its own hash",
				e.Index+1-1<<level, e.Index)
			break
		}
	}
	lv.edge.roots[top] = stored[top]
	return nil
}

// checkTexts verifies the free text that is kept beside a record.
func (lv *logVerifier) checkTexts(index int64, rec *Record) error {
	if len(rec.Hashes) == 0 {
		return nil
	}
	texts, err := lv.r.Texts(index)
	if err != nil {
		return fmt.Errorf("read the texts of record %d: %w", index, err)
	}
	for _, t := range texts {
		if HashOf(t.Salt, t.Text) != rec.Hashes[t.Field] {
			lv.fault(index, "the text %q beside it is not what was hashed", t.Field)
		}
	}
	lv.rep.Texts += len(texts)
	lv.rep.Erased += max(0, len(rec.Hashes)-len(texts))
	return nil
}

// checkHead verifies the signed checkpoint.
func (lv *logVerifier) checkHead(head Head, v note.Verifier) {
	if len(lv.rep.Faults) >= maxFaults {
		lv.fault(Whole, "there is more; only the first %d faults are told", maxFaults)
		return
	}
	if head.Size == 0 && head.Checkpoint == nil {
		return
	}
	cp, err := OpenCheckpoint(head.Checkpoint, v)
	if err != nil {
		lv.fault(Whole, "%v", err)
		return
	}
	lv.checkEpochs(head, cp)
	switch {
	case cp.Size != head.Size:
		lv.fault(Whole, "the checkpoint is over %d records, the log has %d", cp.Size, head.Size)
	case cp.Root != lv.edge.Root():
		lv.fault(Whole, "the records are not those that the checkpoint was signed over")
	}
}
