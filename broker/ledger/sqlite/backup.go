package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/stint-dev/stint/broker/audit"
)

// Backup writes a consistent copy of the ledger to a new file of mode 0600, while it serves. It refuses to overwrite. The
// copy says itself that it is one, so that a start on it is held until an operator confirms; it has its name only once it
// is whole and says so.
func (s *Store) Backup(ctx context.Context, path string) error {
	taken, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("back up ledger: %w", err)
	}
	part := path + ".part"
	err = errors.Join(taken.Close(), s.copyTo(ctx, part))
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("back up ledger to %s: %w", path, err), remove(part), remove(path))
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// copyTo writes a copy that says that it is one.
func (s *Store) copyTo(ctx context.Context, path string) (err error) {
	c, err := s.current()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	copied := time.Now()
	if _, err := c.db.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return err
	}
	if err := markCopy(ctx, path, copied); err != nil {
		return fmt.Errorf("mark the copy: %w", err)
	}
	return f.Sync()
}

// markCopy notes in a copy that it is one. That of a held ledger says so already.
func markCopy(ctx context.Context, path string, at time.Time) error {
	q := url.Values{"_pragma": {"journal_mode(DELETE)", "synchronous(FULL)"}, "mode": {"rw"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String())
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "INSERT INTO restored (one, found, at) VALUES (1, ?, ?) ON CONFLICT DO NOTHING",
		string(audit.FoundCopy), at.UnixNano())
	return errors.Join(err, db.Close())
}
