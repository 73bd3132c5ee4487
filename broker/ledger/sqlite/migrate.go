package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrVersion means that the file was written by another version of the program than this one can read.
var ErrVersion = errors.New("ledger has another schema version")

func provider(db *sql.DB) (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectSQLite3, db, dir)
}

// migrate brings the file's schema forward. A newer one is refused.
func migrate(ctx context.Context, dsn string) (err error) {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	p, err := provider(db)
	if err != nil {
		return err
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if have > want {
		return wrongVersion(have, want)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate from schema version %d to %d: %w", have, want, err)
	}
	return nil
}

// checkVersion refuses a file that would have to be migrated.
func checkVersion(ctx context.Context, db *sql.DB) error {
	p, err := provider(db)
	if err != nil {
		return err
	}
	var have int64
	query := "SELECT coalesce(max(version_id), 0) FROM " + goose.DefaultTablename
	if err := db.QueryRowContext(ctx, query).Scan(&have); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	sources := p.ListSources()
	if want := sources[len(sources)-1].Version; have != want {
		return wrongVersion(have, want)
	}
	return nil
}

func wrongVersion(have, want int64) error {
	return fmt.Errorf("%w: the file has %d, this program knows %d; use the program that wrote it, or a newer one",
		ErrVersion, have, want)
}
