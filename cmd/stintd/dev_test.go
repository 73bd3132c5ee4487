package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/sdk/agent"
)

// TestDemo tells the whole story, with a Vault where its binary is.
func TestDemo(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"with Vault": nil, "without": {"--no-vault"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if flags == nil {
				servers.Vault(t) // skips or fails where there is none
			}
			dir := shortDir(t)
			began := time.Now()
			code, out, errs := run(t, dir, append([]string{"demo", "--json"}, flags...)...)
			if code != 0 {
				t.Fatalf("demo exits with %d:\n%s\n%s", code, out, errs)
			}
			steps := 0
			for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); steps++ {
				var s step
				if err := dec.Decode(&s); err != nil {
					t.Fatal(err)
				}
				if !s.OK || s.Step != steps+1 {
					t.Errorf("step %d (%s) is %+v", steps+1, s.Title, s)
				}
			}
			want := 10
			if flags != nil {
				want = 8
			}
			if steps != want {
				t.Errorf("%d steps, want %d", steps, want)
			}
			if strings.Contains(out+errs, "hvs.") {
				t.Error("the demo prints a Vault token")
			}
			left, err := filepath.Glob(dir + "/stint-*")
			if err != nil || len(left) != 0 {
				t.Errorf("the demo leaves %v, %v", left, err)
			}
			t.Logf("%d steps in %s", steps, time.Since(began).Round(100*time.Millisecond))
		})
	}
}

// TestDemoFails holds that the demo's exit status is 0 only if every step did what it says.
func TestDemoFails(t *testing.T) {
	t.Parallel()
	d := launchWith(t, shortDir(t), []string{"VAULT_BIN=/none/vault"}, "demo", "--vault")
	if code := d.wait(t, time.Minute); code == 0 || !strings.Contains(d.log(t), "VAULT_BIN") {
		t.Errorf("demo --vault without a vault exits with %d: %s", code, d.log(t))
	}
	d = launchWith(t, shortDir(t), []string{"PATH=/none"}, "demo", "--vault")
	if code := d.wait(t, time.Minute); code == 0 || !strings.Contains(d.log(t), whereVault) {
		t.Errorf("demo --vault without a vault exits with %d: %s", code, d.log(t))
	}

	failed := errors.New("not what it says")
	var out bytes.Buffer
	n := narrator{out: &out, json: true}
	if err := n.tell(t.Context(), "a step", func(context.Context, *step) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a step that failed is told as %v", err)
	}
	var s step
	if err := json.Unmarshal(out.Bytes(), &s); err != nil || s.OK || s.Error != failed.Error() {
		t.Errorf("a step that failed is written as %s, %v", out.Bytes(), err)
	}

	// The broker ends well where a step fails or its time is over; the error comes out all the same.
	broken, err := openDev(t.Context(), devOptions{
		dataDir: shortDir(t), grpc: servertest.FreeAddress(t), http: servertest.FreeAddress(t), noVault: true, logLevel: "error", svidTTL: 10 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = broken.run(ctx, func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return n.tell(ctx, "a step out of time", func(ctx context.Context, _ *step) error { return ctx.Err() })
	})
	if err = errors.Join(err, broken.close()); !errors.Is(err, context.Canceled) {
		t.Errorf("a demo whose time is over ends with %v", err)
	}
}

// devSite is a `stintd dev` with a data directory of the test's.
type devSite struct{ dir, grpc, http string }

func (s devSite) start(tb testing.TB, flags ...string) *daemon {
	tb.Helper()
	d := launch(tb, s.dir, append([]string{"dev", "--no-vault", "--data-dir", "state", "--listen", s.grpc, "--http", s.http}, flags...)...)
	d.prints(tb, d.stdout, "Ready in")
	return d
}

// envSocket names the Workload API in the environment file.
const envSocket = "SPIFFE_ENDPOINT_SOCKET"

func (s devSite) ledgerFile() string { return filepath.Join(s.dir, "state", "broker", sqlite.File) }

// env reads the environment file.
func (s devSite) env(tb testing.TB) map[string]string {
	tb.Helper()
	env := map[string]string{}
	for line := range strings.Lines(string(read(tb, s.dir+"/state/env"))) {
		name, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		env[name] = value
	}
	return env
}

// agent connects as the environment file says.
func (s devSite) agent(tb testing.TB) *agent.Client {
	tb.Helper()
	env := s.env(tb)
	return connect(tb, agent.WithAddr(env[agent.EnvAddr]), agent.WithServerID(env[agent.EnvServerID]), agent.WithWorkloadAPI(env[envSocket]))
}

// TestDev gives out a certificate, is interrupted, and has it on the CRL before it is gone. What it keeps is kept until
// --reset.
func TestDev(t *testing.T) {
	t.Parallel()
	s := devSite{dir: shortDir(t), grpc: servertest.FreeAddress(t), http: servertest.FreeAddress(t)}
	d := s.start(t)
	d.prints(t, d.stdout, "DEVELOPMENT MODE")
	d.prints(t, d.stdout, "fresh")
	if ignored := string(read(t, s.dir+"/state/.gitignore")); ignored != "*\n" {
		t.Errorf("git ignores %q of the data directory", ignored)
	}
	first := s.certificate(t)
	s.refusedByServe(t)
	d.interrupt(t)
	list, err := x509.ParseRevocationList(read(t, s.dir+"/state/broker/ca/dev/crl.der"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(first.Chain[0].SerialNumber) == 0
	}) {
		t.Error("the certificate of the ended task is not on the CRL")
	}
	if n := len(readLedger(t, s.ledgerFile()).tasks); n != 1 {
		t.Errorf("the ledger has %d tasks, want 1", n)
	}

	d = s.start(t)
	d.prints(t, d.stdout, "kept from last time")
	if !s.certificate(t).Bundle[0].Equal(first.Bundle[0]) {
		t.Error("a second start made another CA")
	}
	d.interrupt(t)
	d = s.start(t, "--reset")
	if n := len(readLedger(t, s.ledgerFile()).tasks); n != 0 {
		t.Errorf("%d tasks outlived --reset", n)
	}
	if s.certificate(t).Bundle[0].Equal(first.Bundle[0]) {
		t.Error("--reset kept the CA")
	}
	d.interrupt(t)
}

// certificate declares a task and issues a certificate; the task stays open.
func (s devSite) certificate(tb testing.TB) *agent.Certificate {
	tb.Helper()
	task, err := s.agent(tb).Declare(tb.Context(), agent.Declaration{Purpose: "try-it", Roles: []agent.Role{{Name: "web-client"}}})
	if err != nil {
		tb.Fatal(err)
	}
	return issue(tb, task, "web-client").Certificate
}

// refusedByServe points a production broker at the development trust domain.
func (s devSite) refusedByServe(tb testing.TB) {
	tb.Helper()
	socket := strings.Replace(s.env(tb)[envSocket], "/agent.sock", "/stint.sock", 1)
	production := newSite(tb, "identity { workload_api = \""+socket+"\" }\n", embeddedCA, catalog(limits{}, certRole))
	code, _, errs := run(tb, production.dir, "serve", "--config", production.file("stint.hcl"))
	if code == 0 || !strings.Contains(errs, "development CA") {
		tb.Errorf("serve with a development CA exits with %d: %s", code, errs)
	}
	code, found := check(tb, production.dir, production.file("stint.hcl"))
	if codes := codesOf(found); code != exitBreaks || !slices.Contains(codes, "identity") {
		tb.Errorf("check with a development CA exits with %d: %+v", code, found)
	}
	finds(tb, found, plugins.Breaks, "identity", "development CA")
}

// interrupt is Ctrl-C.
func (d *daemon) interrupt(tb testing.TB) {
	tb.Helper()
	d.signal(tb, syscall.SIGINT)
	if code := d.wait(tb, 30*time.Second); code != 0 {
		tb.Fatalf("stintd exits with %d after Ctrl-C: %s", code, tail(d.log(tb)))
	}
}

// TestDevVaultAgain prepares a Vault that was prepared before, as a second `stintd dev --vault-addr` does.
func TestDevVaultAgain(t *testing.T) {
	t.Parallel()
	server := servertest.StartVault(t, servertest.VaultOptions{})
	v := &devVault{addr: server.Addr, token: secret.FromString(server.RootToken)}
	for range 2 {
		if err := v.prepare(t.Context(), vault.Config{}, nil, "spiffe://dev.stint.local/stint", []any{newKey(t).Public()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&devVault{addr: server.Addr, token: secret.FromString("hvs.none")}).prepare(t.Context(), vault.Config{}, nil, "spiffe://x/y", nil); err == nil {
		t.Error("prepared without a right to")
	}
}
