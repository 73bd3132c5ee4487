package vault

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/users"
)

// The kinds of databases.
const (
	Postgres = database.Postgres
	MySQL    = database.MySQL // MariaDB too
)

// Database is a database behind Vault of which Stint may list the users.
type Database struct {
	Name string // "orders"
	Kind string // Postgres or MySQL
	Addr string // host:port
	User string // who lists
	// Password loads that user's. It is called for each listing.
	Password func(ctx context.Context) (secret.Value, error)
	// Database is the one to connect to. Users are of the whole server.
	Database string
	// Plain is without TLS.
	Plain bool
	// CAFile is a PEM bundle that alone is trusted; empty means the system's roots.
	CAFile string
	// Users is a pattern of LIKE: what Vault's username_template makes, and nobody else.
	Users string
	// Roles are Stint's roles whose users are in this database.
	Roles []string
}

func (d Database) validate() []error {
	var faults []error
	need := func(ok bool, text string) {
		if !ok {
			faults = append(faults, fmt.Errorf("database %q: %s", d.Name, text))
		}
	}
	need(isName(d.Name), "its name is one path segment")
	for _, fault := range d.login().Validate() {
		need(false, fault.Error())
	}
	need(d.Users != "", "it needs a pattern of users")
	return faults
}

// login is how to connect.
func (d Database) login() database.Config {
	return database.Config{
		Kind: d.Kind, Addr: d.Addr, User: d.User, Password: d.Password, Database: d.Database, Plain: d.Plain, CAFile: d.CAFile,
	}
}

// lister makes what lists the users. Its error is the CA file's.
func (d Database) lister() (users.Database, error) {
	login, err := d.login().Open()
	if err != nil {
		return users.Database{}, fmt.Errorf("database %s: %w", d.Name, err)
	}
	return users.Database{Login: login, Like: d.Users}, nil
}

// listers makes the databases' listers by name, and says everything that is wrong.
func (c Config) listers() (map[string]users.Database, error) {
	out := map[string]users.Database{}
	var faults []error
	for _, d := range c.Databases {
		if _, twice := out[d.Name]; twice {
			faults = append(faults, fmt.Errorf("database %q stands here twice", d.Name))
		}
		one, err := d.lister()
		faults = append(faults, err)
		out[d.Name] = one
	}
	return out, errors.Join(faults...)
}

// Systems returns the databases of the configuration.
func (b *Backend) Systems() []plugins.System {
	var out []plugins.System
	for _, d := range b.cfg.Databases {
		out = append(out, plugins.System{Name: d.Name, Roles: d.Roles})
	}
	return out
}

// Accounts yields the users of a database that Vault may have made, by their names.
func (b *Backend) Accounts(ctx context.Context, system string) iter.Seq2[plugins.Account, error] {
	return func(yield func(plugins.Account, error) bool) {
		found, err := b.accounts(ctx, system)
		if err != nil {
			yield(plugins.Account{}, fmt.Errorf("%s: list the users of database %s: %w", b.cfg.Instance, system, err))
			return
		}
		for _, a := range found {
			if !yield(a, nil) {
				return
			}
		}
	}
}

func (b *Backend) accounts(ctx context.Context, system string) ([]plugins.Account, error) {
	d, ok := b.databases[system]
	if !ok {
		return nil, fmt.Errorf("%w: it is not configured", plugins.ErrMisconfigured)
	}
	return d.List(ctx)
}
