package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrCheckpoint means that a checkpoint is malformed, of another log, or not signed by its key.
var ErrCheckpoint = errors.New("checkpoint does not verify")

// Checkpoint is a tree head: the log's name, its size, and the root of its Merkle tree (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   [32]byte
	// Epochs are those that began in this log after the first, in order. It has none unless its ledger was restored.
	Epochs []Epoch
}

// Text returns the note that is signed: three lines, and one for each epoch after the first, each ended by a newline.
func (c Checkpoint) Text() string {
	lines := []string{c.Origin, strconv.FormatInt(c.Size, 10), base64.StdEncoding.EncodeToString(c.Root[:])}
	for _, e := range c.Epochs {
		lines = append(lines, e.String())
	}
	return strings.Join(lines, "\n") + "\n"
}

// Sign returns the checkpoint as a signed note (C2SP signed-note).
func (c Checkpoint) Sign(s note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: c.Text()}, s)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return signed, nil
}

// ParseCheckpoint reads the text of a checkpoint. Lines after the third are extensions; those that name no epoch are
// ignored.
func ParseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 || lines[0] == "" || (lines[3] != "" && !strings.HasSuffix(lines[3], "\n")) {
		return Checkpoint{}, fmt.Errorf("%w: it is not three lines: origin, size, root", ErrCheckpoint)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("%w: its size is not a decimal number", ErrCheckpoint)
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != 32 {
		return Checkpoint{}, fmt.Errorf("%w: its root is not 32 bytes in base64", ErrCheckpoint)
	}
	epochs, err := parseEpochs(lines[3], size)
	if err != nil {
		return Checkpoint{}, err
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: [32]byte(root), Epochs: epochs}, nil
}

// OpenCheckpoint verifies a signed checkpoint. The log's name must be the key's.
func OpenCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: it is of log %q, the key is of %q", ErrCheckpoint, c.Origin, v.Name())
	}
	return c, nil
}

// ReadCheckpoint reads a signed checkpoint without looking at its signature, for who has verified it or only wants to know
// where it stands.
func ReadCheckpoint(signed []byte) (Checkpoint, error) {
	text, _, _ := strings.Cut(string(signed), "\n\n")
	return ParseCheckpoint(text + "\n")
}
