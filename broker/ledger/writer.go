package ledger

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/stint-dev/stint/broker/audit"
)

// reopenWithin is for how long the database may take to come back after an unknown outcome.
const reopenWithin = 30 * time.Second

// runner is implemented by stores with work of their own in the background.
type runner interface {
	Run(ctx context.Context) error
}

// Run is the one writer, and the store's background work. It returns nil when ctx is done and what was queued is
// finished; ErrFenced when somebody else wrote to the log; another error when the database did not come back after an
// unknown outcome. After an error the process has to end: nothing can be written any more.
func (l *Ledger) Run(ctx context.Context) error {
	if !l.running.CompareAndSwap(false, true) {
		return errors.New("ledger runs already")
	}
	defer close(l.stopped)
	g, ctx := errgroup.WithContext(ctx)
	if r, ok := l.cfg.Store.(runner); ok {
		g.Go(func() error { return r.Run(ctx) })
	}
	g.Go(func() error { return l.write(ctx) })
	return g.Wait()
}

// write commits groups until ctx is done, then what is still queued.
func (l *Ledger) write(ctx context.Context) (err error) {
	defer func() {
		l.mu.Lock()
		l.cause = err
		l.mu.Unlock()
		close(l.closing)
	}()
	lasting := context.WithoutCancel(ctx)
	if l.Head().Size == 0 && !l.Held() { // of one that is held, the first record is the one of its restore
		if err := l.start(lasting); err != nil {
			return err
		}
	}
	for {
		select {
		case w := <-l.queue:
			if err := l.group(lasting, l.gather(w)); err != nil {
				return err
			}
		case <-ctx.Done():
			return l.drain(lasting)
		}
	}
}

// start makes the first record of a new log.
func (l *Ledger) start(ctx context.Context) error {
	w := &work{done: make(chan struct{}), fn: func(tx *Tx) error {
		_, err := tx.Append(audit.Record{Event: audit.LogStarted, Actor: audit.Actor{ID: "stint"}})
		return err
	}}
	if err := l.group(ctx, []*work{w}); err != nil {
		return err
	}
	if w.err != nil {
		return fmt.Errorf("start the audit log: %w", w.err)
	}
	return nil
}

// drain commits what is queued. What is queued later is refused by Update itself.
func (l *Ledger) drain(ctx context.Context) error {
	for {
		select {
		case w := <-l.queue:
			if err := l.group(ctx, l.gather(w)); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// gather takes everything that is queued, after letting those run that are about to queue.
func (l *Ledger) gather(first *work) []*work {
	runtime.Gosched()
	group := []*work{first}
	for len(group) < maxGroup {
		select {
		case w := <-l.queue:
			group = append(group, w)
		default:
			return group
		}
	}
	return group
}

// batch is one group in the making.
type batch struct {
	works  []*work // those that were started
	txs    []*Tx   // of each, or nil where it failed
	errs   []error // of each: its own
	log    LogAppend
	edge   audit.Edge
	epochs []audit.Epoch
	head   audit.Head
}

// group commits a group and tells its callers. Its error ends the writer.
func (l *Ledger) group(ctx context.Context, works []*work) error {
	b := &batch{edge: l.edge, epochs: l.epochs, head: l.Head()}
	b.log = LogAppend{Epoch: b.head.Epoch, OldSize: b.head.Size}
	for _, w := range works {
		if w.taken.CompareAndSwap(false, true) {
			b.works = append(b.works, w)
		}
	}
	if len(b.works) == 0 {
		return nil
	}
	began := time.Now()
	err := l.commit(ctx, b)
	if l.cfg.Committed != nil {
		l.cfg.Committed(time.Since(began))
	}
	var fatal error
	switch {
	case errors.Is(err, audit.ErrFenced):
		fatal = err
	case errors.Is(err, ErrOutcomeUnknown):
		fatal = l.recover(ctx, b)
	}
	if err == nil {
		l.edge, l.epochs = b.edge, b.epochs
		l.head.Store(&b.head)
		if b.log.Begins != 0 {
			l.release()
		}
	}
	for _, own := range append(b.errs, err) {
		l.look(own)
	}
	l.tell(b, err)
	return fatal
}

// commit runs a batch in one transaction. Without an error it is durable.
func (l *Ledger) commit(ctx context.Context, b *batch) error {
	tx, err := l.cfg.Store.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w: %w", ErrUnavailable, err)
	}
	if err = l.fill(tx, b); err == nil {
		if err = tx.Commit(); err == nil {
			return nil
		}
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	if rerr := tx.Rollback(); rerr != nil {
		l.cfg.Logger.Warn("rollback failed", zap.Error(rerr))
	}
	if errors.Is(err, audit.ErrFenced) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// fill runs the functions of a batch, then writes the log.
func (l *Ledger) fill(store StoreTx, b *batch) error {
	now := time.Now()
	next := b.head.Size
	for _, w := range b.works {
		tx := &Tx{Rows: store, log: store, next: next, now: now, begun: b.log.Begins != 0}
		err := store.Nested(func() error { return w.fn(tx) })
		tx.done = true
		if errors.Is(err, ErrTxLost) {
			return err
		}
		if err != nil {
			tx = nil
		} else {
			if tx.begins != 0 {
				b.log.Begins, b.head.Epoch = tx.begins, tx.begins
				b.epochs = append(slices.Clone(b.epochs), audit.Epoch{Number: tx.begins, Start: next})
			}
			next = tx.next
			b.log.Records = append(b.log.Records, tx.entries...)
			b.log.Texts = append(b.log.Texts, tx.texts...)
			b.log.Erase = append(b.log.Erase, tx.erase...)
		}
		b.txs, b.errs = append(b.txs, tx), append(b.errs, err)
	}
	if len(b.log.Records) == 0 {
		return nil
	}
	if err := l.seal(b); err != nil {
		return err
	}
	return store.PutLog(b.log)
}

// seal hashes the new records and signs the checkpoint over them.
func (l *Ledger) seal(b *batch) error {
	for _, e := range b.log.Records {
		b.log.Hashes = b.edge.Append(b.log.Hashes, e.JSON)
	}
	cp := audit.Checkpoint{Origin: l.cfg.Origin, Size: b.edge.Size(), Root: b.edge.Root(), Epochs: b.epochs}
	signed, err := cp.Sign(l.cfg.Signer)
	if err != nil {
		return err
	}
	b.log.Checkpoint = signed
	b.head.Size, b.head.Checkpoint = cp.Size, signed
	return nil
}

// recover opens the database again after an unknown outcome and adopts what is really there.
func (l *Ledger) recover(ctx context.Context, b *batch) error {
	ctx, cancel := context.WithTimeout(ctx, reopenWithin)
	defer cancel()
	before := l.Head()
	if err := l.cfg.Store.Reopen(ctx); err != nil {
		return fmt.Errorf("reopen after an unknown outcome: %w", err)
	}
	if err := l.load(ctx); err != nil {
		return fmt.Errorf("re-read after an unknown outcome: %w", err)
	}
	now := l.Head()
	if !samePlace(now, before) && !samePlace(now, b.head) {
		return fmt.Errorf("re-read after an unknown outcome: %w", audit.ErrFenced)
	}
	if !l.Held() {
		l.release()
	}
	l.cfg.Logger.Warn("a commit failed with its outcome unknown; the ledger was opened again",
		zap.Bool("was_written", now.Size != before.Size), zap.Int64("log_size", now.Size))
	return nil
}

func samePlace(a, b audit.Head) bool { return a.Epoch == b.Epoch && a.Size == b.Size }

// tell answers the callers of a batch and wakes who watches. After a failed commit nobody is answered from within the
// transaction, not even with an error: it may rest on what was undone.
func (l *Ledger) tell(b *batch, err error) {
	size := b.head.Size
	if err == nil {
		l.watch.committed(b.txs)
	}
	for i, w := range b.works {
		switch {
		case err != nil:
			w.finish(Commit{}, err)
		case b.errs[i] != nil:
			w.finish(Commit{}, b.errs[i])
		default:
			first := size
			if len(b.txs[i].entries) > 0 {
				first = b.txs[i].entries[0].Index
			}
			w.finish(Commit{First: first, Size: size, Checkpoint: b.head.Checkpoint}, nil)
		}
	}
	if errors.Is(err, ErrOutcomeUnknown) {
		l.watch.everybody()
	}
}
