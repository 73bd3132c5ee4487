package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// ReceiptFormat is the format of receipts, in their first field. docs/receipts.md describes it.
const ReceiptFormat = "stint-receipt/1"

// ManifestText is the field of Record.Texts in which a declaration may carry its manifest's bytes. A receipt then shows
// them, and VerifyReceipt holds them against the manifest's hash in the record.
const ManifestText = "manifest"

// ErrNoRecords means that the log holds nothing about the task.
var ErrNoRecords = errors.New("no records of the task")

// page is how many entries are read at a time.
const page = 500

// receipt is the document: all records of one task, each with its proof under one signed checkpoint.
type receipt struct {
	Format     string          `json:"format"`
	Task       string          `json:"task"`
	Checkpoint string          `json:"checkpoint"` // C2SP signed-note
	Records    []receiptRecord `json:"records"`
}

// receiptRecord is one leaf. Index stands first, so that even a damaged document can be told where it is damaged.
type receiptRecord struct {
	Index int64         `json:"index"`
	JSON  string        `json:"json"` // the leaf, byte for byte
	Proof []tlog.Hash   `json:"proof"`
	Texts []receiptText `json:"texts,omitempty"`
}

// receiptText is free text that has not been erased, with the salt of its hash in the leaf.
type receiptText struct {
	Field string `json:"field"`
	Salt  string `json:"salt"` // base64
	Text  string `json:"text"`
}

// BuildReceipt makes the receipt of a task (its ID in canonical form) from a snapshot: a JSON document that VerifyReceipt
// verifies with a public key alone.
func BuildReceipt(r Reader, task string) ([]byte, error) {
	head, err := r.Head()
	if err != nil {
		return nil, fmt.Errorf("receipt of task %s: %w", task, err)
	}
	doc := receipt{Format: ReceiptFormat, Task: task, Checkpoint: string(head.Checkpoint)}
	for start := int64(0); ; {
		entries, err := r.Entries(start, page, task)
		if err != nil {
			return nil, fmt.Errorf("receipt of task %s: %w", task, err)
		}
		for _, e := range entries {
			rec, err := prove(r, e, head.Size)
			if err != nil {
				return nil, fmt.Errorf("receipt of task %s: %w", task, err)
			}
			doc.Records = append(doc.Records, rec)
			start = e.Index + 1
		}
		if len(entries) < page {
			break
		}
	}
	if task == "" || len(doc.Records) == 0 {
		return nil, fmt.Errorf("receipt of task %q: %w", task, ErrNoRecords)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("receipt of task %s: %w", task, err)
	}
	return b.Bytes(), nil
}

// prove puts an entry and its proof together.
func prove(r Reader, e Entry, size int64) (receiptRecord, error) {
	proof, err := Inclusion(r, e.Index, size)
	if err != nil {
		return receiptRecord{}, err
	}
	texts, err := r.Texts(e.Index)
	if err != nil {
		return receiptRecord{}, err
	}
	rec := receiptRecord{Index: e.Index, JSON: string(e.JSON), Proof: proof}
	for _, t := range texts {
		salt := base64.StdEncoding.EncodeToString(t.Salt[:])
		rec.Texts = append(rec.Texts, receiptText{Field: t.Field, Salt: salt, Text: t.Text})
	}
	return rec, nil
}
