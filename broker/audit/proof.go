package audit

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrRange means that a proof was asked for something that the log does not hold.
var ErrRange = errors.New("not in the log")

// Inclusion proves that the record at index is in the log of a size, which is at most the log's: the Merkle audit path of
// RFC 6962 section 2.1.1, from the leaf up.
func Inclusion(r Reader, index, size int64) ([]tlog.Hash, error) {
	if err := within(r, size); err != nil {
		return nil, err
	}
	if index < 0 || index >= size {
		return nil, fmt.Errorf("prove record %d in a log of %d: %w", index, size, ErrRange)
	}
	proof, err := tlog.ProveRecord(size, index, hashes(r))
	if err != nil {
		return nil, fmt.Errorf("prove record %d in a log of %d: %w", index, size, err)
	}
	return proof, nil
}

// Consistency proves that the log of oldSize is a prefix of the log of newSize (RFC 6962 section 2.1.2).
func Consistency(r Reader, oldSize, newSize int64) ([]tlog.Hash, error) {
	if err := within(r, newSize); err != nil {
		return nil, err
	}
	if oldSize < 1 || oldSize > newSize {
		return nil, fmt.Errorf("prove a log of %d within one of %d: %w", oldSize, newSize, ErrRange)
	}
	proof, err := tlog.ProveTree(newSize, oldSize, hashes(r))
	if err != nil {
		return nil, fmt.Errorf("prove a log of %d within one of %d: %w", oldSize, newSize, err)
	}
	return proof, nil
}

// CheckInclusion verifies an inclusion proof against a checkpoint. The record is its canonical JSON.
func CheckInclusion(c Checkpoint, index int64, record []byte, proof []tlog.Hash) error {
	if index < 0 || index >= c.Size {
		return fmt.Errorf("check record %d in a log of %d: %w", index, c.Size, ErrRange)
	}
	return tlog.CheckRecord(proof, c.Size, c.Root, index, tlog.RecordHash(record))
}

// CheckConsistency verifies that the log of one checkpoint is a prefix of the other's.
func CheckConsistency(earlier, later Checkpoint, proof []tlog.Hash) error {
	if earlier.Size < 1 || earlier.Size > later.Size {
		return fmt.Errorf("check a log of %d within one of %d: %w", earlier.Size, later.Size, ErrRange)
	}
	return tlog.CheckTree(proof, later.Size, later.Root, earlier.Size, earlier.Root)
}

func within(r Reader, size int64) error {
	head, err := r.Head()
	if err != nil {
		return err
	}
	if size < 0 || size > head.Size {
		return fmt.Errorf("prove in a log of %d, which has %d records: %w", size, head.Size, ErrRange)
	}
	return nil
}

func hashes(r Reader) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		raw, err := r.Hashes(indexes)
		if err != nil {
			return nil, err
		}
		out := make([]tlog.Hash, len(raw))
		for i, h := range raw {
			out[i] = h
		}
		return out, nil
	})
}
