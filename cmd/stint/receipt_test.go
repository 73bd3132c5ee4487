package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

const receiptTask = "01a20903-4152-7525-aad8-60c772785c7a"

// memoryLog is an audit log in memory.
type memoryLog struct {
	edge    audit.Edge
	hashes  [][32]byte
	entries []audit.Entry
	signed  []byte
}

func (m *memoryLog) Head() (audit.Head, error) {
	return audit.Head{Epoch: 1, Size: m.edge.Size(), Checkpoint: m.signed}, nil
}

func (m *memoryLog) Entries(start int64, limit int, name string) ([]audit.Entry, error) {
	var out []audit.Entry
	for _, e := range m.entries {
		if e.Index >= start && len(out) < limit && (name == "" || e.Task == name) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (m *memoryLog) Hashes(indexes []int64) ([][32]byte, error) {
	out := make([][32]byte, 0, len(indexes))
	for _, i := range indexes {
		out = append(out, m.hashes[i])
	}
	return out, nil
}

func (m *memoryLog) Texts(int64) ([]audit.Text, error) { return nil, nil }

func (m *memoryLog) add(t *testing.T, r audit.Record) {
	t.Helper()
	r.V, r.Time = 1, time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	r.Actor = audit.Actor{ID: "spiffe://example.org/agent/invoice/eu1"}
	e, _, err := audit.Encode(r, m.edge.Size())
	if err != nil {
		t.Fatal(err)
	}
	m.entries = append(m.entries, e)
	m.hashes = m.edge.Append(m.hashes, e.JSON)
}

// writeReceipts makes receipt.json, which verifies with the key in audit.pub, bad.json, with one byte changed, and
// open.json, without its last record.
func writeReceipts(t *testing.T) (dir string, doc []byte) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "stint.example.org/audit")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	log := &memoryLog{}
	lease := audit.Record{Task: receiptTask, Lease: "019AB3C1D2E47F0A8B1C2D3E4F506172", Role: "orders-db-read", Backend: "vault/prod", Ref: "v-1"}
	log.add(t, audit.Record{Event: audit.LogStarted})
	log.add(t, audit.Record{
		Event: audit.TaskDeclared, Task: receiptTask, TaskName: "reconcile-invoices-7f3k", Purpose: "reconcile-invoices",
		Agent: "spiffe://example.org/agent/invoice/eu1", Sponsor: "head-of-billing@example.org",
	})
	lease.Event = audit.LeaseActive
	log.add(t, lease)
	lease.Event, lease.Proof = audit.LeaseEnded, &audit.Proof{Kind: plugins.ReadBack, At: time.Date(2026, 11, 23, 10, 1, 0, 0, time.UTC)}
	log.add(t, lease)
	log.add(t, audit.Record{
		Event: audit.TaskClosed, Task: receiptTask, Reason: "COMPLETED",
		Summary: &task.Summary{Leases: 1, ByProof: map[plugins.Proof]int{plugins.ReadBack: 1}},
	})
	if log.signed, err = (audit.Checkpoint{Origin: "stint.example.org/audit", Size: log.edge.Size(), Root: log.edge.Root()}).Sign(signer); err != nil {
		t.Fatal(err)
	}
	if doc, err = audit.BuildReceipt(log, receiptTask); err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(doc)
	bad[bytes.Index(bad, []byte("vault/prod"))] = 'V'
	dir = t.TempDir()
	for name, content := range map[string][]byte{
		"receipt.json": doc, "bad.json": bad, "open.json": withoutLast(t, doc), "audit.pub": []byte(public + "\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, doc
}

// withoutLast leaves the last record out of a receipt.
func withoutLast(t *testing.T, doc []byte) []byte {
	t.Helper()
	var receipt struct {
		Format     string            `json:"format"`
		Task       string            `json:"task"`
		Checkpoint string            `json:"checkpoint"`
		Records    []json.RawMessage `json:"records"`
	}
	if err := json.Unmarshal(doc, &receipt); err != nil {
		t.Fatal(err)
	}
	receipt.Records = receipt.Records[:len(receipt.Records)-1]
	open, err := json.Marshal(receipt)
	if err != nil {
		t.Fatal(err)
	}
	return open
}
