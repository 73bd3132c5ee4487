// Package ledger is the only writer of state: one transaction holds a state change, its audit records, their Merkle
// hashes and the signed checkpoint, and is on disk before anybody hears of it.
//
// A [Store] knows rows and transactions; sqlite is one, and ledgertest the suite that every store passes. The Ledger puts
// group commit and the audit log on top, so that no store writes either again.
package ledger

import (
	"context"

	"github.com/stint-dev/stint/broker/audit"
)

// Store is a database that keeps the ledger. Only one Ledger writes to it at a time.
type Store interface {
	// Begin starts the one write transaction.
	Begin(ctx context.Context) (StoreTx, error)
	// View runs fn on a consistent snapshot of what is committed.
	View(ctx context.Context, fn func(Reader) error) error
	// Reopen discards every connection and opens the database again, after an outcome that is not known.
	Reopen(ctx context.Context) error
	// Close releases everything.
	Close() error
}

// StoreTx is a store's write transaction. It is used by one goroutine.
type StoreTx interface {
	Reader
	// Nested runs fn; what it wrote is undone, and nothing else, if it returns an error.
	Nested(fn func() error) error
	// Commit makes everything durable. After an error the outcome is not known.
	Commit() error
	// Rollback undoes everything.
	Rollback() error
	// PutLog writes what an append made.
	PutLog(a LogAppend) error
}

// Reader is everything that can be read (and, inside a StoreTx, written).
type Reader interface {
	Rows
	audit.Reader
	Restores
}

// Restores is the note that the ledger is an older copy.
type Restores interface {
	// Restored returns what PutRestored noted, or ErrNotFound.
	Restored() (Restored, error)
	// PutRestored notes it, in place of what was noted before. An append that begins an epoch removes the note.
	PutRestored(r Restored) error
}

// LogAppend is one group's addition to the audit log. The store writes it on the condition that the head is still at
// OldSize in Epoch, and answers audit.ErrFenced when it is not.
type LogAppend struct {
	Epoch   int64
	OldSize int64
	// Begins is the epoch that begins with the first of the records; zero where the epoch goes on.
	Begins  int64
	Records []audit.Entry
	// Hashes are the tlog stored hashes from index tlog.StoredHashIndex(0, OldSize) on.
	Hashes [][32]byte
	// Checkpoint is the signed note over the new size.
	Checkpoint []byte
	// Texts are erasable texts with their salts.
	Texts []audit.Text
	// Erase are the entries whose texts, and their salts, are erased. The entries themselves stay.
	Erase []int64
}
