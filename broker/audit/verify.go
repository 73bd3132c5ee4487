package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"

	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// VerifyReceipt verifies a receipt with the log's verifier key (the text form of C2SP signed-note) and nothing else: no
// server, no clock, no network. The report tells what the records that verified say. The error is a *Faults unless the
// key itself is malformed. A receipt of a task that is still open verifies: Report.Closed and Report.Open tell.
//
// It proves that each record is in the log that the key signed. It cannot prove that the log holds no further record of
// the task; of a closed task, the number of leases and the kinds of proof are held against the closing record's own.
func VerifyReceipt(doc []byte, verifierKey string) (Report, error) {
	v, err := ParseVerifier(verifierKey)
	if err != nil {
		return Report{}, err
	}
	var rep Report
	var d receipt
	if index, bad := decodeReceipt(doc, &d); bad != nil {
		rep.fault(index, "the receipt cannot be read: %v", bad)
		return rep, rep.err()
	}
	rep.Task, rep.Records = d.Task, len(d.Records)
	cp, err := OpenCheckpoint([]byte(d.Checkpoint), v)
	if err != nil {
		rep.fault(Whole, "%v", err)
		return rep, rep.err()
	}
	rep.Origin, rep.Size = cp.Origin, cp.Size
	last, closed := int64(-1), int64(math.MaxInt64)
	for _, rr := range d.Records {
		if rr.Index <= last {
			rep.fault(rr.Index, "it is out of order, after %d", last)
			continue
		}
		last = rr.Index
		if rec, ok := rep.check(rr, cp); ok {
			rep.tell(rr.Index, rec)
			if rec.Event == TaskClosed {
				closed = rr.Index
			}
		}
	}
	rep.sumUp(cp, d.Records, closed)
	return rep, rep.err()
}

func (r *Report) err() error {
	if len(r.Faults) == 0 {
		return nil
	}
	return &Faults{What: ErrReceipt, List: r.Faults}
}

// decodeReceipt reads the document. On an error it says in which record that is, as far as that can be told.
func decodeReceipt(doc []byte, d *receipt) (int64, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	err := dec.Decode(d)
	if err == nil {
		if _, tail := dec.Token(); !errors.Is(tail, io.EOF) {
			return Whole, errors.New("something follows the document")
		}
		if d.Format != ReceiptFormat {
			return Whole, fmt.Errorf("its format is %q, not %q", d.Format, ReceiptFormat)
		}
		return Whole, nil
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return indexBefore(doc, syntax.Offset), err
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return indexBefore(doc, kind.Offset), err
	}
	return Whole, err
}

// indexBefore returns the index of the record that an offset lies in. Inside a record's text the quotes are escaped, so
// that only the document's own keys match.
func indexBefore(doc []byte, offset int64) int64 {
	doc = doc[:min(offset, int64(len(doc)))]
	found := regexp.MustCompile(`"index":\s*(\d{1,18})`).FindAllSubmatch(doc, -1)
	if len(found) == 0 {
		return Whole
	}
	index, err := strconv.ParseInt(string(found[len(found)-1][1]), 10, 64)
	if err != nil {
		return Whole
	}
	return index
}

// check verifies one record: its place in the log, its form, its texts.
func (r *Report) check(rr receiptRecord, cp Checkpoint) (*Record, bool) {
	if err := CheckInclusion(cp, rr.Index, []byte(rr.JSON), rr.Proof); err != nil {
		r.fault(rr.Index, "it is not in the log that was signed: it, its index or its proof was changed")
		return nil, false
	}
	var rec Record
	if err := json.Unmarshal([]byte(rr.JSON), &rec); err != nil || rec.V != 1 {
		r.fault(rr.Index, "it is in the log, but not a record of format version 1")
		return nil, false
	}
	if rec.Task == "" || rec.Task != r.Task {
		r.fault(rr.Index, "it is in the log, but of task %q", rec.Task)
		return nil, false
	}
	before := len(r.Faults)
	for _, t := range rr.Texts {
		r.checkText(rr.Index, &rec, t)
	}
	r.Texts += len(rr.Texts)
	r.Erased += max(0, len(rec.Hashes)-len(rr.Texts))
	return &rec, len(r.Faults) == before
}

// checkText verifies a free text against its salted hash in the record.
func (r *Report) checkText(index int64, rec *Record, t receiptText) {
	want, known := rec.Hashes[t.Field]
	salt, err := base64.StdEncoding.DecodeString(t.Salt)
	switch {
	case !known:
		r.fault(index, "it has no hash for the text %q", t.Field)
	case err != nil || len(salt) != 32:
		r.fault(index, "the salt of the text %q is not 32 bytes in base64", t.Field)
	case HashOf([32]byte(salt), t.Text) != want:
		r.fault(index, "the text %q is not what was hashed", t.Field)
	case t.Field == ManifestText && rec.Manifest != nil && sha256.Sum256([]byte(t.Text)) != *rec.Manifest:
		r.fault(index, "the manifest shown is not the one that was declared")
	}
}

// tell takes over what a record says.
func (r *Report) tell(index int64, rec *Record) {
	switch rec.Event { //nolint:exhaustive // the other events say nothing that the report tells
	case TaskDeclared:
		if !r.DeclaredAt.IsZero() {
			r.fault(index, "the task is declared a second time")
			return
		}
		r.TaskName, r.Agent, r.Owner, r.Sponsor = rec.TaskName, rec.Agent, rec.Owner, rec.Sponsor
		r.Purpose, r.Manifest, r.DeclaredAt = rec.Purpose, rec.Manifest, rec.Time
	case TaskClosed:
		if r.Closed {
			r.fault(index, "the task is closed a second time")
			return
		}
		r.Closed, r.ClosedAt, r.CloseReason = true, rec.Time, rec.Reason
		r.crossCheck(index, rec.Summary)
	case LeaseIntent:
		r.begins(index, rec)
	case LeaseActive:
		l := r.begins(index, rec)
		l.Issued, l.Ref = true, rec.Ref
	case LeaseEnded:
		r.ends(index, rec)
	}
}

// begins notes a lease.
func (r *Report) begins(index int64, rec *Record) *LeaseReport {
	if r.Closed {
		r.fault(index, "lease %s begins after the task was closed", rec.Lease)
	}
	return r.lease(rec)
}

// ends notes the end of a lease.
func (r *Report) ends(index int64, rec *Record) {
	known := len(r.Leases)
	l := r.lease(rec)
	switch {
	case len(r.Leases) > known:
		r.fault(index, "lease %s ends, but the receipt does not show that it began: records are missing", rec.Lease)
	case rec.Proof == nil || rec.Proof.Kind == plugins.Pending || rec.Proof.Kind == "":
		r.fault(index, "lease %s is said to have ended, without proof", rec.Lease)
	case l.Ended:
		r.fault(index, "lease %s ends a second time", rec.Lease)
	default:
		l.Ended, l.Proof = true, rec.Proof
	}
}

// crossCheck holds the closing record's counts against the leases that the receipt shows before it.
func (r *Report) crossCheck(index int64, sum *task.Summary) {
	if sum == nil {
		r.fault(index, "it closes the task without a summary")
		return
	}
	if sum.Leases != len(r.Leases) {
		r.fault(index, "it counts %d leases, the receipt shows %d: records are missing", sum.Leases, len(r.Leases))
	}
	kinds := map[plugins.Proof]int{}
	for _, l := range r.Leases {
		if !l.Ended {
			r.fault(index, "it closes the task, but the receipt shows no end of lease %s", l.Lease)
			continue
		}
		kinds[l.Proof.Kind]++
	}
	for kind := range sum.ByProof {
		kinds[kind] += 0 // so that what is only counted is looked at too
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		if n := sum.ByProof[kind]; n != kinds[kind] {
			r.fault(index, "it counts %d ends by %s, the receipt shows %d", n, kind, kinds[kind])
		}
	}
}

// sumUp adds what can only be said at the end.
func (r *Report) sumUp(cp Checkpoint, records []receiptRecord, closed int64) {
	if r.DeclaredAt.IsZero() {
		r.fault(Whole, "the receipt does not show the task's declaration")
		return
	}
	for _, e := range cp.Epochs {
		if records[0].Index < e.Start && e.Start <= closed {
			r.Restores = append(r.Restores, e)
		}
	}
}
