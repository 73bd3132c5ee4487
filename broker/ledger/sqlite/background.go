package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stint-dev/stint/broker/ledger"
)

const (
	// writeBackEvery is how often the WAL is written back to the file.
	writeBackEvery = 500 * time.Millisecond
	// longWAL is the number of pages (4 KiB) from which the writer itself writes the WAL back, so that it starts anew:
	// under steady load the background never catches up with its end.
	longWAL = 8192
)

// Run writes the WAL back in the background until ctx is done. A failure is not fatal: what is committed is in the WAL,
// and the next round tries again.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(writeBackEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.checkpoint(ctx)
		}
	}
}

// checkpoint writes back what no snapshot needs any more, on a reader's connection beside the writer.
func (s *Store) checkpoint(ctx context.Context) {
	c, r, err := s.acquire(ctx)
	if err != nil {
		return // the next round tries again
	}
	defer s.release(c, r)
	var busy, pages, done int64
	err = r.one("PRAGMA wal_checkpoint(PASSIVE)", nil, &busy, &pages, &done) //nolint:contextcheck // statements are short; a context each costs a goroutine each
	s.walLong.CompareAndSwap(false, err == nil && pages > s.longWAL)
}

// writeBack writes the whole WAL back between two transactions of the writer, so that the next one starts it anew. When a
// snapshot still needs a part, that part stays.
func (s *session) writeBack() error {
	var busy, pages, done int64
	return s.one("PRAGMA wal_checkpoint(PASSIVE)", nil, &busy, &pages, &done)
}

// truncate writes the whole WAL back and empties it, or fails while a snapshot still needs it.
func (s *session) truncate() error {
	var busy, pages, done int64
	if err := s.one("PRAGMA wal_checkpoint(TRUNCATE)", nil, &busy, &pages, &done); err != nil {
		return err
	}
	if busy != 0 {
		return fmt.Errorf("%w: a reader holds the WAL", ledger.ErrUnavailable)
	}
	return nil
}

// FreeBytes returns how much an unprivileged process can still write to the ledger's file system.
func (s *Store) FreeBytes() (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(s.path), &st); err != nil {
		return 0, fmt.Errorf("free space of the ledger: %w", err)
	}
	return st.Bavail * uint64(st.Bsize), nil //nolint:gosec // a block size is never negative
}
