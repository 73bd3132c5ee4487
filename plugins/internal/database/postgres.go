package database

import (
	"context"
	"net/url"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins/secret"
)

// askPostgres sets all of the connection that pgx would else take from the environment.
func (l Login) askPostgres(ctx context.Context, password secret.Value, q Question, each func(Row) (bool, error)) error {
	where := url.URL{Scheme: "postgres", User: url.User(l.User), Host: l.Addr, Path: "/" + l.Database, RawQuery: "sslmode=disable"}
	cfg, err := pgx.ParseConfig(where.String())
	if err != nil {
		return err
	}
	cfg.TLSConfig, cfg.Fallbacks, cfg.ConnectTimeout = l.tls, nil, connectTimeout
	cfg.RuntimeParams = map[string]string{"application_name": "stint inventory"}
	cfg.Password = string(password.Expose())
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it was only read
	rows, err := conn.Query(ctx, q.Postgres, q.Args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if more, err := each(rows.Scan); err != nil || !more {
			return err
		}
	}
	return rows.Err()
}
