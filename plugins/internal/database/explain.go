package database

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/plugins"
)

// explain says what may be told of an error of a driver: the database's own words, or where the connection broke.
func explain(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("%w: %s (SQLSTATE %s)", postgresClass(e.Code), e.Message, e.Code)
	}
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return fmt.Errorf("%w: %s (error %d)", mysqlClass(e.Number), e.Message, e.Number)
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w: %w", plugins.ErrMisconfigured, e)
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%w: %w", plugins.ErrUnavailable, e)
	}
	switch {
	case errors.Is(err, mysql.ErrNoTLS):
		return fmt.Errorf("%w: %w", plugins.ErrMisconfigured, mysql.ErrNoTLS)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fmt.Errorf("%w: no answer in time", plugins.ErrUnavailable)
	}
	return fmt.Errorf("%w: the connection failed", plugins.ErrUnavailable)
}

// postgresClass tells where only an operator can help: the login (class 28), a database that is not there, a missing right.
func postgresClass(code string) error {
	if strings.HasPrefix(code, "28") || code == "3D000" || code == "42501" {
		return plugins.ErrMisconfigured
	}
	return plugins.ErrUnavailable
}

// mysqlClass tells the same: access denied to the server, a database, a table or a column.
func mysqlClass(number uint16) error {
	if slices.Contains([]uint16{1044, 1045, 1049, 1142, 1143, 1227, 1698}, number) {
		return plugins.ErrMisconfigured
	}
	return plugins.ErrUnavailable
}
