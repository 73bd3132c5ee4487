package audit_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/stint-dev/stint/broker/audit"
)

var update = flag.Bool("update", false, "write the vectors in docs anew")

const (
	vectorsFile = "../../docs/audit-vectors.json"
	receiptFile = "../../docs/receipt-example.json"
	verifier    = "../../docs/verify_receipt.py"
)

// vectors are what another implementation can be held against.
type vectors struct {
	About       string           `json:"about"`
	VerifierKey string           `json:"verifier_key"`
	Leaves      []leafVector     `json:"leaves"`
	Checkpoints []string         `json:"checkpoints"` // after each leaf
	Inclusion   []proofVector    `json:"inclusion"`
	Consistency []proofVector    `json:"consistency"`
	Texts       []textVector     `json:"texts"`
	Receipt     string           `json:"receipt"` // the file that holds one over these leaves
	Falsified   []falsifiedBytes `json:"falsified"`
}

type leafVector struct {
	JSON string `json:"json"`
	Hash string `json:"leaf_hash"` // hex
}

// proofVector is an inclusion proof (of leaf From in the log of To) or a consistency proof (of the log of From in that of To).
type proofVector struct {
	From   int64       `json:"from"`
	To     int64       `json:"to"`
	Hashes []tlog.Hash `json:"hashes"`
}

type textVector struct {
	Index int64  `json:"index"`
	Field string `json:"field"`
	Salt  string `json:"salt"` // base64
	Text  string `json:"text"`
	Hash  string `json:"hash"` // hex
}

// falsifiedBytes is a change to the receipt, and the record that a verifier must name.
type falsifiedBytes struct {
	Replace string `json:"replace"`
	By      string `json:"by"`
	Record  int64  `json:"record"`
}

// makeVectors writes vectors of a new key. The salts are random, so that they differ each time.
func makeVectors(t *testing.T) {
	t.Helper()
	key, log := newKey(t), newMemLog()
	v := vectors{
		About:       "RFC 6962 log of Stint's audit records; docs/audit.md and docs/receipts.md describe the formats",
		VerifierKey: key.Text, Receipt: filepath.Base(receiptFile),
	}
	for _, r := range story() {
		log.add(t, key, r)
		e := log.entries[len(log.entries)-1]
		v.Leaves = append(v.Leaves, leafVector{JSON: string(e.JSON), Hash: hex.EncodeToString(hashOf(e.JSON))})
		v.Checkpoints = append(v.Checkpoints, string(log.head.Checkpoint))
		for _, x := range log.texts[e.Index] {
			hash := audit.HashOf(x.Salt, x.Text)
			v.Texts = append(v.Texts, textVector{
				Index: x.Index, Field: x.Field, Salt: base64.StdEncoding.EncodeToString(x.Salt[:]), Text: x.Text, Hash: hash.String(),
			})
		}
	}
	for _, pair := range [][2]int64{{0, 1}, {0, 11}, {3, 7}, {6, 7}, {10, 11}, {7, 8}} {
		proof, err := audit.Inclusion(log, pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		v.Inclusion = append(v.Inclusion, proofVector{From: pair[0], To: pair[1], Hashes: proof})
	}
	for _, pair := range [][2]int64{{1, 1}, {1, 11}, {4, 8}, {3, 7}, {6, 11}} {
		proof, err := audit.Consistency(log, pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		v.Consistency = append(v.Consistency, proofVector{From: pair[0], To: pair[1], Hashes: proof})
	}
	v.Falsified = []falsifiedBytes{
		{"tries ünïcode", "tries ASCII", 1}, {"CN=eu1", "CN=eu2", 3}, {`\"kind\":\"crl\"`, `\"kind\":\"crI\"`, 8}, {`\"leases\":2`, `\"leases\":1`, 9},
	}
	doc, err := audit.BuildReceipt(log, taskA)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.WriteFile(vectorsFile, append(raw, '\n'), 0o644), os.WriteFile(receiptFile, doc, 0o644))
	if err != nil {
		t.Fatal(err)
	}
}

func hashOf(record []byte) []byte {
	h := tlog.RecordHash(record)
	return h[:]
}

func readVectors(t *testing.T) (v vectors, doc []byte) {
	t.Helper()
	raw, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if err = json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if doc, err = os.ReadFile(receiptFile); err != nil {
		t.Fatal(err)
	}
	return v, doc
}

// TestVectors: the code does what the published vectors say. With -update they are made anew.
func TestVectors(t *testing.T) { //nolint:paralleltest // the tests below read what it may write
	if *update {
		makeVectors(t)
	}
	v, doc := readVectors(t)
	checkpoints := v.checkLeaves(t)
	v.checkProofs(t, checkpoints)
	v.checkTexts(t)
	rep, err := audit.VerifyReceipt(doc, v.VerifierKey)
	if err != nil || !rep.Closed || rep.Open() != 0 {
		t.Errorf("receipt: %+v: %v", rep, err)
	}
	for _, f := range v.Falsified {
		bad := falsify(t, doc, f)
		var faults *audit.Faults
		_, err := audit.VerifyReceipt(bad, v.VerifierKey)
		if !errors.As(err, &faults) || !slices.ContainsFunc(faults.List, func(x audit.Fault) bool { return x.Index == f.Record }) {
			t.Errorf("%s: %v, want a fault of record %d", f.By, err, f.Record)
		}
	}
}

// checkLeaves recomputes the log and returns its checkpoints by size.
func (v *vectors) checkLeaves(t *testing.T) map[int64]audit.Checkpoint {
	t.Helper()
	key, err := audit.ParseVerifier(v.VerifierKey)
	if err != nil {
		t.Fatal(err)
	}
	var edge audit.Edge
	checkpoints := map[int64]audit.Checkpoint{}
	for i, leaf := range v.Leaves {
		edge.Append(nil, []byte(leaf.JSON))
		cp, oerr := audit.OpenCheckpoint([]byte(v.Checkpoints[i]), key)
		if oerr != nil || cp.Root != edge.Root() || cp.Size != int64(i+1) || hex.EncodeToString(hashOf([]byte(leaf.JSON))) != leaf.Hash {
			t.Errorf("leaf %d: checkpoint %+v: %v", i, cp, oerr)
		}
		checkpoints[cp.Size] = cp
	}
	return checkpoints
}

func (v *vectors) checkProofs(t *testing.T, checkpoints map[int64]audit.Checkpoint) {
	t.Helper()
	for _, p := range v.Inclusion {
		if err := audit.CheckInclusion(checkpoints[p.To], p.From, []byte(v.Leaves[p.From].JSON), p.Hashes); err != nil {
			t.Errorf("inclusion of %d in %d: %v", p.From, p.To, err)
		}
	}
	for _, p := range v.Consistency {
		if err := audit.CheckConsistency(checkpoints[p.From], checkpoints[p.To], p.Hashes); err != nil {
			t.Errorf("consistency of %d in %d: %v", p.From, p.To, err)
		}
	}
}

func (v *vectors) checkTexts(t *testing.T) {
	t.Helper()
	for _, x := range v.Texts {
		salt, err := base64.StdEncoding.DecodeString(x.Salt)
		if got := audit.HashOf([32]byte(salt), x.Text).String(); err != nil || got != x.Hash || !strings.Contains(v.Leaves[x.Index].JSON, got) {
			t.Errorf("text %s of %d is hashed as %s: %v", x.Field, x.Index, got, err)
		}
	}
}

func falsify(t *testing.T, doc []byte, f falsifiedBytes) []byte {
	t.Helper()
	bad := strings.Replace(string(doc), f.Replace, f.By, 1)
	if bad == string(doc) {
		t.Fatalf("the receipt does not hold %s", f.Replace)
	}
	return []byte(bad)
}

// TestIndependentVerifier: the program in docs, which shares no code with this one, comes to the same verdicts.
func TestIndependentVerifier(t *testing.T) { //nolint:paralleltest // see TestVectors
	for _, tool := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("STINT_REAL_SERVERS") == "1" {
				t.Fatalf("%s is not here: %v", tool, err)
			}
			t.Skipf("%s is not here: %v; make test requires it", tool, err)
		}
	}
	v, doc := readVectors(t)
	run := func(doc []byte, key string) (string, error) {
		path := filepath.Join(t.TempDir(), "receipt.json")
		if err := os.WriteFile(path, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "python3", verifier, path, key).CombinedOutput()
		return string(out), err
	}
	out, err := run(doc, v.VerifierKey)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if diff := cmp.Diff("8 records are in the log of 11 that log.example/audit signed", lines[len(lines)-1]); diff != "" {
		t.Error(diff)
	}
	for _, f := range v.Falsified {
		if out, err := run(falsify(t, doc, f), v.VerifierKey); err == nil || !strings.Contains(out, fmt.Sprintf("record %d ", f.Record)) {
			t.Errorf("%s: %v: %s", f.By, err, out)
		}
	}
	if out, err := run(doc, newKey(t).Text); err == nil {
		t.Errorf("with another key: %s", out)
	}
}
