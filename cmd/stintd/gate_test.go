package main

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// gate stands before a server of any protocol, and when it is closed, keeps the answers to some requests to itself.
type gate struct {
	net.Listener

	target string
	asks   func(said []byte) bool // whether a client asks for something whose answer is kept
	cut    time.Duration          // after which the connection of a kept answer breaks; 0 for never
	closed atomic.Bool
	kept   atomic.Int64 // how many answers were kept
	delay  atomic.Int64 // for how long each piece of an answer is held up; a time.Duration
	copies sync.WaitGroup
}

// commits recognises a COMMIT on its way to PostgreSQL.
func commits(said []byte) bool {
	return bytes.Contains(bytes.ToLower(said), []byte("commit\x00"))
}

// posts recognises a request with a body inside of TLS: it is long, and no handshake (RFC 8446 section 5.1).
func posts(said []byte) bool { return len(said) > 400 && said[0] != 0x16 }

func startGate(tb testing.TB, target string, asks func([]byte) bool, cut time.Duration) *gate {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	g := &gate{Listener: l, target: target, asks: asks, cut: cut}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	g.copies.Go(func() { g.serve(ctx) })
	tb.Cleanup(func() {
		cancel()
		_ = l.Close() // ends serve
		g.copies.Wait()
	})
	return g
}

func (g *gate) serve(ctx context.Context) {
	for {
		from, err := g.Accept()
		if err != nil {
			return
		}
		to, err := new(net.Dialer).DialContext(ctx, "tcp", g.target)
		if err != nil {
			_ = from.Close()
			continue
		}
		stop := context.AfterFunc(ctx, func() { _, _ = from.Close(), to.Close() })
		var silent atomic.Bool
		g.copies.Go(func() { defer stop(); g.ask(to, from, &silent) })
		g.copies.Go(func() { g.answer(ctx, from, to, &silent) })
	}
}

// ask copies what a client says until it is gone. Once it has asked a closed gate, it gets no answer any more.
func (g *gate) ask(to, from net.Conn, silent *atomic.Bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && g.closed.Load() && g.asks(buffer[:n]) && !silent.Swap(true) {
			g.kept.Add(1)
			if g.cut > 0 {
				time.AfterFunc(g.cut, func() { _ = from.Close() })
			}
		}
		if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
			_ = to.Close()
			return
		}
	}
}

// answer copies what the server says until it is gone.
func (g *gate) answer(ctx context.Context, to, from net.Conn, silent *atomic.Bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if delay := time.Duration(g.delay.Load()); delay > 0 {
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
		}
		if !silent.Load() {
			_, _ = to.Write(buffer[:n])
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// gatePostgres puts a gate between Vault and PostgreSQL.
func (c *crash) gatePostgres(tb testing.TB) *gate {
	tb.Helper()
	g := startGate(tb, c.pg.Addr, commits, 0)
	if _, err := c.vault.Root.Logical().WriteWithContext(tb.Context(), "database/config/orders", map[string]any{
		"connection_url": "postgresql://{{username}}:{{password}}@" + g.Addr().String() + "/postgres?sslmode=disable",
	}); err != nil {
		tb.Fatal(err)
	}
	return g
}

// TestVaultKilledBeforeItStoresTheLease kills Vault when PostgreSQL has made a user, and Vault does not know it yet. Vault has
// no lease for it when it is back, and nobody was told its password: the intent is swept, and its record says until when the
// user is there.
func TestVaultKilledBeforeItStoresTheLease(t *testing.T) {
	t.Parallel()
	server := servertest.StartVault(t, servertest.VaultOptions{MaxRequestDuration: crashHorizon, OnDisk: true})
	c := &crash{tally: newTally(), pg: servertest.StartPostgres(t)}
	auth := c.useVault(t, server)
	g := c.gatePostgres(t)
	c.site = newSite(t, "", vaultBackend(server, auth, `  max_request_duration = "`+crashHorizon.String()+`"`), catalog(crashLimits(), dbRole))
	c.start(t)
	task := declare(t, c.agent(t, agentPath), crashTTL, dbRole)
	issue(t, task, dbRole)

	g.closed.Store(true)
	failed := make(chan error, 1)
	go func() {
		_, err := task.Issue(context.WithoutCancel(t.Context()), dbRole, agent.IssueOptions{})
		failed <- err
	}()
	eventually(t, 10*time.Second, func() error {
		if users(t, c.pg, "v-%") < 2 {
			return errNotYet
		}
		return nil
	})
	server.Kill(t)
	if err := <-failed; agent.ReasonOf(err) != stintv1.Reason_REASON_BACKEND_UNAVAILABLE {
		t.Errorf("the issue that was cut off says %v", err)
	}
	g.closed.Store(false)
	server.Restart(t)
	if n := len(c.vault.Leases(t, "database/creds/stint-orders-ro")); n != 1 {
		t.Fatalf("Vault has %d leases; it was to know one of two users", n)
	}
	if _, err := task.Complete(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	c.allClosed(t, c.admin(t))
	c.onlyForgotten(t)
}

// onlyForgotten expects one user to be left, and the ledger to account for it.
func (c *crash) onlyForgotten(t *testing.T) {
	t.Helper()
	var left leftUser
	conn := vaulttest.Connect(t, c.pg.SuperDSN("postgres"))
	if n := users(t, c.pg, "v-%"); n != 1 {
		t.Fatalf("%d users are left, want the one that Vault forgot", n)
	}
	err := conn.QueryRow(t.Context(), "SELECT rolname, rolcanlogin, rolvaliduntil FROM pg_roles WHERE rolname LIKE 'v-%'").
		Scan(&left.Name, &left.Login, &left.Until)
	if err != nil {
		t.Fatal(err)
	}
	all := c.ledger(t)
	if err = all.forgotten(left); err != nil {
		t.Error(err)
	}
	proofs := map[plugins.Proof]int{}
	for _, l := range all.leases {
		proofs[l.Proof]++
		if l.State != lease.Revoked {
			t.Errorf("lease %s is %s", l.ID, l.State)
		}
	}
	if proofs[plugins.Swept] != 1 || len(all.leases) != 2 {
		t.Errorf("the ends of two leases are proven by %v", proofs)
	}
}
