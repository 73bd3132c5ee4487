package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/stint-dev/stint/broker/audit"
)

// maxGroup is how many updates share one transaction at most.
const maxGroup = 256

// Config is what a Ledger is made of.
type Config struct {
	Store Store
	// Signer signs checkpoints; Verifier verifies the one that is found at the start. Both carry the log's name.
	Signer   note.Signer
	Verifier note.Verifier
	// Origin names the log (C2SP tlog-checkpoint). It must be the keys' name, so that a verifier key names its log.
	Origin string
	Logger *zap.Logger
	// StopIssuingBelow is how many free bytes must be left for Low to be false, until SetStopIssuingBelow; FreeBytes counts
	// them. With zero or nil Low is always false.
	StopIssuingBelow uint64
	FreeBytes        func() (uint64, error)
	// Known is the newest signed checkpoint of this log that was kept outside the store; nil where none was. A ledger that
	// does not hold what it is of is an older copy, and held.
	Known []byte
	// Committed is told how long each commit took, its transaction included; nil where nobody asks. It must not block.
	Committed func(took time.Duration)
}

// Ledger puts group commit and the audit log on top of a store. Run must be running for Update to make progress.
type Ledger struct {
	cfg     Config
	queue   chan *work
	closing chan struct{} // closed when no more work is taken
	stopped chan struct{} // closed when Run has returned its last answer
	running atomic.Bool
	mark    atomic.Uint64 // Config.StopIssuingBelow
	low     atomic.Bool   // what Low said last, to log changes only
	damage  atomic.Pointer[error]
	head    atomic.Pointer[audit.Head]
	watch   *watchers

	restored  atomic.Pointer[Restored] // nil unless the ledger is held
	confirmed chan struct{}            // closed while it is not held

	// edge is the right edge of the log's tree, epochs the epochs that its checkpoints name. Only the writer touches them.
	edge   audit.Edge
	epochs []audit.Epoch

	mu    sync.Mutex // guards cause
	cause error      // why Run ended, if not because it was asked to
}

// Open reads the head of the log and verifies its checkpoint against what the store holds. It starts nothing.
// A log that does not match its checkpoint is refused with ErrMismatch. A ledger that is an older copy is opened and held:
// it can be read, and takes no change but ConfirmRestore.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.Store == nil || cfg.Signer == nil || cfg.Verifier == nil {
		return nil, errors.New("open ledger: store, signer and verifier are needed")
	}
	if cfg.Origin != cfg.Signer.Name() || cfg.Origin != cfg.Verifier.Name() {
		return nil, fmt.Errorf("open ledger: origin %q is not the name in the signing key, %q", cfg.Origin, cfg.Signer.Name())
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	l := &Ledger{
		cfg: cfg, queue: make(chan *work, maxGroup), closing: make(chan struct{}), stopped: make(chan struct{}),
		watch: newWatchers(), confirmed: make(chan struct{}),
	}
	l.SetStopIssuingBelow(cfg.StopIssuingBelow)
	if err := l.load(ctx); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	if err := l.hold(ctx); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return l, nil
}

// load reads head and right edge from the store and verifies them.
func (l *Ledger) load(ctx context.Context) error {
	return l.cfg.Store.View(ctx, func(r Reader) error {
		head, err := r.Head()
		if err != nil {
			return fmt.Errorf("read audit head: %w", err)
		}
		edge, err := audit.LoadEdge(r, head.Size)
		if err != nil {
			return fmt.Errorf("read the log's right edge: %w", err)
		}
		cp, err := verifyHead(head, edge, l.cfg.Verifier)
		if err != nil {
			return err
		}
		restored, err := r.Restored()
		switch {
		case err == nil:
			l.restored.Store(&restored)
		case errors.Is(err, ErrNotFound):
			l.restored.Store(nil)
		default:
			return fmt.Errorf("read whether it was restored: %w", err)
		}
		l.edge, l.epochs = edge, cp.Epochs
		l.head.Store(&head)
		return nil
	})
}

// verifyHead checks that the head's checkpoint was signed for exactly this log, and returns it.
func verifyHead(head audit.Head, edge audit.Edge, v note.Verifier) (audit.Checkpoint, error) {
	if head.Size == 0 && head.Checkpoint == nil {
		return audit.Checkpoint{}, nil
	}
	cp, err := audit.OpenCheckpoint(head.Checkpoint, v)
	switch {
	case err != nil:
		return cp, fmt.Errorf("%w: %w", ErrMismatch, err)
	case cp.Size != head.Size:
		return cp, fmt.Errorf("%w: signed for %d records, the store holds %d", ErrMismatch, cp.Size, head.Size)
	case cp.Root != edge.Root():
		return cp, fmt.Errorf("%w: the hashes of its %d records differ from what was signed", ErrMismatch, head.Size)
	case cp.Epoch() != head.Epoch:
		return cp, fmt.Errorf("%w: signed for epoch %d, the store is in %d", ErrMismatch, cp.Epoch(), head.Epoch)
	}
	return cp, nil
}

// View runs fn on a consistent snapshot of what is committed.
func (l *Ledger) View(ctx context.Context, fn func(Reader) error) error {
	err := l.cfg.Store.View(ctx, fn)
	l.look(err)
	return err
}

// Damaged returns what was found to be damaged since the start, or nil. Nothing more may be admitted by such a ledger: what
// it answers may lack what cannot be read. Ending goes on, as far as it can be read.
func (l *Ledger) Damaged() error {
	if found := l.damage.Load(); found != nil {
		return *found
	}
	return nil
}

// look keeps the first sign of damage, and says so once.
func (l *Ledger) look(err error) {
	if errors.Is(err, ErrDamaged) && l.damage.CompareAndSwap(nil, &err) {
		l.cfg.Logger.Error("the ledger is damaged: nothing more is issued, and what can be read is ended; stop the broker and restore a backup, as docs/operations.md says",
			zap.Error(err))
	}
}

// ViewLog is View for who needs the log only.
func (l *Ledger) ViewLog(ctx context.Context, fn func(audit.Reader) error) error {
	return l.cfg.Store.View(ctx, func(r Reader) error { return fn(r) })
}

// Head returns where the log stood after the last commit, from memory.
func (l *Ledger) Head() audit.Head { return *l.head.Load() }

// SetStopIssuingBelow changes how many free bytes must be left for Low to be false.
func (l *Ledger) SetStopIssuingBelow(bytes uint64) { l.mark.Store(bytes) }

// Low reports whether so little disk is free that nothing more may be issued. Ending credentials goes on. When the
// free space cannot be read, it is taken for low.
func (l *Ledger) Low() bool {
	mark := l.mark.Load()
	if mark == 0 || l.cfg.FreeBytes == nil {
		return false
	}
	free, err := l.cfg.FreeBytes()
	low := err != nil || free < mark
	if l.low.Swap(low) != low {
		l.cfg.Logger.Warn("free disk changed sides of the limit for issuing", zap.Bool("low", low),
			zap.Uint64("free_bytes", free), zap.Uint64("limit_bytes", mark), zap.Error(err))
	}
	return low
}
