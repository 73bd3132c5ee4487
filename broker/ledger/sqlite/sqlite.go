// Package sqlite is the embedded store of the ledger: one SQLite file in WAL mode, durable at every commit.
//
// One connection writes; a few read snapshots beside it. The WAL is written back to the file by a background checkpoint,
// so that no commit waits for it. A lock on the data directory keeps a second process out.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/stint-dev/stint/broker/ledger"
)

const (
	// File is the name of the ledger in its data directory.
	File = "ledger.db"
	// readers is how many snapshots can be read at once.
	readers = 4
)

// Store is a ledger in one SQLite file.
type Store struct {
	path string
	lock *os.File // nil for a store that only reads
	// longWAL is how many pages the WAL may have before the writer itself writes it back.
	longWAL int64
	// walLong is set when the WAL has grown so much that the writer itself has to write it back.
	walLong atomic.Bool

	mu    sync.Mutex // guards conns; never held over I/O but that of Reopen and Close
	conns *conns
}

// conns are the connections to one opening of the file.
type conns struct {
	db     *sql.DB
	writer *session      // nil for a store that only reads
	pool   chan *session // readers that are free
	gone   chan struct{} // closed with them: nothing comes back to the pool any more
}

// Open locks a data directory (made with mode 0700 if it is not there), migrates its ledger forward and opens it.
// It starts nothing: Run does the work in the background.
func Open(ctx context.Context, dir string) (*Store, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{path: filepath.Join(dir, File), lock: lock, longWAL: longWAL}
	if err := s.create(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger %s: %w", s.path, err), lock.Close())
	}
	return s, nil
}

// OpenReader opens a ledger file to read it and to back it up, beside a process that writes it. A file of another schema
// version is refused.
func OpenReader(ctx context.Context, file string) (*Store, error) {
	s := &Store{path: file}
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	c, err := s.connect(ctx)
	if err == nil {
		s.conns = c
		err = checkVersion(ctx, c.db)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger %s: %w", file, err), s.Close())
	}
	return s, nil
}

// create makes the file if needed, migrates it, and connects.
func (s *Store) create(ctx context.Context) error {
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = migrate(ctx, s.dsn()); err != nil {
		return err
	}
	s.conns, err = s.connect(ctx)
	return err
}

// dsn returns the data source name with what every connection is set to.
func (s *Store) dsn() string {
	pragmas := []string{
		"journal_mode(WAL)", "synchronous(FULL)", "wal_autocheckpoint(0)", "busy_timeout(5000)", "foreign_keys(1)",
		"journal_size_limit(67108864)", "cache_size(-8000)", "temp_store(MEMORY)",
		"secure_delete(1)", // an erased text is overwritten, not only unlinked
	}
	q := url.Values{"_pragma": pragmas}
	if s.lock == nil {
		q = url.Values{"_pragma": {"busy_timeout(5000)"}, "mode": {"ro"}}
	}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: s.path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// connect opens the writer and the readers.
func (s *Store) connect(ctx context.Context) (*conns, error) {
	db, err := sql.Open("sqlite", s.dsn())
	if err != nil {
		return nil, err
	}
	c := &conns{db: db, pool: make(chan *session, readers), gone: make(chan struct{})}
	if s.lock != nil {
		c.writer, err = newSession(ctx, db)
	}
	for i := 0; i < readers && err == nil; i++ {
		var r *session
		if r, err = newSession(ctx, db); err == nil {
			c.pool <- r
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// close closes all that is free; readers in use are closed when they come back.
func (c *conns) close() error {
	close(c.gone)
	var errs []error
	if c.writer != nil {
		errs = append(errs, c.writer.close())
	}
	for {
		select {
		case r := <-c.pool:
			errs = append(errs, r.close())
			continue
		default:
		}
		break
	}
	return errors.Join(append(errs, c.db.Close())...)
}

// current returns the connections in use now.
func (s *Store) current() (*conns, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return nil, fmt.Errorf("%w: store is closed", ledger.ErrUnavailable)
	}
	return s.conns, nil
}

// View runs fn on a snapshot.
func (s *Store) View(ctx context.Context, fn func(ledger.Reader) error) error {
	c, r, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.release(c, r)
	return r.snapshot(fn) //nolint:contextcheck // statements are short; a context each costs a goroutine each
}

// acquire waits for a reader that is free, of the connections that are in use by then.
func (s *Store) acquire(ctx context.Context) (*conns, *session, error) {
	for {
		c, err := s.current()
		if err != nil {
			return nil, nil, err
		}
		select {
		case r := <-c.pool:
			return c, r, nil
		case <-c.gone: // others took their place
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// release gives a reader back, or closes it if its connections were replaced meanwhile.
func (s *Store) release(c *conns, r *session) {
	s.mu.Lock()
	stale := s.conns != c
	if !stale {
		c.pool <- r // has room: it came from there
	}
	s.mu.Unlock()
	if stale {
		_ = r.close() // nothing was written on it, and nobody is left to tell
	}
}

// Reopen discards every connection and opens the file again. The lock is kept. What it finds is made durable before it
// returns: after a failed sync the kernel may show what the disk never got, so the WAL is written to the file anew.
func (s *Store) Reopen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != nil {
		_ = s.conns.close() // they are discarded because they failed
		s.conns = nil
	}
	if s.lock == nil {
		return fmt.Errorf("%w: store is closed, or open for reading only", ledger.ErrUnavailable)
	}
	c, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("reopen ledger %s: %w", s.path, err)
	}
	if err := c.writer.truncate(); err != nil { //nolint:contextcheck // statements are short; a context each costs a goroutine each
		return errors.Join(fmt.Errorf("reopen ledger %s: %w", s.path, err), c.close())
	}
	s.conns = c
	return nil
}

// Close closes the file, then gives up the lock.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.conns != nil {
		errs = append(errs, s.conns.close())
		s.conns = nil
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}
