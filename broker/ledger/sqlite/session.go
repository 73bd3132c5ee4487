package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/stint-dev/stint/broker/ledger"
)

// session is one connection with its prepared statements. One goroutine uses it at a time. Statements run without a
// deadline: they are short, and a context per statement costs a goroutine each.
type session struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	// lost is the first error after which SQLite may have ended the transaction by itself. Nothing runs after it:
	// it would run, and commit, on its own.
	lost error
}

func newSession(ctx context.Context, db *sql.DB) (*session, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &session{conn: conn, stmts: map[string]*sql.Stmt{}}, nil
}

func (s *session) close() error {
	errs := make([]error, 0, len(s.stmts)+1)
	for _, stmt := range s.stmts {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(append(errs, s.conn.Close())...)
}

// prepare returns the statement for a query. Queries are constants, or put together from few constants.
func (s *session) prepare(query string) (*sql.Stmt, error) {
	if s.lost != nil {
		return nil, fmt.Errorf("%w: %w", ledger.ErrTxLost, s.lost)
	}
	if stmt, ok := s.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, s.fault(err)
	}
	s.stmts[query] = stmt
	return stmt, nil
}

// exec runs a statement and returns how many rows it changed.
func (s *session) exec(query string, args ...any) (int64, error) {
	stmt, err := s.prepare(query) //nolint:sqlclosecheck // it is kept for the life of the session
	if err != nil {
		return 0, err
	}
	res, err := stmt.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, s.fault(err)
	}
	return res.RowsAffected()
}

// one reads a single row, or answers ledger.ErrNotFound.
func (s *session) one(query string, args []any, dest ...any) error {
	stmt, err := s.prepare(query) //nolint:sqlclosecheck // it is kept for the life of the session
	if err != nil {
		return err
	}
	err = stmt.QueryRowContext(context.Background(), args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return ledger.ErrNotFound
	}
	return s.fault(err)
}

// each calls fn for every row. The statement is over when it returns.
func (s *session) each(query string, args []any, fn func(scan func(...any) error) error) (err error) {
	stmt, err := s.prepare(query) //nolint:sqlclosecheck // it is kept for the life of the session
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(context.Background(), args...)
	if err != nil {
		return s.fault(err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err = fn(rows.Scan); err != nil {
			return err
		}
	}
	return s.fault(rows.Err())
}

// fault turns an error of SQLite into one of the ledger. A unique key that is taken spoils nothing; any other error
// ends the transaction.
func (s *session) fault(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() {
		case lib.SQLITE_CONSTRAINT_UNIQUE, lib.SQLITE_CONSTRAINT_PRIMARYKEY:
			return fmt.Errorf("%w: %w", ledger.ErrExists, err)
		case lib.SQLITE_CONSTRAINT_FOREIGNKEY:
			return fmt.Errorf("%w: %w", ledger.ErrNotFound, err)
		}
		if class := e.Code() & 0xff; class == lib.SQLITE_CORRUPT || class == lib.SQLITE_NOTADB {
			err = damaged(err)
		}
	}
	s.lost = err
	return fmt.Errorf("%w: %w", ledger.ErrUnavailable, err)
}

func damaged(err error) error { return fmt.Errorf("%w: %w", ledger.ErrDamaged, err) }

// snapshot runs fn in a read transaction.
func (s *session) snapshot(fn func(ledger.Reader) error) error {
	s.lost = nil
	if _, err := s.exec("BEGIN"); err != nil {
		return err
	}
	err := fn(&rows{s})
	s.lost = nil
	if _, rerr := s.exec("ROLLBACK"); rerr != nil && err == nil {
		return rerr
	}
	return err
}
