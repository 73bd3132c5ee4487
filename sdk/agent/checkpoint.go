package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// maxPending bounds the checkpoints that wait for their proof. Beyond it the smallest are forgotten.
const maxPending = 4096

// checkpoints keeps the checkpoints of the audit log that answers brought, and with a verifier key judges each.
type checkpoints struct {
	verifier note.Verifier // nil: keep the newest, judge none

	mu      sync.Mutex // guards what follows
	newest  head
	pending map[int64]tlog.Hash // roots by size that were seen and not yet proven to be a prefix of what came later
	fault   error               // the first reason not to believe the log; stays
}

// head is one checkpoint (C2SP tlog-checkpoint).
type head struct {
	note   string
	origin string
	size   int64
	root   tlog.Hash
}

// Checkpoint returns the newest signed checkpoint of the audit log that an answer brought, "" before the first. Keep it
// and hand it to [WithCheckpoint] next time: it is what shows that the log was not cut short meanwhile.
func (c *Client) Checkpoint() string {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return c.log.newest.note
}

// VerifyLog proves that the log which the broker has now continues everything that this client has seen: the checkpoint of
// every answer since the last call (at most 4,096), and that of [WithCheckpoint]. It needs [WithLogKey]. A failure is
// [ErrLog], and stays.
func (c *Client) VerifyLog(ctx context.Context) error {
	if c.log.verifier == nil {
		return invalid("there is no key to verify the audit log with; use WithLogKey")
	}
	latest, err := c.Audit().GetCheckpoint(ctx, &stintv1.GetCheckpointRequest{})
	if err != nil {
		return fmt.Errorf("get checkpoint: %w", err)
	}
	c.log.see(latest.GetNote())
	newest, sizes, err := c.log.unproven()
	if err != nil {
		return err
	}
	for _, size := range sizes {
		proof, err := c.Audit().GetConsistencyProof(ctx, &stintv1.GetConsistencyProofRequest{OldSize: size, NewSize: newest.size})
		if err != nil {
			return fmt.Errorf("get consistency proof: %w", err)
		}
		if err := c.log.prove(size, newest, proof.GetHashes()); err != nil {
			return err
		}
	}
	return nil
}

// unary keeps the checkpoint of every answer that has one.
//
//nolint:revive // the shape is gRPC's
func (l *checkpoints) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
		return err
	}
	if answer, ok := reply.(interface{ GetCheckpoint() string }); ok && answer.GetCheckpoint() != "" {
		l.see(answer.GetCheckpoint())
	}
	return nil
}

// see takes a checkpoint. What is wrong with it is kept as the fault: the call that brought it has happened all the same.
func (l *checkpoints) see(text string) {
	h, err := l.open(text)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.fail(err)
		return
	}
	if l.newest.note != "" && h.origin != l.newest.origin {
		l.fail(fmt.Errorf("%w: origin %q, before %q", ErrLog, h.origin, l.newest.origin))
		return
	}
	if root, known := l.pending[h.size]; known && root != h.root {
		l.fail(fmt.Errorf("%w: two roots for size %d", ErrLog, h.size))
		return
	}
	if h.size >= l.newest.size {
		l.newest = h
	}
	l.remember(h)
}

// remember keeps a root until it is proven, where there is a key to do so.
func (l *checkpoints) remember(h head) {
	if l.verifier == nil || h.size == 0 {
		return
	}
	if l.pending == nil {
		l.pending = map[int64]tlog.Hash{}
	}
	l.pending[h.size] = h.root
	if len(l.pending) > maxPending {
		delete(l.pending, slices.Min(slices.Collect(maps.Keys(l.pending))))
	}
}

func (l *checkpoints) fail(err error) {
	if l.fault == nil && l.verifier != nil {
		l.fault = err
	}
}

// open checks the signature, if there is a key, and parses.
func (l *checkpoints) open(text string) (head, error) {
	body, _, _ := strings.Cut(text, "\n\n")
	if l.verifier != nil {
		signed, err := note.Open([]byte(text), note.VerifierList(l.verifier))
		if err != nil {
			return head{}, fmt.Errorf("%w: %w", ErrLog, err)
		}
		body = signed.Text
	}
	h, err := parseHead(body)
	if err != nil {
		return head{}, fmt.Errorf("%w: %w", ErrLog, err)
	}
	h.note = text
	return h, nil
}

// parseHead parses the body of a checkpoint: origin, size, root in base64, one a line; more lines may follow.
func parseHead(body string) (head, error) {
	lines := strings.SplitN(strings.TrimSuffix(body, "\n"), "\n", 4)
	if len(lines) < 3 || lines[0] == "" {
		return head{}, errors.New("a checkpoint has at least three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return head{}, fmt.Errorf("bad size %.20q in checkpoint", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return head{}, errors.New("bad root in checkpoint")
	}
	return head{origin: lines[0], size: size, root: tlog.Hash(root)}, nil
}

// unproven returns the newest checkpoint and the sizes of those that it has to be shown to continue.
func (l *checkpoints) unproven() (newest head, sizes []int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sizes = slices.Sorted(maps.Keys(l.pending))
	sizes = slices.DeleteFunc(sizes, func(size int64) bool { return size >= l.newest.size })
	return l.newest, sizes, l.fault
}

// prove checks a consistency proof, and keeps how it went.
func (l *checkpoints) prove(size int64, newest head, hashes [][]byte) error {
	proof := make(tlog.TreeProof, 0, len(hashes))
	for _, h := range hashes {
		if len(h) != tlog.HashSize {
			return fmt.Errorf("%w: bad hash in proof", ErrLog)
		}
		proof = append(proof, tlog.Hash(h))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	root, ok := l.pending[size]
	if !ok {
		return l.fault // another call proved it meanwhile
	}
	if err := tlog.CheckTree(proof, newest.size, newest.root, size, root); err != nil {
		l.fail(fmt.Errorf("%w: size %d does not continue size %d: %w", ErrLog, newest.size, size, err))
		return l.fault
	}
	delete(l.pending, size)
	return nil
}

// CheckpointSize returns how many records a checkpoint covers; false where it is none. It checks no signature.
func CheckpointSize(signed string) (int64, bool) {
	body, _, _ := strings.Cut(signed, "\n\n")
	h, err := parseHead(body)
	return h.size, err == nil
}
