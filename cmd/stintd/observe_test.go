package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// get returns the body at a path of the status port; any answer will do.
func (s *site) get(tb testing.TB, path string) []byte {
	tb.Helper()
	body, err := download(tb.Context(), "http://"+s.http+path)
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

func download(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	return body, errors.Join(err, resp.Body.Close())
}

// revocations are the serial numbers on the CRLs that the daemon publishes for some backends, by issuer.
type revocations map[string]bool

func revoked(issuer []byte, serial *big.Int) string { return string(issuer) + serial.String() }

func (r revocations) holds(c *x509.Certificate) bool { return r[revoked(c.RawIssuer, c.SerialNumber)] }

func (s *site) revocations(tb testing.TB, backends ...string) revocations {
	tb.Helper()
	out := revocations{}
	for _, name := range backends {
		out.add(tb, s.get(tb, "/crl.pem?backend="+name))
	}
	return out
}

// add adds what a CRL in PEM holds.
func (r revocations) add(tb testing.TB, text []byte) {
	tb.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		tb.Fatalf("no CRL: %s", text)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range list.RevokedCertificateEntries {
		r[revoked(list.RawIssuer, e.SerialNumber)] = true
	}
}

// login opens a session with an issued secret's name and password.
func login(ctx context.Context, pg *servertest.Postgres, c *agent.Credential) (*pgx.Conn, error) {
	return pgx.Connect(ctx, pg.DSN(string(c.Fields["username"].Expose()), string(c.Fields["password"].Expose()), "postgres"))
}

// records is the whole ledger.
type records struct {
	tasks  map[string]task.Task
	leases map[string]lease.Lease // by "leases/<ID>"
}

// ledger reads everything in the ledger, also while the daemon writes it.
func (s *site) ledger(tb testing.TB) records {
	tb.Helper()
	return readLedger(tb, s.file("data", sqlite.File))
}

func readLedger(tb testing.TB, file string) records {
	tb.Helper()
	store, err := sqlite.OpenReader(tb.Context(), file)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	out := records{tasks: map[string]task.Task{}, leases: map[string]lease.Lease{}}
	err = store.View(tb.Context(), func(r ledger.Reader) error {
		tasks, terr := r.ListTasks(ledger.TaskFilter{Limit: 1_000_000})
		if terr != nil {
			return terr
		}
		for _, t := range tasks {
			out.tasks["tasks/"+t.ID.String()] = t
		}
		leases, lerr := r.ListLeases(ledger.LeaseFilter{Limit: 1_000_000})
		for _, l := range leases {
			out.leases["leases/"+l.ID.String()] = l
		}
		return lerr
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// errNotYet makes eventually go on.
var errNotYet = errors.New("not yet")

// intent returns nil when there is a lease in state INTENT of a role.
func (s *site) intent(tb testing.TB, role string) error {
	tb.Helper()
	for _, l := range s.ledger(tb).leases {
		if l.Role == role && l.State == lease.Intent {
			return nil
		}
	}
	return fmt.Errorf("no intent of %s: %w", role, errNotYet)
}

// record returns the first record of an event in the copy of the audit log that fits, waiting for it.
func (s *site) record(tb testing.TB, parts ...string) string {
	tb.Helper()
	found := ""
	eventually(tb, recordWait, func() error {
		for line := range strings.SplitSeq(string(read(tb, s.file("log", "audit.jsonl"))), "\n") {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				found = line
				return nil
			}
		}
		return fmt.Errorf("no audit record with %q", parts)
	})
	return found
}

// secrets collects what must be nowhere.
type secrets [][]byte

// with adds those of a credential.
func (x secrets) with(c *agent.Credential) secrets {
	for _, name := range []string{"password", "key", "token"} {
		if value, ok := c.Fields[name]; ok {
			x = append(x, bytes.Clone(value.Expose()))
		}
	}
	return x
}

// absent looks for the secrets, and for anything that looks like a Vault token, in every file of the site and in what the
// status port serves. allowed are the files that hold secrets by their nature.
func (x secrets) absent(tb testing.TB, s *site, allowed ...string) {
	tb.Helper()
	x.inNoFile(tb, s, allowed...)
	for _, path := range []string{"/metrics", "/readyz", "/bundle.pem", "/crl.pem", "/livez"} {
		x.notIn(tb, path, s.get(tb, path))
	}
}

// inNoFile is the part of absent that needs no running daemon.
func (x secrets) inNoFile(tb testing.TB, s *site, allowed ...string) {
	tb.Helper()
	files := 0
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || slices.Contains(allowed, path) {
			return err
		}
		files++
		x.notIn(tb, path, read(tb, path))
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Logf("looked for %d secrets in %d files", len(x)+1, files)
}

func (x secrets) notIn(tb testing.TB, where string, text []byte) {
	tb.Helper()
	for i, secret := range append(slices.Clone(x), []byte("hvs.")) {
		if len(secret) < 4 {
			tb.Fatalf("secret %d is too short to look for", i)
		}
		if bytes.Contains(text, secret) {
			tb.Errorf("%s holds secret %d", where, i)
		}
	}
}

// allClosed waits until no task is open, over the admin socket.
func (s *site) allClosed(tb testing.TB, admin *agent.Client) {
	tb.Helper()
	s.closedWithin(tb, admin, closeWait)
}

func (s *site) closedWithin(tb testing.TB, admin *agent.Client, limit time.Duration) {
	tb.Helper()
	eventually(tb, limit, func() error {
		answer, err := admin.Admin().ListAllTasks(tb.Context(), &stintv1.ListAllTasksRequest{
			States: []stintv1.TaskState{stintv1.TaskState_TASK_STATE_ACTIVE, stintv1.TaskState_TASK_STATE_CLOSING},
		})
		if err != nil {
			return err
		}
		if len(answer.GetTasks()) > 0 {
			return s.unfinished(tb)
		}
		return nil
	})
}

// unfinished says which tasks and leases are open, and why.
func (s *site) unfinished(tb testing.TB) error {
	tb.Helper()
	var out strings.Builder
	all := s.ledger(tb)
	for _, t := range all.tasks {
		if t.State != task.Closed {
			fmt.Fprintf(&out, "\ntask %s is %s", t.ShortName, t.State)
		}
	}
	now := time.Now()
	for _, l := range all.leases {
		if !l.State.Final() {
			fmt.Fprintf(&out, "\nlease %s of %s, %s: %s, %d attempts, next in %s, claimed for %s, last error %q", l.ID, l.Role, l.TaskName,
				l.State, l.Attempts, l.NextAt.Sub(now), l.ClaimUntil.Sub(now), l.LastError)
		}
	}
	return fmt.Errorf("open:%s: %w", out.String(), errNotYet)
}

// tokens returns the accessors of the tokens that were made through Stint's token role and are alive, with the time that
// each has left.
func tokens(tb testing.TB, f *vaulttest.Fixture) map[string]time.Duration {
	tb.Helper()
	out := map[string]time.Duration{}
	for _, accessor := range f.Accessors(tb) {
		answer, err := f.Root.Auth().Token().LookupAccessorWithContext(tb.Context(), accessor)
		if err != nil {
			continue // it ended meanwhile
		}
		path, _ := answer.Data["path"].(string)
		left, err := answer.TokenTTL()
		if err != nil {
			tb.Fatal(err)
		}
		if strings.HasPrefix(path, "auth/token/create/") {
			out[accessor] = left
		}
	}
	return out
}

// users counts database users whose names fit.
func users(tb testing.TB, pg *servertest.Postgres, like string) int {
	tb.Helper()
	return vaulttest.Users(tb, vaulttest.Connect(tb, pg.SuperDSN("postgres")), like)
}
