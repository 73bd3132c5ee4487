package servertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Postgres is a running PostgreSQL whose users log in with a password (SCRAM) over TCP without TLS. It syncs nothing to
// disk: it survives its own end, not the machine's.
type Postgres struct {
	Process

	// Host and Port are where it listens; Addr is both, such as 127.0.0.1:23456.
	Host string
	Port int
	Addr string
	// SuperUser and SuperPassword log in a superuser.
	SuperUser, SuperPassword string

	home string // removed at the end
}

// StartPostgres starts a PostgreSQL that ends with the test.
func StartPostgres(tb testing.TB) *Postgres {
	tb.Helper()
	postgres, err := newPostgres(tb.Context())
	give(tb, err)
	tb.Cleanup(func() { give(tb, postgres.remove()) })
	return postgres
}

// DSN returns the connection URL of a user for a database.
func (p *Postgres) DSN(name, password, database string) string {
	dsn := url.URL{
		Scheme: "postgres", User: url.UserPassword(name, password), Host: p.Addr, Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	return dsn.String()
}

// SuperDSN returns the connection URL of the superuser for a database; every server has "postgres".
func (p *Postgres) SuperDSN(database string) string {
	return p.DSN(p.SuperUser, p.SuperPassword, database)
}

// Restart stops the server if it runs and starts it at the same address with the same data.
func (p *Postgres) Restart(tb testing.TB) {
	tb.Helper()
	p.Stop(tb)
	give(tb, p.start(tb.Context()))
}

func newPostgres(ctx context.Context) (*Postgres, error) {
	binaries, err := findPostgres()
	if err != nil {
		return nil, err
	}
	credential, err := unprivileged("postgres")
	if err != nil {
		return nil, err
	}
	host, port, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	// Not the test's own directory: only the test's user may enter that.
	home, err := os.MkdirTemp("", "stint-postgres-")
	if err != nil {
		return nil, fmt.Errorf("make directory of postgres: %w", err)
	}
	p := &Postgres{
		Host: host, Port: port, Addr: net.JoinHostPort(host, strconv.Itoa(port)),
		SuperUser: "stint_super", SuperPassword: rand.Text(), home: home,
	}
	p.command = command{
		path: filepath.Join(binaries, "postgres"),
		args: append([]string{"-D", filepath.Join(home, "data")}, settings(host, port)...),
		env:  []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"},
		dir:  home, credential: credential, ready: p.ready, stop: syscall.SIGINT, kill: syscall.SIGQUIT,
	}
	if err := p.initialise(ctx, filepath.Join(binaries, "initdb")); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	return p, nil
}

// settings returns postgres' arguments: TCP only, and nothing is synced.
func settings(host string, port int) []string {
	var args []string
	for _, setting := range []string{
		"listen_addresses=" + host, "port=" + strconv.Itoa(port), "unix_socket_directories=",
		"fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200",
	} {
		args = append(args, "-c", setting)
	}
	return args
}

// initialise makes the data directory, as the user that will run the server.
func (p *Postgres) initialise(ctx context.Context, initdb string) error {
	password := filepath.Join(p.home, "password")
	if err := os.WriteFile(password, []byte(p.SuperPassword), 0o600); err != nil {
		return fmt.Errorf("write password of postgres: %w", err)
	}
	if err := handOver(p.command.credential, p.home, password); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, initdb, "-D", filepath.Join(p.home, "data"), "--no-sync", "--no-locale", //nolint:gosec // the test names the binary
		"--encoding=UTF8", "--auth=scram-sha-256", "--username="+p.SuperUser, "--pwfile="+password)
	cmd.Dir, cmd.Env = p.home, p.command.env
	cmd.SysProcAttr = attributes(p.command.credential, syscall.SIGKILL)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run initdb: %w: %s", err, output)
	}
	return os.Remove(password)
}

func (p *Postgres) ready(ctx context.Context) error {
	connection, err := pgx.Connect(ctx, p.SuperDSN("postgres"))
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	return connection.Close(ctx)
}

// remove ends the server and deletes its files.
func (p *Postgres) remove() error {
	return errors.Join(p.end(p.command.stop), os.RemoveAll(p.home))
}
