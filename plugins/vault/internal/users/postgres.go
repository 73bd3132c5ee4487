package users

import (
	"context"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// listPostgres asks what everybody may read. Who can log in no more and has no session is dead; an open session outlives
// VALID UNTIL.
const listPostgres = `
SELECT r.rolname, CASE WHEN isfinite(r.rolvaliduntil) THEN r.rolvaliduntil END,
	(NOT r.rolcanlogin OR coalesce(r.rolvaliduntil <= now(), false))
		AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.usesysid = r.oid)
FROM pg_roles r WHERE r.rolname LIKE $1 ORDER BY r.rolname`

// postgres sets all of the connection that pgx would else take from the environment.
func (d Database) postgres(ctx context.Context, password secret.Value) ([]plugins.Account, error) {
	where := url.URL{Scheme: "postgres", User: url.User(d.User), Host: d.Addr, Path: "/" + d.Database, RawQuery: "sslmode=disable"}
	cfg, err := pgx.ParseConfig(where.String())
	if err != nil {
		return nil, err
	}
	cfg.TLSConfig, cfg.Fallbacks, cfg.ConnectTimeout = d.TLS, nil, connectTimeout
	cfg.RuntimeParams = map[string]string{"application_name": "stint inventory"}
	cfg.Password = string(password.Expose())
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it was only read
	rows, err := conn.Query(ctx, listPostgres, d.Like)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (plugins.Account, error) {
		var a plugins.Account
		var until *time.Time
		err := row.Scan(&a.Name, &until, &a.Dead)
		if until != nil {
			a.NotAfter = *until
		}
		return a, err
	})
}
