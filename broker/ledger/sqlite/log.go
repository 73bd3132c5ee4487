package sqlite

import (
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/ledger"
)

// Head returns where the log stands.
func (r *rows) Head() (audit.Head, error) {
	var h audit.Head
	err := r.s.one("SELECT epoch, size, checkpoint FROM audit_head WHERE one = 1", nil, &h.Epoch, &h.Size, &h.Checkpoint)
	return h, err
}

// Restored returns what was noted about the file being an older copy.
func (r *rows) Restored() (ledger.Restored, error) {
	var x ledger.Restored
	var at int64
	err := r.s.one("SELECT found, at, known FROM restored WHERE one = 1", nil, &x.Found, &at, &x.Known)
	x.At = time.Unix(0, at).UTC()
	return x, err
}

// PutRestored notes that the file is an older copy.
func (r *rows) PutRestored(x ledger.Restored) error {
	_, err := r.s.exec("INSERT OR REPLACE INTO restored (one, found, at, known) VALUES (1, ?, ?, ?)",
		string(x.Found), x.At.UnixNano(), x.Known)
	return err
}

// Entries returns up to limit entries from start on; with a task, only that task's.
func (r *rows) Entries(start int64, limit int, task string) ([]audit.Entry, error) {
	query, args := "SELECT idx, event, task, json FROM audit_entries WHERE idx >= ? ORDER BY idx LIMIT ?", []any{start, limit}
	if task != "" {
		query = "SELECT idx, event, task, json FROM audit_entries WHERE idx >= ? AND task = ? AND task <> '' ORDER BY idx LIMIT ?"
		args = []any{start, task, limit}
	}
	var entries []audit.Entry
	err := r.s.each(query, args, func(scan func(...any) error) error {
		var e audit.Entry
		if err := scan(&e.Index, &e.Event, &e.Task, &e.JSON); err != nil {
			return err
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

// Hashes returns stored hashes by their storage index.
func (r *rows) Hashes(indexes []int64) ([][32]byte, error) {
	out := make([][32]byte, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		record := (n+1)<<level - 1 // the one that completed the subtree
		var b []byte
		err := r.s.one("SELECT substr(hashes, ?, 32) FROM audit_entries WHERE idx = ?", []any{32*level + 1, record}, &b)
		if err != nil {
			return nil, fmt.Errorf("hash %d of level %d: %w", n, level, err)
		}
		if len(b) != 32 {
			return nil, fmt.Errorf("hash %d of level %d has %d bytes", n, level, len(b))
		}
		out[i] = [32]byte(b)
	}
	return out, nil
}

// Texts returns what has not been erased of an entry's free text.
func (r *rows) Texts(index int64) ([]audit.Text, error) {
	var texts []audit.Text
	query := "SELECT field, salt, text FROM audit_texts WHERE idx = ? ORDER BY field"
	err := r.s.each(query, []any{index}, func(scan func(...any) error) error {
		t, salt := audit.Text{Index: index}, []byte(nil)
		if err := scan(&t.Field, &salt, &t.Text); err != nil {
			return err
		}
		if len(salt) != len(t.Salt) {
			return fmt.Errorf("salt of %s at %d has %d bytes", t.Field, index, len(salt))
		}
		t.Salt = [32]byte(salt)
		texts = append(texts, t)
		return nil
	})
	return texts, err
}
