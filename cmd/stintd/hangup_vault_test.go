package main

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	"github.com/stint-dev/stint/sdk/agent"
)

// TestHangupVault: a Vault that is added issues at once; removed with its roles, what it issued is gone there, counted at
// Vault and PostgreSQL, and then it is let go of. The embedded CA notices nothing.
func TestHangupVault(t *testing.T) {
	t.Parallel()
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servertest.StartPostgres(t)
	f := vaultFor(t, server, pg)
	auth, _ := tokenAuth(t, f)
	block := vaultBackend(server, auth)
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	s.edit(t, embeddedCA, block+embeddedCA)
	s.resources(t, catalog(limits{}, certRole, dbRole, otpRole))
	d.reload(t, tookIt)
	task := declare(t, client, 10*time.Minute, certRole, dbRole, otpRole)
	kept := issue(t, task, certRole)
	for range 5 {
		issue(t, task, dbRole)
		issue(t, task, otpRole)
	}
	if n := users(t, pg, "v-%"); n != 5 {
		t.Fatalf("PostgreSQL has %d users", n)
	}
	s.edit(t, block, "")
	s.resources(t, catalog(limits{}, certRole))
	d.reload(t, tookIt)
	eventually(t, 30*time.Second, func() error {
		if left := leftAt(t, f, pg); left > 0 {
			return fmt.Errorf("%w: %d users, leases and tokens are left", errNotYet, left)
		}
		return nil
	})
	for name, l := range s.ledger(t).leases {
		if (name == kept.Lease.GetName()) != (l.State == "ACTIVE") || (l.State != "ACTIVE" && l.Cause != lease.RoleRemoved) {
			t.Errorf("lease of %s: %s, %s", l.Role, l.State, l.Cause)
		}
	}
	d.says(t, "let go of a removed backend")
	if ready := string(s.get(t, "/readyz")); strings.Contains(ready, "vault/main") {
		t.Errorf("/readyz says:\n%s", ready)
	}
	issue(t, task, certRole)
}

// TestHangupChangesVault changes a Vault's block and the token file that it names again and again while eight agents issue.
// No issue fails, and nothing is left alive.
func TestHangupChangesVault(t *testing.T) {
	t.Parallel()
	server, pg := servertest.StartVault(t, servertest.VaultOptions{}), servertest.StartPostgres(t)
	f := vaultFor(t, server, pg)
	auth, file := tokenAuth(t, f)
	s := newSite(t, "", vaultBackend(server, auth, `request_timeout = "10s"`), catalog(limits{}, dbRole, otpRole))
	d := s.start(t)
	over := make(chan struct{})
	var issued atomic.Int64
	var agents sync.WaitGroup
	for n := range 8 {
		role := []string{dbRole, otpRole}[n%2]
		task := declare(t, s.agent(t, fmt.Sprintf("/agent/a%d", n)), 20*time.Minute, role)
		agents.Go(func() {
			for {
				select {
				case <-over:
				default:
					if _, err := task.Issue(t.Context(), role, agent.IssueOptions{}); err != nil {
						t.Errorf("issue %s while its backend changes: %v", role, err)
					} else {
						issued.Add(1)
						continue
					}
				}
				if _, err := task.Complete(t.Context(), 0); err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	timeout := "10s"
	for n := range 6 {
		if n%2 == 0 {
			fresh := fmt.Sprintf("1%ds", n+1)
			s.edit(t, `request_timeout = "`+timeout, `request_timeout = "`+fresh)
			timeout = fresh
		} else {
			write(t, file, f.Token(t, vault.StintPolicy))
		}
		before := issued.Load()
		d.reload(t, tookIt)
		eventually(t, time.Minute, func() error {
			if issued.Load() < before+8 {
				return errNotYet
			}
			return nil
		})
	}
	close(over)
	agents.Wait()
	if n := strings.Count(d.log(t), `"changed":["vault/main"]`); n != 6 {
		t.Errorf("the backend changed %d times of 6", n)
	}
	s.allClosed(t, s.admin(t))
	if left := leftAt(t, f, pg); left != 0 {
		t.Errorf("%d users, leases and tokens are left", left)
	}
	t.Logf("%d credentials were issued while the backend changed 6 times", issued.Load())
}

// leftAt counts what a Vault and the PostgreSQL behind it hold of Stint: leases and tokens, and users once there are none of
// those, since each look at PostgreSQL is a connection.
func leftAt(tb testing.TB, f *vaulttest.Fixture, pg *servertest.Postgres) int {
	tb.Helper()
	left := len(f.Leases(tb, "database/creds/stint-orders-ro")) + len(f.Leases(tb, "ssh/creds/stint-otp")) + len(tokens(tb, f))
	if left > 0 {
		return left
	}
	return users(tb, pg, "v-%")
}
