package servertest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// MariaDB is a running MariaDB whose users log in with a password over TCP without TLS, and whose events run. It survives its
// own end, not the machine's.
type MariaDB struct{ Database }

// StartMariaDB starts a MariaDB that ends with the test.
func StartMariaDB(tb testing.TB) *MariaDB {
	tb.Helper()
	m, err := newMariaDB(tb.Context())
	return untilTheEnd(tb, m, err)
}

// Open returns a pool of a user's connections that ends with the test. The database may be empty. It connects when it is used.
func (m *MariaDB) Open(tb testing.TB, name, password, database string) *sql.DB {
	tb.Helper()
	db, err := m.open(name, password, database)
	give(tb, err)
	tb.Cleanup(func() { _ = db.Close() }) // its connections may have been cut, by design
	return db
}

// Super returns a pool of the administrator's connections, as Open does.
func (m *MariaDB) Super(tb testing.TB) *sql.DB {
	tb.Helper()
	return m.Open(tb, m.SuperUser, m.SuperPassword, "")
}

func (m *MariaDB) open(name, password, database string) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd, cfg.DBName = "tcp", m.Addr, name, password, database
	cfg.Logger = &mysql.NopLogger{} // what is wrong is returned as well
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("open mariadb: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// Client returns a command that runs the statements of a file on its standard input as the administrator, with the client
// that comes with MariaDB.
func (m *MariaDB) Client(tb testing.TB) *exec.Cmd {
	tb.Helper()
	options := filepath.Join(tb.TempDir(), "client.cnf") // a password has no place among arguments
	text := fmt.Sprintf("[client]\nprotocol=tcp\nhost=%s\nport=%d\nuser=%s\npassword=%s\n", m.Host, m.Port, m.SuperUser, m.SuperPassword)
	if err := os.WriteFile(options, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return exec.CommandContext(tb.Context(), Program(tb, "mariadb"), "--defaults-file="+options) //nolint:gosec // the test names the binary
}

func newMariaDB(ctx context.Context) (*MariaDB, error) {
	server, install, err := findMariaDB()
	if err != nil {
		return nil, err
	}
	m := new(MariaDB)
	credential, err := m.settle(ctx, "nobody", "mariadb")
	if err != nil {
		return nil, err
	}
	m.command = command{
		path: server, args: m.settings(),
		env: []string{"HOME=" + m.home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TMPDIR=" + m.home},
		dir: m.home, credential: credential, ready: m.ready, stop: syscall.SIGTERM, kill: syscall.SIGKILL,
	}
	return m, m.begin(ctx, func() error { return m.initialise(ctx, install) })
}

// settings returns mariadbd's arguments: small, and nothing is synced. Without names of hosts, users@localhost are only those
// of the socket.
func (m *MariaDB) settings() []string {
	return []string{
		"--no-defaults", "--datadir=" + m.data(), "--init-file=" + m.first(), "--pid-file=" + filepath.Join(m.home, "pid"),
		"--socket=" + filepath.Join(m.home, "socket"), "--bind-address=" + m.Host, "--port=" + strconv.Itoa(m.Port),
		"--skip-name-resolve", "--skip-log-bin", "--event-scheduler=ON", "--innodb-flush-log-at-trx-commit=0",
		"--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M", "--innodb-use-native-aio=0",
	}
}

func (m *MariaDB) data() string { return filepath.Join(m.home, "data") }

// first is what the server does at each start: there is an administrator who may come over TCP.
func (m *MariaDB) first() string { return filepath.Join(m.home, "first.sql") }

// initialise makes the data directory, as the user that will run the server.
func (m *MariaDB) initialise(ctx context.Context, install string) error {
	sql := fmt.Sprintf("CREATE USER IF NOT EXISTS '%s'@'%%' IDENTIFIED BY '%s';\nGRANT ALL ON *.* TO '%s'@'%%' WITH GRANT OPTION;\n",
		m.SuperUser, m.SuperPassword, m.SuperUser)
	if err := os.WriteFile(m.first(), []byte(sql), 0o600); err != nil {
		return fmt.Errorf("write first statements of mariadb: %w", err)
	}
	if err := handOver(m.command.credential, m.home, m.first()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, install, "--no-defaults", "--datadir="+m.data(), "--skip-test-db", "--skip-name-resolve") //nolint:gosec // the test names the binary
	cmd.Dir, cmd.Env = m.home, m.command.env
	cmd.SysProcAttr = attributes(m.command.credential, syscall.SIGKILL)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run mariadb-install-db: %w: %s", err, output)
	}
	return nil
}

func (m *MariaDB) ready(ctx context.Context) (err error) {
	db, err := m.open(m.SuperUser, m.SuperPassword, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil {
		return fmt.Errorf("connect to mariadb: %w", err)
	}
	return nil
}
