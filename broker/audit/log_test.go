package audit_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/audit"
)

func TestVerifyLog(t *testing.T) {
	t.Parallel()
	key, log := newKey(t), newMemLog()
	var known [][]byte
	for range 60 {
		log.add(t, key, story()...)
		known = append(known, log.head.Checkpoint)
	}
	var done []int64
	rep, err := audit.VerifyLog(t.Context(), log, audit.LogCheck{
		VerifierKey: key.Text, Known: known, Progress: func(n, _ int64) { done = append(done, n) },
	})
	if err != nil || rep.Size != 660 || rep.Known != 60 || rep.Texts != 120 || rep.Erased != 0 {
		t.Errorf("report %+v: %v", rep, err)
	}
	if len(done) != 2 || done[1] != 660 {
		t.Errorf("progress %v", done)
	}
	if _, err := audit.VerifyLog(t.Context(), newMemLog(), audit.LogCheck{VerifierKey: key.Text}); err != nil {
		t.Errorf("an empty log: %v", err)
	}
}

// TestVerifyLogFalsified: each way to falsify a log is found, and where it was done is told.
func TestVerifyLogFalsified(t *testing.T) {
	t.Parallel()
	key, honest := newKey(t), newMemLog()
	honest.add(t, key, story()...)
	early := honest.head.Checkpoint
	honest.add(t, key, story()...)
	change := func(m *memLog, i int) {
		m.entries[i].JSON = bytes.Replace(m.entries[i].JSON, []byte(`"stint"`), []byte(`"stunt"`), 1)
		m.entries[i].JSON = bytes.Replace(m.entries[i].JSON, []byte(`try-it`), []byte(`tri-it`), 1)
	}
	resign := func(m *memLog) {
		m.edge, m.hashes = audit.Edge{}, nil
		for _, e := range m.entries {
			m.hashes = m.edge.Append(m.hashes, e.JSON)
		}
		m.sign(t, key)
	}
	tests := map[string]struct {
		falsify func(m *memLog)
		index   int64
		says    string
	}{
		"record changed": {func(m *memLog) { change(m, 9) }, 9, "changed"},
		"record and its hash changed": {func(m *memLog) {
			change(m, 8)
			m.hashes[tlog.StoredHashIndex(0, 8)] = tlog.RecordHash(m.entries[8].JSON)
		}, 9, "8 to 9"},
		"record gone":                {func(m *memLog) { m.entries = append(m.entries[:4:4], m.entries[5:]...) }, 4, "missing"},
		"last records gone":          {func(m *memLog) { m.entries = m.entries[:20] }, 20, "missing"},
		"filed under another task":   {func(m *memLog) { m.entries[3].Task = taskB }, 3, "filed"},
		"filed under another event":  {func(m *memLog) { m.entries[3].Event = audit.LeaseEnded }, 3, "filed"},
		"text changed":               {func(m *memLog) { m.texts[1] = []audit.Text{{Index: 1, Field: "description", Text: "x"}} }, 1, "text"},
		"checkpoint of another size": {func(m *memLog) { m.head.Checkpoint = early }, audit.Whole, "over 11 records"},
		"all rewritten and signed":   {func(m *memLog) { change(m, 0); resign(m) }, audit.Whole, "rewritten"},
		"cut off and signed":         {func(m *memLog) { m.entries = m.entries[:5]; resign(m) }, audit.Whole, "cut off"},
		"rewritten, not signed": {func(m *memLog) {
			cp := m.head.Checkpoint
			change(m, 20)
			resign(m)
			m.head.Checkpoint = cp
		}, audit.Whole, "signed over"},
		"no checkpoint": {func(m *memLog) { m.head.Checkpoint = nil }, audit.Whole, "checkpoint"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := honest.copy()
			test.falsify(m)
			_, err := audit.VerifyLog(t.Context(), m, audit.LogCheck{VerifierKey: key.Text, Known: [][]byte{early}})
			var faults *audit.Faults
			if !errors.As(err, &faults) || !errors.Is(err, audit.ErrLog) {
				t.Fatalf("verify: %v, want faults", err)
			}
			if f := faults.List[0]; f.Index != test.index || !strings.Contains(f.Problem, test.says) {
				t.Errorf("faults %v, want record %d: …%s…", faults.List, test.index, test.says)
			}
		})
	}
}

func TestProofs(t *testing.T) {
	t.Parallel()
	key, log := newKey(t), newMemLog()
	var roots []audit.Checkpoint
	for range 5 {
		log.add(t, key, story()...)
		roots = append(roots, audit.Checkpoint{Size: log.edge.Size(), Root: log.edge.Root()})
	}
	for _, at := range roots {
		for index := range at.Size {
			proof, err := audit.Inclusion(log, index, at.Size)
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.CheckInclusion(at, index, log.entries[index].JSON, proof); err != nil {
				t.Errorf("record %d in %d: %v", index, at.Size, err)
			}
			if audit.CheckInclusion(at, index, []byte("{}"), proof) == nil {
				t.Errorf("another record verified at %d in %d", index, at.Size)
			}
		}
		for _, later := range roots {
			proof, err := audit.Consistency(log, at.Size, later.Size)
			if at.Size > later.Size {
				if !errors.Is(err, audit.ErrRange) {
					t.Errorf("%d within %d: %v", at.Size, later.Size, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.CheckConsistency(at, later, proof); err != nil {
				t.Errorf("%d within %d: %v", at.Size, later.Size, err)
			}
			later.Root[0] ^= 1
			if audit.CheckConsistency(at, later, proof) == nil {
				t.Errorf("%d verified within another log of %d", at.Size, later.Size)
			}
		}
	}
}

func TestProofsOutOfRange(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	for range 5 {
		log.add(t, newKey(t), story()...)
	}
	for _, bad := range [][2]int64{{-1, 5}, {5, 5}, {0, 56}, {0, 0}, {0, -1}} {
		if _, err := audit.Inclusion(log, bad[0], bad[1]); !errors.Is(err, audit.ErrRange) {
			t.Errorf("inclusion of %v: %v", bad, err)
		}
		if audit.CheckInclusion(audit.Checkpoint{Size: bad[1]}, bad[0], nil, nil) == nil {
			t.Errorf("inclusion of %v verified", bad)
		}
	}
	for _, bad := range [][2]int64{{0, 5}, {6, 5}, {5, 56}, {-1, 5}} {
		if _, err := audit.Consistency(log, bad[0], bad[1]); !errors.Is(err, audit.ErrRange) {
			t.Errorf("consistency of %v: %v", bad, err)
		}
	}
}

// TestEdge: the right edge computes what tlog computes from all records.
func TestEdge(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SliceOfN(rapid.SliceOf(rapid.Byte()), 0, 70).Draw(t, "records")
		m := newMemLog()
		for i, r := range records {
			want, err := tlog.StoredHashes(int64(i), r, reader(m))
			if err != nil {
				t.Fatal(err)
			}
			got := m.edge.Append(nil, r)
			if len(got) != len(want) {
				t.Fatalf("record %d: %d hashes, want %d", i, len(got), len(want))
			}
			for j := range want {
				if got[j] != want[j] {
					t.Fatalf("record %d: hash %d differs", i, j)
				}
			}
			m.hashes = append(m.hashes, got...)
			loaded, err := audit.LoadEdge(m, int64(i+1))
			if err != nil || loaded.Root() != m.edge.Root() || loaded.Size() != m.edge.Size() {
				t.Fatalf("loaded edge of %d differs: %v", i+1, err)
			}
		}
		want, err := tlog.TreeHash(int64(len(records)), reader(m))
		if err != nil || m.edge.Root() != want {
			t.Fatalf("root of %d differs: %v", len(records), err)
		}
	})
}

func reader(m *memLog) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := m.Hashes(indexes)
		out := make([]tlog.Hash, len(hashes))
		for i, h := range hashes {
			out[i] = h
		}
		return out, err
	})
}
