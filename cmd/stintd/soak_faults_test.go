package main

import (
	"database/sql"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

// span returns a random time between two.
func (s *soak) span(least, most time.Duration) time.Duration {
	return least + time.Duration(s.rng.Int64N(int64(most-least)))
}

// last lets a fault last.
func (s *soak) last() { <-time.After(s.span(300*time.Millisecond, 3*time.Second)) }

// fail makes one thing fail, and mends it.
func (s *soak) fail(tb testing.TB) {
	tb.Helper()
	all := []struct {
		name string
		do   func(tb testing.TB)
	}{
		{"stintd killed", s.killStintd},
		{"stintd frozen", s.freezeStintd},
		{"stintd restarted", s.restartStintd},
		{"vault sealed", s.sealVault},
		{"vault killed", s.killVault},
		{"vault frozen", s.freezeVault},
		{"step-ca down", s.stopStepCA},
		{"step-ca frozen", s.freezeStepCA},
		{"postgres restarted", func(tb testing.TB) { tb.Helper(); s.pg.Restart(tb) }},
		{"postgres down", s.stopPostgres},
		{"ledger locked", s.lockLedger},
	}
	fault := all[s.rng.IntN(len(all))]
	s.faults[fault.name]++
	fault.do(tb)
}

func (s *soak) killStintd(tb testing.TB) {
	tb.Helper()
	s.daemon.kill(tb)
	s.daemon = s.start(tb)
}

func (s *soak) restartStintd(tb testing.TB) {
	tb.Helper()
	s.daemon.stop(tb)
	s.daemon = s.start(tb)
}

func (s *soak) freezeStintd(tb testing.TB) {
	tb.Helper()
	s.daemon.signal(tb, syscall.SIGSTOP)
	s.last()
	s.daemon.signal(tb, syscall.SIGCONT)
}

func (s *soak) sealVault(tb testing.TB) {
	tb.Helper()
	s.server.Seal(tb)
	s.last()
	s.server.Unseal(tb)
}

func (s *soak) killVault(tb testing.TB) {
	tb.Helper()
	s.server.Kill(tb)
	s.last()
	s.server.Restart(tb)
}

func (s *soak) freezeVault(tb testing.TB) {
	tb.Helper()
	s.server.Pause(tb)
	s.last()
	s.server.Resume(tb)
}

func (s *soak) stopStepCA(tb testing.TB) {
	tb.Helper()
	s.ca.Stop(tb)
	s.last()
	s.ca.Restart(tb)
}

func (s *soak) freezeStepCA(tb testing.TB) {
	tb.Helper()
	s.ca.Pause(tb)
	s.last()
	s.ca.Resume(tb)
}

func (s *soak) stopPostgres(tb testing.TB) {
	tb.Helper()
	s.pg.Stop(tb)
	s.last()
	s.pg.Restart(tb)
}

// lockLedger keeps stintd from writing, as a slow disk or somebody else's lock does.
func (s *soak) lockLedger(tb testing.TB) {
	tb.Helper()
	db, err := sql.Open("sqlite", "file:"+s.file("data", sqlite.File)+"?_pragma=busy_timeout(5000)")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	conn, err := db.Conn(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err = conn.ExecContext(tb.Context(), "BEGIN IMMEDIATE"); err != nil {
		return // stintd was writing all the time
	}
	s.last()
	if _, err = conn.ExecContext(tb.Context(), "ROLLBACK"); err != nil {
		tb.Error(err)
	}
}
