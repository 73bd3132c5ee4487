package servertest

import (
	"context"
	"fmt"
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
type Postgres struct{ Database }

// StartPostgres starts a PostgreSQL that ends with the test.
func StartPostgres(tb testing.TB) *Postgres {
	tb.Helper()
	p, err := newPostgres(tb.Context())
	return untilTheEnd(tb, p, err)
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

func newPostgres(ctx context.Context) (*Postgres, error) {
	binaries, err := findPostgres()
	if err != nil {
		return nil, err
	}
	p := new(Postgres)
	credential, err := p.settle(ctx, "postgres", "postgres")
	if err != nil {
		return nil, err
	}
	p.command = command{
		path: filepath.Join(binaries, "postgres"),
		args: append([]string{"-D", filepath.Join(p.home, "data")}, settings(p.Host, p.Port)...),
		env:  []string{"HOME=" + p.home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"},
		dir:  p.home, credential: credential, ready: p.ready, stop: syscall.SIGINT, kill: syscall.SIGQUIT,
	}
	return p, p.begin(ctx, func() error { return p.initialise(ctx, filepath.Join(binaries, "initdb")) })
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
