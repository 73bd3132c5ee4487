package servertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
)

// Database is what servers of databases have in common. They refuse to run as root, or should not.
type Database struct {
	Process

	// Host and Port are where it listens; Addr is both, such as 127.0.0.1:23456.
	Host string
	Port int
	Addr string
	// SuperUser and SuperPassword log in who may do everything.
	SuperUser, SuperPassword string

	home string // removed at the end
}

// settle chooses an address and makes a directory, for a server that runs as a user of the system, which it returns.
func (d *Database) settle(ctx context.Context, account, kind string) (*syscall.Credential, error) {
	credential, err := unprivileged(account)
	if err != nil {
		return nil, err
	}
	if d.Host, d.Port, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	// Not the test's own directory: only the test's user may enter that.
	if d.home, err = os.MkdirTemp("", "stint-"+kind+"-"); err != nil {
		return nil, fmt.Errorf("make directory of %s: %w", kind, err)
	}
	d.Addr, d.SuperUser, d.SuperPassword = net.JoinHostPort(d.Host, strconv.Itoa(d.Port)), "stint_super", rand.Text()
	return credential, nil
}

// begin makes the server's data and starts it. What fails leaves nothing.
func (d *Database) begin(ctx context.Context, initialise func() error) error {
	err := initialise()
	if err == nil {
		err = d.start(ctx)
	}
	if err != nil {
		return errors.Join(err, d.remove())
	}
	return nil
}

// Restart stops the server if it runs and starts it at the same address with the same data.
func (d *Database) Restart(tb testing.TB) {
	tb.Helper()
	d.Stop(tb)
	give(tb, d.start(tb.Context()))
}

// remove ends the server and deletes its files.
func (d *Database) remove() error { return errors.Join(d.end(d.command.stop), os.RemoveAll(d.home)) }

// untilTheEnd gives a test its server, which is removed with the test.
func untilTheEnd[S interface{ remove() error }](tb testing.TB, server S, err error) S {
	tb.Helper()
	give(tb, err)
	tb.Cleanup(func() { give(tb, server.remove()) })
	return server
}
