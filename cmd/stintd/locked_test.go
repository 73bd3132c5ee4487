package main

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// lock keeps stintd from writing, as a slow disk or somebody else's lock does, until the returned function is called.
func (s *site) lock(tb testing.TB) (unlock func(), err error) {
	tb.Helper()
	db, err := sql.Open("sqlite", "file:"+s.file("data", sqlite.File)+"?_pragma=busy_timeout(5000)")
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := db.Conn(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	over := func() {
		if failed := errors.Join(conn.Close(), db.Close()); failed != nil {
			tb.Error(failed)
		}
	}
	if _, err = conn.ExecContext(tb.Context(), "BEGIN IMMEDIATE"); err != nil {
		over()
		return nil, err
	}
	return func() {
		if _, err := conn.ExecContext(tb.Context(), "ROLLBACK"); err != nil {
			tb.Error(err)
		}
		over()
	}, nil
}

// TestLedgerLocked locks the ledger for longer than anybody waits for it. Nothing is issued or declared meanwhile, what is
// asked has one reason, and it goes on when the lock is gone: a certificate that was signed in vain is on the CRL.
func TestLedgerLocked(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	s.start(t)
	client := s.agent(t, agentPath)
	task := declare(t, client, 5*time.Minute, certRole)
	cert := issue(t, task, certRole)
	unlock, err := s.lock(t)
	if err != nil {
		t.Fatal(err)
	}
	before := len(s.ledger(t).leases)
	_, issued := task.Issue(t.Context(), certRole, agent.IssueOptions{})
	_, declared := client.Declare(t.Context(), declaration(time.Minute, certRole))
	_, completed := task.Complete(t.Context(), 0)
	for what, err := range map[string]error{"issue": issued, "declare": declared, "complete": completed} {
		if agent.ReasonOf(err) != stintv1.Reason_REASON_LEDGER_UNAVAILABLE {
			t.Errorf("%s with the ledger locked: %v", what, err)
		}
	}
	if n := len(s.ledger(t).leases); n != before {
		t.Errorf("%d leases were written while the ledger was locked", n-before)
	}
	unlock()
	eventually(t, 30*time.Second, func() error {
		_, err := task.Complete(t.Context(), 10*time.Second)
		return err
	})
	s.allClosed(t, s.admin(t))
	if !s.revocations(t, "stepca/internal").holds(cert.Certificate.Chain[0]) {
		t.Error("the task is closed, and its certificate is not on the CRL")
	}
	issue(t, declare(t, client, time.Minute, certRole), certRole)
}
