// Package database asks a PostgreSQL or a MySQL one question, by a login that may do little else. It changes nothing there, and
// keeps no connection.
package database

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/trust"
	"github.com/stint-dev/stint/plugins/secret"
)

// The kinds of databases.
const (
	Postgres = "postgres"
	MySQL    = "mysql" // MariaDB too
)

// connectTimeout bounds connecting and logging in.
const connectTimeout = 10 * time.Second

// Config says where a database is, and how to log in.
type Config struct {
	Kind string // Postgres or MySQL
	Addr string // host:port
	User string
	// Password loads that user's. It is called for each question.
	Password func(ctx context.Context) (secret.Value, error)
	// Database is the one to connect to; MySQL needs none.
	Database string
	// Plain is without TLS.
	Plain bool
	// CAFile is a PEM bundle that alone is trusted; empty means the system's roots.
	CAFile string
}

// Validate says what is missing.
func (c Config) Validate() []error {
	var faults []error
	if c.Kind != Postgres && c.Kind != MySQL {
		faults = append(faults, fmt.Errorf("its kind is %s or %s", Postgres, MySQL))
	}
	if c.Addr == "" || c.User == "" || c.Password == nil {
		faults = append(faults, errors.New("it needs an address, a user and a password"))
	}
	return faults
}

// Login is a Config that was found valid.
type Login struct {
	Config

	tls *tls.Config // nil: plain
}

// Open reads the CA file, and connects to nothing.
func (c Config) Open() (Login, error) {
	l := Login{Config: c}
	if c.Plain {
		return l, nil
	}
	conf, err := trust.Config(c.CAFile)
	if err != nil {
		return l, err
	}
	conf.ServerName, _, err = net.SplitHostPort(c.Addr)
	if err != nil {
		return l, fmt.Errorf("address: %w", err)
	}
	l.tls = conf
	return l, nil
}

// Question is one in the words of either kind, and what stands for its placeholders.
type Question struct {
	Postgres, MySQL string
	Args            []any
}

// Row reads the columns of a row into what the pointers point to.
type Row func(pointers ...any) error

// Ask yields what read makes of each row. The last that is yielded may be an error: it wraps plugins.ErrUnavailable or
// plugins.ErrMisconfigured, and holds nothing of how it logged in.
func Ask[T any](ctx context.Context, l Login, q Question, read func(Row) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		stopped := false
		err := l.ask(ctx, q, func(row Row) (bool, error) {
			one, err := read(row)
			if err != nil {
				return false, err
			}
			stopped = !yield(one, nil)
			return !stopped, nil
		})
		if err != nil && !stopped {
			var none T
			yield(none, err)
		}
	}
}

// ask calls each for every row, until it says false.
func (l Login) ask(ctx context.Context, q Question, each func(Row) (bool, error)) error {
	password, err := l.Password(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", plugins.ErrMisconfigured, err)
	}
	ask := l.askPostgres
	if l.Kind == MySQL {
		ask = l.askMySQL
	}
	if err := ask(ctx, password, q, each); err != nil {
		return explain(err)
	}
	return nil
}
