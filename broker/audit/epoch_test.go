package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
)

// grow adds n records, one checkpoint each, and returns the checkpoints.
func grow(tb testing.TB, log *memLog, key audit.Key, n int) [][]byte {
	tb.Helper()
	var signed [][]byte
	for i := range n {
		log.add(tb, key, audit.Record{Event: audit.ServerStarted, Actor: audit.Actor{ID: fmt.Sprint("stint", i)}})
		signed = append(signed, log.head.Checkpoint)
	}
	return signed
}

// TestVerifyRestoredLog: a log that was restored verifies against the checkpoints of its whole life. Those of what it kept
// have to fit; those of what was lost are counted and told, and nothing else is excused by the restore.
func TestVerifyRestoredLog(t *testing.T) {
	t.Parallel()
	key, first := newKey(t), newMemLog()
	known := grow(t, first, key, 10)
	second := first.restored(t, key, 6, 2)
	known = append(known, second.head.Checkpoint)
	known = append(known, grow(t, second, key, 5)...) // 12 records
	third := second.restored(t, key, 9, 3)
	known = append(append(known, third.head.Checkpoint), grow(t, third, key, 2)...)

	verify := func(log *memLog, known ...[]byte) (audit.LogReport, error) {
		return audit.VerifyLog(t.Context(), log, audit.LogCheck{VerifierKey: key.Text, Known: known})
	}
	rep, err := verify(third, known...)
	if err != nil {
		t.Fatal(err)
	}
	type told struct{ Epoch, Size, Lost, To int64 }
	var got []told
	for _, r := range rep.Restores {
		got = append(got, told{r.Epoch, r.Size, int64(r.Lost), r.LostTo})
	}
	if diff := cmp.Diff([]told{{2, 6, 4, 10}, {3, 9, 3, 12}}, got); diff != "" || rep.Known != 12 {
		t.Errorf("held against %d; restores (-want +got):\n%s", rep.Known, diff)
	}

	bad := map[string]struct {
		log   *memLog
		known [][]byte
		says  string
	}{
		"the copy itself, unconfirmed": {first.restored(t, key, 6, 2), third.checkpoints(), "nobody confirmed"},
		"cut in its newest epoch":      {second.restored(t, key, 9, 3), third.checkpoints(), "its end was cut off"},
		"another epoch 2":              {first.restored(t, key, 5, 2), second.checkpoints(), "another epoch 2"},
		"what it kept was rewritten":   {rewritten(t, key, third), known[2:3], "the log was rewritten"},
		"two of the lost differ":       {third, append(fork(t, key, 8), known...), "the log was forked"},
		"epochs without their records": {claiming(t, key, first), nil, "names the epochs"},
	}
	for name, c := range bad {
		if _, err := verify(c.log, c.known...); !errors.Is(err, audit.ErrLog) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// checkpoints returns the newest.
func (m *memLog) checkpoints() [][]byte { return [][]byte{m.head.Checkpoint} }

// rewritten changes the first record of a log and signs it all again.
func rewritten(t *testing.T, key audit.Key, log *memLog) *memLog {
	t.Helper()
	r := newMemLog()
	r.epochs, r.head.Epoch = log.epochs, log.head.Epoch
	r.add(t, key, audit.Record{Event: audit.ServerStarted, Actor: audit.Actor{ID: "another"}})
	for _, e := range log.entries[1:] {
		r.entries = append(r.entries, e)
		r.hashes = r.edge.Append(r.hashes, e.JSON)
	}
	r.sign(t, key)
	return r
}

// fork returns a checkpoint of the first epoch that was never that log's.
func fork(t *testing.T, key audit.Key, size int64) [][]byte {
	t.Helper()
	signed, err := audit.Checkpoint{Origin: key.Signer.Name(), Size: size, Root: [32]byte{1}}.Sign(key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{signed}
}

// claiming is a log whose checkpoint speaks of a restore that no record tells of.
func claiming(t *testing.T, key audit.Key, log *memLog) *memLog {
	t.Helper()
	c := log.copy()
	c.epochs, c.head.Epoch = []audit.Epoch{{Number: 2, Start: 4}}, 2
	c.sign(t, key)
	return c
}

// TestReceiptAcrossRestore: receipts of before and after verify, and one of a task that was open then says so.
func TestReceiptAcrossRestore(t *testing.T) {
	t.Parallel()
	key, log := newKey(t), newMemLog()
	log.add(t, key, story()...)
	closed := log.restored(t, key, 11, 2)
	open := log.restored(t, key, 7, 2)
	for _, r := range story()[7:10] {
		open.add(t, key, r)
	}
	for name, c := range map[string]struct {
		log  *memLog
		want []audit.Epoch
	}{
		"closed before": {closed, nil}, "open then": {open, []audit.Epoch{{Number: 2, Start: 7}}},
	} {
		doc, err := audit.BuildReceipt(c.log, taskA)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := audit.VerifyReceipt(doc, key.Text)
		if err != nil || !rep.Closed || !cmp.Equal(rep.Restores, c.want) {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
	}
}

// TestExportAcrossRestore: the copies go on from where the new epoch began, and tell of the epoch. Nothing is skipped, also
// where a crash came between the restore and the first export.
func TestExportAcrossRestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, checkpoints := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "checkpoints.log")
	key, log := newKey(t), newMemLog()
	grow(t, log, key, 5)
	export := func(log *memLog) {
		t.Helper()
		e, err := audit.NewExporter(audit.ExportConfig{Source: log, File: file, Checkpoints: checkpoints, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what is there is copied all the same
		if err := e.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
	export(log)
	older := log.restored(t, key, 3, 2)
	short := newMemLog()
	grow(t, short, key, 3)
	export(short) // an older copy that nobody confirmed: nothing is written
	for range 2 {
		export(older)
		grow(t, older, key, 1)
	}
	export(older)
	var got []string
	for line := range strings.Lines(string(readFile(t, file))) {
		at, _, _ := strings.Cut(line, `,"record"`)
		got = append(got, at)
	}
	want := []string{
		`{"index":0`, `{"index":1`, `{"index":2`, `{"index":3`, `{"index":4`, `{"index":3,"epoch":2`, `{"index":4,"epoch":2`, `{"index":5,"epoch":2`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the copy (-want +got):\n%s", diff)
	}
	known, err := audit.ReadCheckpoints(strings.NewReader(string(readFile(t, checkpoints))))
	if err != nil || len(known) != 4 {
		t.Fatalf("%d checkpoints, %v", len(known), err)
	}
	rep, err := audit.VerifyLog(t.Context(), older, audit.LogCheck{VerifierKey: key.Text, Known: known})
	if err != nil || rep.Known != 3 || rep.Restores[0].Lost != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	newest, err := audit.NewestCheckpoint(checkpoints)
	if err != nil || string(newest) != string(older.head.Checkpoint) {
		t.Errorf("the newest checkpoint is %q, %v", newest, err)
	}
}

// TestNewestCheckpoint: a torn line is passed over and left alone, and of a long file only the end is read.
func TestNewestCheckpoint(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "checkpoints.log")
	if got, err := audit.NewestCheckpoint(path); err != nil || got != nil {
		t.Errorf("of a file that is not there: %q, %v", got, err)
	}
	text := strings.Repeat(`{"size":1,"checkpoint":"old"}`+"\n", 1<<16) + `{"size":2,"checkpoint":"new"}` + "\n" + `{"size":3,"chec`
	for name, c := range map[string]struct {
		text, want string
		fails      bool
	}{
		"long and torn": {text: text, want: "new"}, "empty": {}, "one torn line": {text: `{"size":3`},
		"nothing of JSON for long": {text: strings.Repeat("x\n", 1<<20), fails: true},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := audit.NewestCheckpoint(path)
		if string(got) != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if len(readFile(t, path)) != len(c.text) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func readFile(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
