package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"

	"github.com/stint-dev/stint/broker/task"
)

// ErrFenced means that the log's head moved without us. Whoever sees it stops writing for good.
var ErrFenced = errors.New("audit log head is not where it was left")

// Entry is a record at its place.
type Entry struct {
	Index int64
	// JSON is the leaf: canonical JSON (RFC 8785) of a Record.
	JSON []byte
	// Event and Task repeat fields of the record for queries; Task is empty where there is none.
	Event Event
	Task  string
}

// Text is free text with the salt of its hash, kept beside the log so that it can be erased.
type Text struct {
	Index int64
	Field string
	Salt  [32]byte
	Text  string
}

// Head is where the log stands.
type Head struct {
	Epoch      int64
	Size       int64
	Checkpoint []byte // the signed note over Size; nil while Size is 0
}

// Reader reads a log.
type Reader interface {
	// Head returns where the log stands.
	Head() (Head, error)
	// Entries returns up to limit entries from start on; with a task, only that task's.
	Entries(start int64, limit int, task string) ([]Entry, error)
	// Hashes returns tlog stored hashes by their storage index.
	Hashes(indexes []int64) ([][32]byte, error)
	// Texts returns what has not been erased of an entry's free text.
	Texts(index int64) ([]Text, error)
}

// HashOf returns the salted hash under which text enters a record: HMAC-SHA-256(salt, text).
func HashOf(salt [32]byte, text string) task.Hash {
	m := hmac.New(sha256.New, salt[:])
	m.Write([]byte(text))
	return task.Hash(m.Sum(nil))
}
