package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// TestDamagedLedger overwrites the pages of the ledger that hold leases, under a broker that serves: nothing more is
// admitted, everybody is told what it is, and check and the next start find it.
func TestDamagedLedger(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	task := declare(t, client, 10*time.Minute, certRole)
	issue(t, task, certRole)
	file := s.file("data", sqlite.File)
	eventually(t, 30*time.Second, func() error { // the WAL is written back
		if !bytes.Contains(read(t, file), []byte(`"lane":"`)) {
			return errNotYet
		}
		return nil
	})
	spoil(t, file, `"lane":"`)
	declare(t, client, 10*time.Minute, certRole) // what was read before counts no more
	if _, err := s.admin(t).Admin().ListAllLeases(t.Context(), &stintv1.ListAllLeasesRequest{}); agent.ReasonOf(err) != stintv1.Reason_REASON_LEDGER_UNAVAILABLE {
		t.Errorf("leases that cannot be read: %v", err)
	}
	if _, err := task.Issue(t.Context(), certRole, agent.IssueOptions{}); agent.ReasonOf(err) != stintv1.Reason_REASON_LEDGER_UNAVAILABLE {
		t.Errorf("issue by a damaged ledger: %v", err)
	}
	d.says(t, "the ledger is damaged")
	if n := strings.Count(d.log(t), "stop the broker and restore a backup"); n != 1 {
		t.Errorf("it says %d times what to do", n)
	}
	if report := string(s.get(t, "/readyz")); !strings.Contains(report, "damaged") || !strings.HasPrefix(report, "not ready") {
		t.Errorf("readyz says %s", report)
	}
	if _, err := client.Declare(t.Context(), declaration(10*time.Minute, certRole)); agent.ReasonOf(err) != stintv1.Reason_REASON_LEDGER_UNAVAILABLE {
		t.Errorf("declare by a damaged ledger: %v", err)
	}
	d.stop(t)
	if bytes.Contains(read(t, file), []byte(`"lane":"`)) { // the writer wrote what it remembered
		spoil(t, file, `"lane":"`)
	}
	code, found := check(t, s.dir, s.file("stint.hcl"), "--offline")
	if codes := codesOf(found); code != exitBreaks || !slices.Contains(codes, "ledger-damaged") {
		t.Errorf("check exits with %d: %+v", code, found)
	}
	again := launch(t, s.dir, "serve", "--config", s.file("stint.hcl"))
	if code := again.wait(t, time.Minute); code == 0 || !strings.Contains(again.log(t), "ledger is damaged") {
		t.Errorf("the next start exits with %d: %s", code, tail(again.log(t)))
	}
}

// spoil overwrites the pages of a ledger that hold a text.
func spoil(tb testing.TB, file, text string) {
	tb.Helper()
	const page = 4096
	raw := read(tb, file)
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	n, noise := 0, make([]byte, page)
	_, _ = rand.Read(noise) // never fails
	for at := 0; at+page <= len(raw); at += page {
		if !bytes.Contains(raw[at:at+page], []byte(text)) {
			continue
		}
		n++
		if _, err := f.WriteAt(noise, int64(at)); err != nil {
			tb.Fatal(err)
		}
	}
	if n == 0 {
		tb.Fatalf("no page holds %q", text)
	}
}
