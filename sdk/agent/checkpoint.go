package agent

import (
	"cmp"
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

	mu       sync.Mutex // guards what follows
	newest   head
	pending  map[place]tlog.Hash // roots that were seen and not yet proven to be of a prefix of what came later
	accepted int64               // the epoch up to which AcceptRestore has let go of what was lost
	fault    error               // the first reason not to believe the log; stays
}

// place is a size of the log of an epoch.
type place struct{ epoch, size int64 }

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.epoch, o.epoch), cmp.Compare(p.size, o.size))
}

// head is one checkpoint (C2SP tlog-checkpoint).
type head struct {
	note   string
	origin string
	size   int64
	root   tlog.Hash
	epochs []place // those after the first, by where they began
}

// place is where the head stands. A log has epochs where it was restored from an older copy: docs/audit.md.
func (h head) place() place {
	if n := len(h.epochs); n > 0 {
		return place{h.epochs[n-1].epoch, h.size}
	}
	return place{1, h.size}
}

// kept is how many of the first records of an epoch's log are in this one.
func (h head) kept(epoch int64) int64 {
	for _, e := range h.epochs {
		if e.epoch > epoch {
			return e.size
		}
	}
	return h.size
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
// [ErrLog], and stays. A log that says itself, signed, that it was restored and that some of what this client has seen was
// lost is [ErrRestored], until [Client.AcceptRestore]; all that it kept was proven then.
func (c *Client) VerifyLog(ctx context.Context) error {
	if c.log.verifier == nil {
		return invalid("there is no key to verify the audit log with; use WithLogKey")
	}
	latest, err := c.Audit().GetCheckpoint(ctx, &stintv1.GetCheckpointRequest{})
	if err != nil {
		return fmt.Errorf("get checkpoint: %w", err)
	}
	c.log.see(latest.GetNote())
	newest, seen, err := c.log.unproven()
	if err != nil {
		return err
	}
	for _, at := range seen {
		proof, err := c.Audit().GetConsistencyProof(ctx, &stintv1.GetConsistencyProofRequest{OldSize: at.size, NewSize: newest.size})
		if err != nil {
			return c.unproven(ctx, newest, err)
		}
		if err := c.log.prove(at, newest, proof.GetHashes()); err != nil {
			return err
		}
	}
	return c.log.restored()
}

// unproven says why there is no proof. A log that is shorter than what was seen may be one that waits for a restore to be
// confirmed, so that this does not stay.
func (c *Client) unproven(ctx context.Context, newest head, cause error) error {
	cause = fmt.Errorf("get consistency proof: %w", cause)
	latest, err := c.Audit().GetCheckpoint(ctx, &stintv1.GetCheckpointRequest{})
	if err != nil {
		return cause
	}
	h, err := c.log.open(latest.GetNote())
	if err != nil || h.place().compare(newest.place()) >= 0 {
		return cause
	}
	return fmt.Errorf("%w: it has %d records in epoch %d, and had %d in epoch %d: its end was cut off, or it is an older copy that waits "+
		"for its operator to confirm the restore", ErrLog, h.size, h.place().epoch, newest.size, newest.place().epoch)
}

// AcceptRestore says that the operator of the broker has told about the restore that VerifyLog found: what this client saw of
// the records that were lost is forgotten, and VerifyLog goes on with the rest. What comes to light of a later restore is an
// error again.
func (c *Client) AcceptRestore() {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	newest := c.log.newest
	c.log.accepted = newest.place().epoch
	maps.DeleteFunc(c.log.pending, func(at place, _ tlog.Hash) bool { return at.size > newest.kept(at.epoch) })
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
	if root, known := l.pending[h.place()]; known && root != h.root {
		l.fail(fmt.Errorf("%w: two roots for size %d", ErrLog, h.size))
		return
	}
	if older, newer := l.newest, h; l.newest.note != "" {
		if newer.place().epoch < older.place().epoch {
			older, newer = newer, older
		}
		if !continues(newer.epochs, older.epochs) {
			l.fail(fmt.Errorf("%w: two logs say that they are epoch %d", ErrLog, older.place().epoch))
			return
		}
	}
	if l.newest.note == "" || h.place().compare(l.newest.place()) >= 0 {
		l.newest = h
	}
	l.remember(h)
}

// remember keeps a root until it is proven, where there is a key to do so.
func (l *checkpoints) remember(h head) {
	if l.verifier == nil || h.size == 0 {
		return
	}
	if h.size > l.newest.kept(h.place().epoch) && h.place().epoch < l.accepted {
		return // an answer that was under way when the restore was accepted
	}
	if l.pending == nil {
		l.pending = map[place]tlog.Hash{}
	}
	l.pending[h.place()] = h.root
	if len(l.pending) > maxPending {
		delete(l.pending, slices.MinFunc(slices.Collect(maps.Keys(l.pending)), place.compare))
	}
}

// continues reports whether the epochs of a later checkpoint go on from those of an earlier one. Epochs that a later restore
// has lost with its records are missing at the end of what both share.
func continues(later, earlier []place) bool {
	for i, e := range earlier {
		switch {
		case i >= len(later) || later[i].epoch > e.epoch:
			return i < len(later) // lost with its records, if a later epoch says so
		case later[i] != e:
			return false
		}
	}
	return true
}

// restored says what a restore has lost of what was seen.
func (l *checkpoints) restored() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := place{}
	for at := range l.pending {
		if at.size > l.newest.kept(at.epoch) && at.compare(lost) > 0 {
			lost = at
		}
	}
	if lost.size == 0 {
		return nil
	}
	kept := l.newest.kept(lost.epoch)
	return fmt.Errorf("%w: epoch %d goes on from record %d of epoch %d, of which this client had seen %d; the others are lost",
		ErrRestored, l.newest.place().epoch, kept, lost.epoch, lost.size)
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
	h := head{origin: lines[0], size: size, root: tlog.Hash(root)}
	if len(lines) == 4 {
		if h.epochs, err = parseEpochs(lines[3], size); err != nil {
			return head{}, err
		}
	}
	return h, nil
}

// parseEpochs reads the extension lines of a checkpoint that name epochs: "epoch <number> <index of its first record>". They
// come first; others are ignored.
func parseEpochs(lines string, size int64) ([]place, error) {
	var epochs []place
	last, others := place{1, -1}, false
	for line := range strings.SplitSeq(lines, "\n") {
		if !strings.HasPrefix(line, "epoch ") {
			others = true
			continue
		}
		var e place
		_, err := fmt.Sscanf(line, "epoch %d %d", &e.epoch, &e.size)
		if err != nil || others || line != fmt.Sprintf("epoch %d %d", e.epoch, e.size) ||
			e.epoch <= last.epoch || e.size <= last.size || e.size >= size {
			return nil, fmt.Errorf("bad epoch %.60q in checkpoint", line)
		}
		epochs, last = append(epochs, e), e
	}
	return epochs, nil
}

// unproven returns the newest checkpoint and those that it has to be shown to continue: what it keeps of each epoch.
func (l *checkpoints) unproven() (newest head, seen []place, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen = slices.SortedFunc(maps.Keys(l.pending), place.compare)
	seen = slices.DeleteFunc(seen, func(at place) bool {
		return at == l.newest.place() || at.size > l.newest.kept(at.epoch)
	})
	return l.newest, seen, l.fault
}

// prove checks a consistency proof, and keeps how it went.
func (l *checkpoints) prove(at place, newest head, hashes [][]byte) error {
	proof := make(tlog.TreeProof, 0, len(hashes))
	for _, h := range hashes {
		if len(h) != tlog.HashSize {
			return fmt.Errorf("%w: bad hash in proof", ErrLog)
		}
		proof = append(proof, tlog.Hash(h))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	root, ok := l.pending[at]
	if !ok {
		return l.fault // another call proved it meanwhile
	}
	if err := tlog.CheckTree(proof, newest.size, newest.root, at.size, root); err != nil {
		l.fail(fmt.Errorf("%w: size %d does not continue size %d: %w", ErrLog, newest.size, at.size, err))
		return l.fault
	}
	delete(l.pending, at)
	return nil
}

// CheckpointSize returns how many records a checkpoint covers; false where it is none. It checks no signature.
func CheckpointSize(signed string) (int64, bool) {
	body, _, _ := strings.Cut(signed, "\n\n")
	h, err := parseHead(body)
	return h.size, err == nil
}
