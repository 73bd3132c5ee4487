// Package users lists the users of a database by their names. It changes nothing there, and keeps no connection.
package users

import (
	"context"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
)

const (
	// listPostgres asks what everybody may read. Who can log in no more and has no session is dead; an open session outlives
	// VALID UNTIL.
	listPostgres = `
SELECT r.rolname, CASE WHEN isfinite(r.rolvaliduntil) THEN r.rolvaliduntil END,
	(NOT r.rolcanlogin OR coalesce(r.rolvaliduntil <= now(), false))
		AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.usesysid = r.oid)
FROM pg_roles r WHERE r.rolname LIKE $1 ORDER BY r.rolname`
	// listMySQL takes SELECT on one column. A user is one for each host.
	listMySQL = "SELECT DISTINCT user FROM mysql.user WHERE user LIKE ? ORDER BY user"
)

// Database says which users to list, and how to log in.
type Database struct {
	database.Login

	Like string // a pattern of LIKE
}

// List returns the users with a name like the pattern. Its error is that of database.Ask.
func (d Database) List(ctx context.Context) ([]plugins.Account, error) {
	q := database.Question{Postgres: listPostgres, MySQL: listMySQL, Args: []any{d.Like}}
	var found []plugins.Account
	for a, err := range database.Ask(ctx, d.Login, q, d.read) {
		if err != nil {
			return nil, err
		}
		found = append(found, a)
	}
	return found, nil
}

func (d Database) read(row database.Row) (plugins.Account, error) {
	var a plugins.Account
	if d.Kind == database.MySQL {
		err := row(&a.Name)
		return a, err
	}
	var until *time.Time
	err := row(&a.Name, &until, &a.Dead)
	if until != nil {
		a.NotAfter = *until
	}
	return a, err
}

// Clock returns the time by the clock that ends users, in Unix seconds, rounded down. The error is as of List.
func (d Database) Clock(ctx context.Context) (seconds int64, err error) {
	q := database.Question{Postgres: "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint", MySQL: "SELECT UNIX_TIMESTAMP()"}
	err = d.one(ctx, q, &seconds)
	return seconds, err
}

// EventsOff reports whether a MySQL runs no events, by which alone its users end. The error is as of List.
func (d Database) EventsOff(ctx context.Context) (bool, error) {
	if d.Kind != database.MySQL {
		return false, nil
	}
	state := ""
	err := d.one(ctx, database.Question{MySQL: "SELECT @@global.event_scheduler"}, &state)
	return err == nil && state != "ON", err
}

// one reads an answer of one value.
func (d Database) one(ctx context.Context, q database.Question, into any) error {
	for _, err := range database.Ask(ctx, d.Login, q, func(row database.Row) (struct{}, error) { return struct{}{}, row(into) }) {
		if err != nil {
			return err
		}
	}
	return nil
}
