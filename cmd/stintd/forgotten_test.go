package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// leftUser is a database user that is still there.
type leftUser struct {
	Name  string
	Login bool
	Until time.Time
}

// checkVault asks Vault and PostgreSQL what is alive. What was swept is ended by Vault in the background and may take
// moments longer than its record.
func (c *crash) checkVault(t *testing.T, all records) {
	t.Helper()
	conn, over := vaulttest.Connect(t, c.pg.SuperDSN("postgres")), time.Now().Add(10*time.Second)
	var left []leftUser
	eventually(t, time.Minute, func() error {
		rows, err := conn.Query(t.Context(), "SELECT rolname, rolcanlogin, rolvaliduntil FROM pg_roles WHERE rolname LIKE 'v-%'")
		if err != nil {
			return err
		}
		left, err = pgx.CollectRows(rows, pgx.RowToStructByPos[leftUser])
		if err == nil && len(left) > 0 && time.Now().Before(over) {
			err = errNotYet
		}
		return err
	})
	for _, u := range left {
		if err := c.accounts(all, u); err != nil {
			t.Errorf("PostgreSQL has a user left, %s, that the ledger does not account for: %v", u.Name, err)
		}
	}
	t.Logf("%d database users are left that Vault made and forgot; each has its lease, swept, that says until when: %+v", len(left), left)
	if leases := c.vault.Leases(t, "database/creds/stint-orders-ro"); len(leases) != 0 {
		t.Errorf("Vault has %d leases left: %v", len(leases), leases)
	}
}

// vaultAdds is how much later than its lease Vault lets a database user end.
const vaultAdds = 5 * time.Second

var errHandedOut = errors.New("it was handed out")

// accounts returns nil for a user that the ledger accounts for, or the part of it that a restore has lost: nobody was told
// the password of such a one either, and PostgreSQL's clock ends it.
func (c *crash) accounts(all records, u leftUser) error {
	for name, credential := range c.issued {
		if user, ok := credential.Fields["username"]; ok && string(user.Expose()) == u.Name {
			return fmt.Errorf("%w, with %s", errHandedOut, name)
		}
	}
	made := u.Until.Add(-crashTTL - vaultAdds)
	u.Until = u.Until.Add(-c.clockOff)
	err := all.forgotten(u)
	if err != nil && !errors.Is(err, errHandedOut) && (c.lost.at(made) || c.lost.swept(u) == nil) {
		return nil
	}
	return err
}

// forgotten returns nil for a database user that Vault forgot, and that the ledger accounts for. Vault made it while the
// connection of the killed stintd was cut, and never wrote its lease down, which no client can mend. Then no lease of the
// ledger has the user's name, so nobody was told the password; the lease of its task was swept; and PostgreSQL's clock ends
// the user not later than that lease's record says.
func (r records) forgotten(u leftUser) error {
	var swept *lease.Lease
	for _, l := range r.leases {
		if strings.Contains(l.PublicRef, u.Name) {
			return fmt.Errorf("%w, with lease %s, %s (%s)", errHandedOut, l.ID, l.State, l.Proof)
		}
		_, short, _ := strings.Cut(l.TaskName, "reconcile-invoices-")
		if l.Role == dbRole && l.Proof == plugins.Swept && strings.Contains(u.Name, "-task-"+short+"-") {
			swept = &l
		}
	}
	switch {
	case swept == nil:
		return errors.New("no lease of its task was swept")
	case u.Until.After(swept.UsableUntil):
		return fmt.Errorf("it works until %s, and lease %s says until %s", u.Until, swept.ID, swept.UsableUntil)
	}
	return nil
}
