package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/ledgertest"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

const (
	// faultsEnv makes a test's daemon look into two files for how its ledger fails and by how much its clock was set: this
	// path, with .disk and .clock. Nothing of it is in the released program.
	faultsEnv = "STINTD_TEST_FAULTS"

	// slowDisk is how long a transaction takes on a disk that is slow.
	slowDisk = 400 * time.Millisecond
	// clockWait is how long a clock waits for a transaction in which it can be set.
	clockWait = 10 * time.Second
)

// disk is how a ledger fails.
type disk string

const (
	diskFull     disk = "full"      // no log can be written
	diskBroken   disk = "broken"    // no transaction begins
	diskLosing   disk = "losing"    // of two commits one fails, and nothing of it is written
	diskLying    disk = "lying"     // of two commits one fails, although all of it is written
	diskReadOnly disk = "read-only" // a commit fails, and the file cannot be opened again
	diskSlow     disk = "slow"      // everything takes long
)

var errDisk = errors.New("input/output error, as a test wants it")

// mainWithFaults is main, with a ledger and a clock that fail.
func mainWithFaults(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := newRoot()
	cmd, _, found := root.Find([]string{"serve"})
	err := errors.Join(keepFromDumps(), forgetVault(), found)
	if err == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return serveWithFaults(cmd, path) }
		err = root.ExecuteContext(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stintd:", err)
		return exitCode(err)
	}
	return 0
}

func serveWithFaults(cmd *cobra.Command, path string) error {
	config, err := cmd.Flags().GetString("config")
	if err != nil {
		return err
	}
	c := &setClock{file: path + ".clock"}
	return serve(cmd.Context(), config, func(b *blueprint) {
		b.wall = c.wall
		b.wrap = func(s *sqlite.Store) ledger.Store { return &failing{Store: s, file: path + ".disk", clock: c} }
	})
}

// failing is the real store, whose transactions fail as a file says.
type failing struct {
	*sqlite.Store

	file  string
	clock *setClock

	commits atomic.Uint64 // that were asked for; every second is one that a fault hits
}

func (f *failing) now() disk {
	text, err := os.ReadFile(f.file)
	if err != nil {
		return ""
	}
	return disk(text)
}

func (f *failing) Begin(ctx context.Context) (ledger.StoreTx, error) {
	now := f.now()
	if now == diskBroken {
		return nil, errDisk
	}
	tx, err := f.Store.Begin(ctx)
	if err != nil {
		return nil, err
	}
	if now == diskSlow {
		<-time.After(slowDisk)
	}
	failed := &failingTx{StoreTx: tx, now: now, clock: f.clock, commits: &f.commits}
	if err = failed.setClock(); err != nil {
		return nil, errors.Join(err, failed.Rollback())
	}
	return failed, nil
}

func (f *failing) Reopen(ctx context.Context) error {
	if f.now() == diskReadOnly {
		return errDisk
	}
	return f.Store.Reopen(ctx)
}

// failingTx is a transaction that fails in its way.
type failingTx struct {
	ledger.StoreTx

	now     disk
	clock   *setClock
	commits *atomic.Uint64
	by      time.Duration // by how much the clock is set with it
}

func (t *failingTx) PutLog(a ledger.LogAppend) error {
	if t.now == diskFull {
		return errDisk
	}
	return t.StoreTx.PutLog(a)
}

func (t *failingTx) Commit() error {
	unlucky := t.commits.Add(1)%2 == 0
	if t.now == diskReadOnly || t.now == diskLosing && unlucky {
		return errors.Join(errDisk, t.Rollback())
	}
	if err := t.StoreTx.Commit(); err != nil {
		t.clock.undone(t.by)
		return err
	}
	t.clock.ahead.Add(int64(t.by))
	if t.now == diskLying && unlucky {
		return errDisk
	}
	return nil
}

func (t *failingTx) Rollback() error {
	t.clock.undone(t.by)
	return t.StoreTx.Rollback()
}

// setClock sets the clock with this transaction, if it is to be set.
func (t *failingTx) setClock() error {
	t.by = time.Duration(t.clock.wanted.Swap(0))
	if t.by == 0 {
		return nil
	}
	return ledgertest.SetClock(&ledger.Tx{Rows: t.StoreTx}, t.by)
}

// setClock is a wall clock that is set to what a file says, as far as the teardown loop can tell: the clock and what stands
// against it in the ledger move at once, while the loop looks at its clocks and does nothing else.
type setClock struct {
	file   string
	looked atomic.Bool  // it was read once
	ahead  atomic.Int64 // a time.Duration, as those below
	wanted atomic.Int64 // by how much the next transaction is to set it
}

// wall returns what the wall clock says at a reading. It is not set before the loop has read it once: what the loop begins with
// cannot be noticed.
func (c *setClock) wall(read time.Time) time.Time {
	if !c.looked.Swap(true) {
		return read
	}
	text, err := os.ReadFile(c.file)
	if err == nil {
		if want, err := time.ParseDuration(strings.TrimSpace(string(text))); err == nil {
			c.set(want)
		}
	}
	return read.Add(time.Duration(c.ahead.Load()))
}

// set sets the clock with the next transaction that commits. It gives up where none comes.
func (c *setClock) set(want time.Duration) {
	by := int64(want) - c.ahead.Load()
	if by == 0 {
		return
	}
	c.wanted.Store(by)
	for began := time.Now(); c.ahead.Load() != int64(want); <-time.After(5 * time.Millisecond) {
		if time.Since(began) > clockWait && c.wanted.CompareAndSwap(by, 0) {
			return
		}
	}
}

// undone lets the next transaction do what one that did not commit was to do.
func (c *setClock) undone(by time.Duration) {
	if by != 0 {
		c.wanted.CompareAndSwap(0, int64(by))
	}
}
