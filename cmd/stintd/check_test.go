package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// finding is a line of `stintd check --json`.
type finding struct {
	Severity, Code, Subject, Problem, Remedy string
}

// check runs `stintd check` and returns its exit status and findings.
func check(tb testing.TB, dir, config string, flags ...string) (int, []finding) {
	tb.Helper()
	code, out, errs := run(tb, dir, append([]string{"check", "--json", "--config", config}, flags...)...)
	var found []finding
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		tb.Fatalf("check prints %q, and on standard error %q: %v", out, errs, err)
	}
	return code, found
}

// finds expects a finding of a severity whose subject, problem and remedy hold these texts.
func finds(tb testing.TB, found []finding, severity plugins.Severity, texts ...string) {
	tb.Helper()
	for _, f := range found {
		all := f.Subject + "\n" + f.Problem + "\n" + f.Remedy
		holds := f.Severity == string(severity)
		for _, text := range texts {
			holds = holds && strings.Contains(all, text)
		}
		if holds {
			return
		}
	}
	tb.Errorf("no finding %s with %q among %+v", severity, texts, found)
}

// TestCheckResources names every fault of the resources at once, with file and line, without connecting anywhere.
func TestCheckResources(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, strings.NewReplacer("max: 15m", "maxx: 15m", "stepca/internal", "stepca/elsewhere").Replace(catalog(limits{}, certRole)))
	code, found := check(t, s.dir, s.file("stint.hcl"), "--offline")
	if code != exitBreaks {
		t.Errorf("check exits with %d", code)
	}
	finds(t, found, plugins.Breaks, "all.yaml:", "maxx")
	finds(t, found, plugins.Breaks, "all.yaml:", "stepca/elsewhere")
	if code, _, errs := run(t, s.dir, "serve", "--config", s.file("stint.hcl")); code == 0 || !strings.Contains(errs, "all.yaml:") {
		t.Errorf("serve with such resources exits with %d: %s", code, errs)
	}
}

// flip changes one bit of a record in a ledger that nobody else has open.
func flip(tb testing.TB, file string, index int64) {
	tb.Helper()
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		tb.Fatal(err)
	}
	var record []byte
	if err := db.QueryRowContext(tb.Context(), "SELECT json FROM audit_entries WHERE idx = ?", index).Scan(&record); err != nil {
		tb.Fatal(err)
	}
	record[bytes.Index(record, []byte("reconcile-invoices"))] ^= 1
	if _, err := db.ExecContext(tb.Context(), "UPDATE audit_entries SET json = ? WHERE idx = ?", record, index); err != nil {
		tb.Fatal(err)
	}
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
}

// TestBackup copies the ledger of a daemon that serves, verifies the copy, and finds one changed byte in it. A second
// daemon on the same data refuses to start.
func TestBackup(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 5*time.Minute, certRole)
	issue(t, task, certRole)
	if err := task.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	declared := s.record(t, `"event":"task.declared"`)
	s.record(t, `"event":"task.closed"`)

	copied := s.file("backup.db")
	if code, _, errs := run(t, s.dir, "backup", "--config", s.file("stint.hcl"), "--out", copied); code != 0 {
		t.Fatalf("backup exits with %d: %s", code, errs)
	}
	if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy has mode %v, %v", info.Mode(), err)
	}
	if code, _, errs := run(t, s.dir, "backup", "--config", s.file("stint.hcl"), "--out", copied); code == 0 {
		t.Errorf("backup over an older one exits with 0: %s", errs)
	}
	write(t, s.file("log.pub"), s.key+"\n")
	verify := func(ledger string) (int, string) {
		t.Helper()
		code, out, errs := run(t, s.dir, "audit", "verify", "--ledger", ledger, "--pubkey", "@"+s.file("log.pub"),
			"--checkpoints", s.file("log", "checkpoints.log"))
		return code, out + errs
	}
	if code, said := verify(copied); code != 0 || !strings.Contains(said, "ok") {
		t.Errorf("verify of the copy exits with %d: %s", code, said)
	}

	var index struct{ Index int64 }
	if err := json.Unmarshal([]byte(declared), &index); err != nil {
		t.Fatal(err)
	}
	flip(t, copied, index.Index)
	if code, said := verify(copied); code == 0 || !strings.Contains(said, fmt.Sprintf("record %d", index.Index)) {
		t.Errorf("verify with a flipped byte in record %d exits with %d: %s", index.Index, code, said)
	}

	code, _, errs := run(t, s.dir, "serve", "--config", s.file("stint.hcl"))
	if code == 0 || !strings.Contains(errs, s.file("data")) {
		t.Errorf("a second daemon exits with %d: %s", code, errs)
	}
	t.Logf("the second daemon says: %s", strings.TrimSpace(errs))
	d.stop(t)
}
