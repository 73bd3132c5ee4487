package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Edge is the right edge of the log's Merkle tree (RFC 6962 section 2.1): the roots of its complete subtrees. It is all
// that is needed to append and to compute the root, so that no append reads the log. It is a value: a copy is a snapshot.
// The zero Edge is of the empty log.
type Edge struct {
	size  int64
	roots [63]tlog.Hash // by level; meaningful where size has the level's bit set
}

// LoadEdge reads the right edge of a log with size records.
func LoadEdge(r Reader, size int64) (Edge, error) {
	e := Edge{size: size}
	var levels []int
	var indexes []int64
	for level := range e.roots {
		if size>>level&1 == 1 {
			levels = append(levels, level)
			indexes = append(indexes, tlog.StoredHashIndex(level, size>>level-1))
		}
	}
	if len(indexes) == 0 {
		return e, nil
	}
	hashes, err := r.Hashes(indexes)
	if err != nil {
		return Edge{}, err
	}
	if len(hashes) != len(indexes) {
		return Edge{}, fmt.Errorf("asked for %d hashes, got %d", len(indexes), len(hashes))
	}
	for i, level := range levels {
		e.roots[level] = hashes[i]
	}
	return e, nil
}

// Append adds a record and appends to dst the hashes that are stored with it: its own, then those of the subtrees that it
// completes, as tlog.StoredHashes does.
func (e *Edge) Append(dst [][32]byte, record []byte) [][32]byte {
	return e.appendHash(dst, tlog.RecordHash(record))
}

// appendHash is Append for a record of which only the hash is known.
func (e *Edge) appendHash(dst [][32]byte, h tlog.Hash) [][32]byte {
	dst = append(dst, h)
	level := 0
	for ; e.size>>level&1 == 1; level++ {
		h = tlog.NodeHash(e.roots[level], h)
		dst = append(dst, h)
	}
	e.roots[level] = h
	e.size++
	return dst
}

// Size returns how many records the log has.
func (e *Edge) Size() int64 { return e.size }

// Root returns the Merkle tree hash (RFC 6962 section 2.1).
func (e *Edge) Root() [32]byte {
	root, found := tlog.Hash{}, false
	for level := range e.roots {
		switch {
		case e.size>>level&1 == 0:
		case !found:
			root, found = e.roots[level], true
		default:
			root = tlog.NodeHash(e.roots[level], root)
		}
	}
	if !found {
		root, _ = tlog.TreeHash(0, nil) // the empty tree reads nothing
	}
	return root
}
