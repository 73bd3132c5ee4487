package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// maxProblems is how many problems of a file are told.
const maxProblems = 10

// inspections returns queries whose every row is a problem. SQLite knows of no checksum: it sees what does not fit together, in
// the pages, in indexes and in rows that say the same thing twice. A value that was changed into another is not seen.
func inspections() []string {
	return []string{
		fmt.Sprintf("PRAGMA integrity_check(%d)", maxProblems), // one row "ok" where there are none
		"SELECT 'task ' || hex(id) || ': its body cannot be read, or is of another state' FROM tasks WHERE " + unlike,
		"SELECT 'lease ' || hex(id) || ': its body cannot be read, or is of another state' FROM leases WHERE " + unlike,
	}
}

// unlike is where a row and its body are not of one mind.
const unlike = `CASE WHEN json_valid(CAST(body AS TEXT)) THEN json_extract(CAST(body AS TEXT), '$.state') IS NOT state ELSE 1 END`

// Verify reads the whole file and says what in it is damaged. It takes seconds where the file is large.
func (s *Store) Verify(ctx context.Context) error {
	c, err := s.current()
	if err != nil {
		return err
	}
	var problems []string
	for _, query := range inspections() {
		found, err := texts(ctx, c.db, query)
		if problems = append(problems, found...); err != nil {
			return damaged(fmt.Errorf("%s: %w", strings.Join(problems, "; "), err))
		}
	}
	if len(problems) > 0 {
		return damaged(errors.New(strings.Join(problems[:min(len(problems), maxProblems)], "; ")))
	}
	return nil
}

func texts(ctx context.Context, db *sql.DB, query string) (all []string, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Err(), rows.Close()) }()
	for rows.Next() && len(all) < maxProblems {
		var text string
		if err = rows.Scan(&text); err != nil {
			return all, err
		}
		if text != "ok" {
			all = append(all, text)
		}
	}
	return all, nil
}
