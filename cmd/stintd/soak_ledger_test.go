package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dies is for how long a broker may take to end by itself.
const dies = 90 * time.Second

func (s *soak) ledgerFaults() []mishap {
	return []mishap{
		{name: "ledger locked", do: s.lockLedger},
		{name: "ledger: disk full", do: s.spoilDisk(diskFull)},
		{name: "ledger: I/O errors", do: s.spoilDisk(diskBroken)},
		{name: "ledger: commits fail", do: s.spoilDisk(diskLosing)},
		{name: "ledger: commits fail that have succeeded", do: s.spoilDisk(diskLying)},
		{name: "ledger: slow", do: s.spoilDisk(diskSlow)},
		{name: "ledger: no file may grow", do: s.limitLedger},
		{name: "ledger: read-only", do: s.turnReadOnly},
		{name: "ledger: low-water mark", do: s.runLow},
		{name: "ledger: restored from a backup", do: s.restoreLedger},
		{name: "ledger: damaged, and restored", do: s.damageLedger},
	}
}

// lockLedger keeps stintd from writing, as a slow disk or somebody else's lock does.
func (s *soak) lockLedger(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	unlock, err := s.lock(tb)
	if err != nil {
		return // stintd was writing all the time
	}
	<-time.After(lasting)
	unlock()
}

// spoilDisk lets the store of the ledger fail.
func (s *soak) spoilDisk(how disk) func(testing.TB, time.Duration) {
	return func(tb testing.TB, lasting time.Duration) {
		tb.Helper()
		write(tb, s.hook("disk"), string(how))
		<-time.After(lasting)
		if how == diskLosing || how == diskLying {
			s.doubts(tb)
		}
		write(tb, s.hook("disk"), "")
		s.goesOn(tb)
	}
}

// doubts waits until stintd has met a commit whose outcome it could not know.
func (s *soak) doubts(tb testing.TB) {
	tb.Helper()
	eventually(tb, dies, func() error {
		if s.daemon.ended() || strings.Contains(s.daemon.log(tb), "outcome unknown") {
			return nil
		}
		return fmt.Errorf("%w: every commit succeeds", errNotYet)
	})
}

// limitLedger lets the kernel refuse what would make a file longer, the ledger's as the log's, in the middle of a
// transaction too. Where that is not to be had, no transaction begins.
func (s *soak) limitLedger(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	pid := s.daemon.cmd.Process.Pid
	err := limitFiles(pid, 16<<10)
	if errors.Is(err, errors.ErrUnsupported) {
		s.spoilDisk(diskBroken)(tb, lasting)
		return
	}
	if err != nil {
		tb.Fatal(err)
	}
	<-time.After(lasting)
	if err := limitFiles(pid, noLimit); err != nil {
		tb.Fatal(err)
	}
	s.goesOn(tb)
}

// goesOn returns when the ledger is written again. Where stintd has ended because it could not make sure of what a commit
// left, it is started, as an init system does.
func (s *soak) goesOn(tb testing.TB) {
	tb.Helper()
	before := int64(-1)
	eventually(tb, dies, func() error {
		if s.daemon.ended() {
			s.ended++
			s.daemon = s.start(tb)
			return nil
		}
		size, err := s.logSize(tb)
		if before < 0 {
			before = size
		}
		if err == nil && size <= before {
			err = fmt.Errorf("%w: the log has %d records, and had %d; stintd said:\n%s", errNotYet, size, before, tail(s.daemon.log(tb)))
		}
		return err
	})
}

// logSize asks stintd how many records there are.
func (s *soak) logSize(tb testing.TB) (int64, error) {
	tb.Helper()
	text, err := download(tb.Context(), "http://"+s.http+"/metrics")
	if err != nil {
		return -1, err
	}
	_, rest, _ := strings.Cut(string(text), "\nstint_audit_size ")
	number, _, _ := strings.Cut(rest, "\n")
	size, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return -1, fmt.Errorf("stint_audit_size: %w", err)
	}
	return int64(size), nil
}

// turnReadOnly lets commits fail and the ledger not be opened again, until stintd ends. Mended, it is started.
func (s *soak) turnReadOnly(tb testing.TB, _ time.Duration) {
	tb.Helper()
	write(tb, s.hook("disk"), string(diskReadOnly))
	if code := s.daemon.wait(tb, dies); code == 0 {
		tb.Error("stintd says that all was well with a ledger that cannot be opened again")
	}
	write(tb, s.hook("disk"), "")
	s.daemon = s.start(tb)
}

// runLow raises the mark of free disk above all that there is.
func (s *soak) runLow(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	const mark, all = `stop_issuing_below = "16MiB"`, `stop_issuing_below = "16TiB"`
	s.edit(tb, mark, all)
	s.daemon.reload(tb, tookIt)
	eventually(tb, time.Minute, func() error { // what was found a moment ago may be told first
		if ready := string(s.get(tb, "/readyz")); !strings.Contains(ready, "free disk is below the mark") {
			return fmt.Errorf("with too little free disk, /readyz says\n%s", ready)
		}
		return nil
	})
	<-time.After(lasting)
	s.edit(tb, all, mark)
	s.daemon.reload(tb, tookIt)
}
