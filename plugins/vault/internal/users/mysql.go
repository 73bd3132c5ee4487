package users

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/go-sql-driver/mysql"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// listMySQL takes SELECT on one column. A user is one for each host.
const listMySQL = "SELECT DISTINCT user FROM mysql.user WHERE user LIKE ? ORDER BY user"

func (d Database) mysql(ctx context.Context, password secret.Value) (found []plugins.Account, err error) {
	db, err := d.openMySQL(password)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, listMySQL, d.Like)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var a plugins.Account
		if err := rows.Scan(&a.Name); err != nil {
			return nil, err
		}
		found = append(found, a)
	}
	return found, rows.Err()
}

// EventsOff reports whether a MySQL runs no events, by which alone its users end. The error is as of List.
func (d Database) EventsOff(ctx context.Context) (off bool, err error) {
	if d.Kind != MySQL {
		return false, nil
	}
	password, err := d.Password(ctx)
	if err != nil {
		return false, fmt.Errorf("%w: %w", plugins.ErrMisconfigured, err)
	}
	db, err := d.openMySQL(password)
	if err != nil {
		return false, explain(err)
	}
	defer func() { _ = db.Close() }() // it was only read
	var state string
	if err := db.QueryRowContext(ctx, "SELECT @@global.event_scheduler").Scan(&state); err != nil {
		return false, explain(err)
	}
	return state != "ON", nil
}

func (d Database) openMySQL(password secret.Value) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.DBName, cfg.TLS, cfg.Timeout = "tcp", d.Addr, d.User, d.Database, d.TLS, connectTimeout
	cfg.Passwd = string(password.Expose())
	cfg.Logger = &mysql.NopLogger{} // what is wrong is returned as well
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}
