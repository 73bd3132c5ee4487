package audit_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// receiptOf returns the receipt of taskA's story, after mutate had its way with the records.
func receiptOf(tb testing.TB, mutate func([]audit.Record) []audit.Record) (doc []byte, key audit.Key) {
	tb.Helper()
	key = newKey(tb)
	log, records := newMemLog(), story()
	if mutate != nil {
		records = mutate(records)
	}
	log.add(tb, key, records...)
	doc, err := audit.BuildReceipt(log, taskA)
	if err != nil {
		tb.Fatal(err)
	}
	return doc, key
}

// faultsOf verifies and returns what was found.
func faultsOf(tb testing.TB, doc []byte, key audit.Key) []audit.Fault {
	tb.Helper()
	_, err := audit.VerifyReceipt(doc, key.Text)
	var faults *audit.Faults
	if !errors.As(err, &faults) || !errors.Is(err, audit.ErrReceipt) {
		tb.Fatalf("verify: %v, want faults", err)
	}
	return faults.List
}

func TestReceipt(t *testing.T) {
	t.Parallel()
	doc, key := receiptOf(t, nil)
	rep, err := audit.VerifyReceipt(doc, key.Text)
	if err != nil {
		t.Fatal(err)
	}
	if rep.TaskName != "try-it-7f3k" || !rep.Closed || rep.CloseReason != "completed" || rep.Open() != 0 || rep.Size != 11 ||
		rep.Records != 8 || rep.Texts != 2 || rep.Erased != 0 || rep.Manifest == nil || rep.Origin != "log.example/audit" {
		t.Errorf("report %+v", rep)
	}
	var got []string
	for _, l := range rep.Leases {
		got = append(got, l.Lease+" "+l.Role+" "+string(l.Proof.Kind))
		if l.Issued != (l.Lease == leaseA) {
			t.Errorf("lease %s issued: %v", l.Lease, l.Issued)
		}
	}
	if diff := cmp.Diff([]string{leaseA + " web crl", leaseB + " db not_issued"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestReceiptOfAnOpenTask(t *testing.T) {
	t.Parallel()
	doc, key := receiptOf(t, func(r []audit.Record) []audit.Record { return r[:5] })
	rep, err := audit.VerifyReceipt(doc, key.Text)
	if err != nil || rep.Closed || rep.Open() != 2 {
		t.Errorf("closed %v, open %d: %v", rep.Closed, rep.Open(), err)
	}
}

func TestReceiptShowsTheManifest(t *testing.T) {
	t.Parallel()
	const manifest = `{"agent":"spiffe://example.org/agent/eu1"}`
	for shown, good := range map[string]bool{manifest: true, manifest + " ": false} {
		doc, key := receiptOf(t, func(r []audit.Record) []audit.Record {
			hash := task.Hash(sha256.Sum256([]byte(manifest)))
			r[1].Manifest = &hash
			r[1].Texts = map[string]string{audit.ManifestText: shown}
			return r
		})
		if _, err := audit.VerifyReceipt(doc, key.Text); (err == nil) != good {
			t.Errorf("manifest %q shown: %v", shown, err)
		}
	}
}

func TestReceiptAfterErasing(t *testing.T) {
	t.Parallel()
	key, log := newKey(t), newMemLog()
	log.add(t, key, story()...)
	delete(log.texts, 1)
	doc, err := audit.BuildReceipt(log, taskA)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(doc), "ünïcode") {
		t.Error("the erased text is in the receipt")
	}
	rep, err := audit.VerifyReceipt(doc, key.Text)
	if err != nil || rep.Texts != 1 || rep.Erased != 1 {
		t.Errorf("texts %d, erased %d: %v", rep.Texts, rep.Erased, err)
	}
}

func TestReceiptOfNothing(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.add(t, newKey(t), story()...)
	for _, task := range []string{"", "019ab3c1-d2e4-7f0a-8b1c-2d3e4f506109"} {
		if _, err := audit.BuildReceipt(log, task); !errors.Is(err, audit.ErrNoRecords) {
			t.Errorf("receipt of %q: %v", task, err)
		}
	}
}

// TestReceiptAnyByte: whatever byte of whatever record is changed, verification fails and names that record, and no other.
func TestReceiptAnyByte(t *testing.T) {
	t.Parallel()
	doc, key := receiptOf(t, nil)
	var d struct {
		Records []struct {
			Index int64
			JSON  string
		}
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		rec := rapid.SampledFrom(d.Records).Draw(rt, "record")
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(rec.JSON); err != nil {
			rt.Fatal(err)
		}
		inDoc := strings.TrimSpace(b.String())
		at := strings.Index(string(doc), inDoc)
		if at < 0 {
			rt.Fatal("the record is not in the document as it was written")
		}
		bad := []byte(string(doc))
		i := at + 1 + rapid.IntRange(0, len(inDoc)-3).Draw(rt, "byte")
		bad[i] ^= rapid.ByteRange(1, 255).Draw(rt, "bits")
		_, err := audit.VerifyReceipt(bad, key.Text)
		var faults *audit.Faults
		if !errors.As(err, &faults) {
			rt.Fatalf("byte %d of record %d changed, and: %v", i-at, rec.Index, err)
		}
		if faults.List[0].Index != rec.Index {
			rt.Fatalf("byte %d of record %d changed, and the fault is %v", i-at, rec.Index, faults.List)
		}
	})
}

func TestReceiptFalsified(t *testing.T) {
	t.Parallel()
	type document map[string]any
	records := func(d document) []any { r, _ := d["records"].([]any); return r }
	record := func(d document, i int) map[string]any { r, _ := records(d)[i].(map[string]any); return r }
	tests := map[string]struct {
		falsify func(d document)
		index   int64
	}{
		"another index":        {func(d document) { record(d, 2)["index"] = 2 }, 2},
		"proof cut":            {func(d document) { p, _ := record(d, 0)["proof"].([]any); record(d, 0)["proof"] = p[1:] }, 1},
		"declaration left out": {func(d document) { d["records"] = records(d)[1:] }, audit.Whole},
		"lease left out": {func(d document) {
			d["records"] = append(append(records(d)[:2:2], records(d)[3:5]...), records(d)[6:]...)
		}, 9},
		"issue left out": {func(d document) { d["records"] = append(records(d)[:1:1], records(d)[2:]...) }, 8},
		"end left out":   {func(d document) { d["records"] = append(records(d)[:5:5], records(d)[6:]...) }, 9},
		"twice":          {func(d document) { d["records"] = append(records(d)[:2:2], records(d)[1:]...) }, 3},
		"text changed": {func(d document) {
			texts, _ := record(d, 0)["texts"].([]any)
			text, _ := texts[0].(map[string]any)
			text["text"] = "something else"
		}, 1},
		"text of no hash": {func(d document) {
			record(d, 1)["texts"] = []any{map[string]any{"field": "x", "salt": "", "text": "y"}}
		}, 3},
		"another task":   {func(d document) { d["task"] = taskB }, 1},
		"another format": {func(d document) { d["format"] = "stint-receipt/9" }, audit.Whole},
		"unknown key":    {func(d document) { d["more"] = 1 }, audit.Whole},
		"checkpoint changed": {func(d document) {
			d["checkpoint"] = strings.Replace(fmt.Sprint(d["checkpoint"]), "\n11\n", "\n12\n", 1)
		}, audit.Whole},
		"checkpoint gone": {func(d document) { d["checkpoint"] = "" }, audit.Whole},
		"no records":      {func(d document) { d["records"] = nil }, audit.Whole},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			doc, key := receiptOf(t, nil)
			var d document
			if err := json.Unmarshal(doc, &d); err != nil {
				t.Fatal(err)
			}
			test.falsify(d)
			bad, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			if faults := faultsOf(t, bad, key); faults[0].Index != test.index {
				t.Errorf("faults %v, want one of record %d", faults, test.index)
			}
		})
	}
}

// TestReceiptOfALyingBroker: records that are in the log, but do not add up.
func TestReceiptOfALyingBroker(t *testing.T) {
	t.Parallel()
	tests := map[string]func([]audit.Record) []audit.Record{
		"end without proof":      func(r []audit.Record) []audit.Record { r[8].Proof = nil; return r },
		"end that is pending":    func(r []audit.Record) []audit.Record { r[8].Proof.Kind = plugins.Pending; return r },
		"another count":          func(r []audit.Record) []audit.Record { r[9].Summary.Leases = 3; return r },
		"other kinds":            func(r []audit.Record) []audit.Record { r[9].Summary.ByProof[plugins.OnCRL] = 2; return r },
		"no summary":             func(r []audit.Record) []audit.Record { r[9].Summary = nil; return r },
		"lease never ended":      func(r []audit.Record) []audit.Record { return append(r[:8], r[9:]...) },
		"issued after the close": func(r []audit.Record) []audit.Record { return append(r, r[3]) },
		"closed twice":           func(r []audit.Record) []audit.Record { return append(r, r[9]) },
		"declared twice":         func(r []audit.Record) []audit.Record { return append(r, r[1]) },
	}
	for name, mutate := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			doc, key := receiptOf(t, mutate)
			if faults := faultsOf(t, doc, key); faults[0].Index < 0 {
				t.Errorf("faults %v name no record", faults)
			}
		})
	}
}

func TestReceiptWithAnotherKey(t *testing.T) {
	t.Parallel()
	doc, _ := receiptOf(t, nil)
	if faults := faultsOf(t, doc, newKey(t)); faults[0].Index != audit.Whole {
		t.Errorf("faults %v", faults)
	}
	if _, err := audit.VerifyReceipt(doc, "nonsense"); err == nil || errors.Is(err, audit.ErrReceipt) {
		t.Errorf("a malformed key: %v", err)
	}
}

func FuzzVerifyReceipt(f *testing.F) {
	doc, key := receiptOf(f, nil)
	f.Add(doc)
	f.Add([]byte(`{"format":"stint-receipt/1"}`))
	f.Add([]byte(`{"records":[{"index":1e400}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rep, err := audit.VerifyReceipt(b, key.Text)
		if (err == nil) != (len(rep.Faults) == 0) {
			t.Errorf("error %v with faults %v", err, rep.Faults)
		}
		if err == nil && (rep.Size != 11 || rep.Task != taskA) {
			t.Errorf("something else verified: %+v", rep)
		}
	})
}
