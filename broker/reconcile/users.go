package reconcile

import (
	"context"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
)

// User is a database user that should not be there, or may not have to be.
type User struct {
	Name string
	Kind Kind         // Unknown or Ended
	Row  *lease.Lease // of an Ended
}

// Users is what came of matching database users.
type Users struct {
	// Matched have an open lease, or had one when they were listed.
	Matched int
	// InFlight is how many issue calls are open whose user is not known yet; an unknown user may be of one of them.
	InFlight int
	Strays   []User
}

// MatchUsers holds the names of database users that were listed at the database at an instant against the public references
// of leases. A backend such as Vault does not tell which users exist; whoever administers the database can.
func (r *Reconciler) MatchUsers(ctx context.Context, names []string, listed time.Time) (Users, error) {
	var out Users
	err := r.cfg.Ledger.View(ctx, func(rows ledger.Reader) error {
		out = Users{}
		stats, err := rows.Stats()
		if err != nil {
			return err
		}
		out.InFlight = stats.LeasesByState[lease.Intent]
		for _, name := range names {
			l, err := rows.FindLease(ledger.LeaseKey{Ref: name})
			switch {
			case errors.Is(err, ledger.ErrNotFound), err == nil && l.PublicRef != name:
				out.Strays = append(out.Strays, User{Name: name, Kind: Unknown})
			case err != nil:
				return err
			case l.State.Final() && l.State != lease.Disclosed && l.RevokedAt.Before(listed):
				out.Strays = append(out.Strays, User{Name: name, Kind: Ended, Row: &l})
			default:
				out.Matched++
			}
		}
		return nil
	})
	return out, err
}
