package database

import (
	"context"
	"database/sql"
	"errors"

	"github.com/go-sql-driver/mysql"

	"github.com/stint-dev/stint/plugins/secret"
)

func (l Login) askMySQL(ctx context.Context, password secret.Value, q Question, each func(Row) (bool, error)) (err error) {
	db, err := l.openMySQL(password)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, q.MySQL, q.Args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if more, err := each(rows.Scan); err != nil || !more {
			return err
		}
	}
	return rows.Err()
}

func (l Login) openMySQL(password secret.Value) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.DBName, cfg.TLS, cfg.Timeout = "tcp", l.Addr, l.User, l.Database, l.tls, connectTimeout
	cfg.Passwd = string(password.Expose())
	cfg.Logger = &mysql.NopLogger{} // what is wrong is returned as well
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}
