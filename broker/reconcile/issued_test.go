package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/plugins"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// registrar is a ca that lists what it has signed.
type registrar struct {
	*ca

	// What follows is guarded by the ca's mutex.
	signed map[string]plugins.Found
	fault  error // ends the list
}

func newRegistrar(t *testing.T) *registrar {
	t.Helper()
	return &registrar{ca: newCA(t), signed: map[string]plugins.Found{}}
}

func (r *registrar) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	cred, err := r.ca.Issue(ctx, req)
	if err == nil {
		r.sign(req.Lease.String(), cred.NotAfter)
	}
	return cred, err
}

// sign signs something for somebody.
func (r *registrar) sign(serial string, notAfter time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signed[serial] = plugins.Found{Handle: plugins.Handle(serial), PublicRef: "serial " + serial, IssuedAt: time.Now(), NotAfter: notAfter}
}

// forget takes a certificate out of the list.
func (r *registrar) forget(serial string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.signed, serial)
}

func (r *registrar) ends(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = err
}

// Revoke knows a stranger by the handle alone.
func (r *registrar) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	if id, err := lease.ParseID(string(held.Handle)); err == nil {
		held.Lease = id
	}
	return r.ca.Revoke(ctx, held)
}

func (r *registrar) Issued(context.Context) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, f := range r.signed {
			if time.Now().Before(f.NotAfter) && !yield(f, nil) {
				return
			}
		}
		if r.fault != nil {
			yield(plugins.Found{}, r.fault)
		}
	}
}

// gapsOf returns the problems, and whether each is for good.
func gapsOf(inv reconcile.Inventory) string {
	var out []string
	for _, g := range inv.Gaps {
		out = append(out, fmt.Sprintf("%s (%t)", g.Problem, g.Permanent))
	}
	return strings.Join(out, "; ")
}

// What a CA has signed and the ledger does not hold is unknown, once it is older than what could be in flight, and is
// revoked only when told to. What the ledger holds, what is revoked and what has expired is not.
func TestIssued(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		backend := newRegistrar(t)
		f := fresh(t, 0, map[string]plugins.Backend{"ca/a": backend, "plain/a": newRegistrar(t)})
		order := reconcile.Order{Backend: "ca/a"}
		f.issue(t)
		over := f.issue(t)
		if _, err := f.As(t, "/ops/alice").Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: "leases/" + over.String()}); err != nil {
			t.Fatal(err)
		}
		pass(3 * time.Second)
		stranger, revoked, brief := newID().String(), newID(), newID().String()
		backend.sign(stranger, time.Now().Add(10*time.Minute))
		backend.sign(revoked.String(), time.Now().Add(10*time.Minute))
		backend.set(revoked, true)
		backend.sign(brief, time.Now().Add(grace))
		inv := f.compare(t, order)
		want(t, inv)
		if inv.Source != "crl+list" || inv.Held != 5 || inv.Matched != 2 || inv.InFlight != 2 || len(inv.Gaps) != 0 {
			t.Errorf("%+v", inv)
		}
		pass(grace + time.Second)
		inv = f.compare(t, order)
		want(t, inv, "unknown ")
		if got := inv.Findings[0]; got.Key != stranger || got.PublicRef != "serial "+stranger || got.Lease != nil || got.NotAfter.IsZero() {
			t.Errorf("%+v", got)
		}
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a", RevokeEnded: true}), "unknown ") // as the periodic run
		order.RevokeUnknown = true
		want(t, f.compare(t, order), "unknown revoked")
		want(t, f.compare(t, order))
		records := strings.Join(f.records(t, "ca/a"), "\n")
		for _, event := range []audit.Event{audit.StrayEnding, audit.StrayEnded} {
			if !strings.Contains(records, string(event)+" "+operator().ID+" unknown serial "+stranger) {
				t.Errorf("no %s of it in\n%s", event, records)
			}
		}
	})
}

// A certificate with the serial number of another CA's lease, of one that is over, or with one that no lease can have, is unknown, too.
func TestIssuedByAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		backend, other := newRegistrar(t), newRegistrar(t)
		f := fresh(t, 0, map[string]plugins.Backend{"ca/a": backend, "plain/a": other})
		id := f.issue(t)
		long := strings.Repeat("AB", 20)
		for _, serial := range []string{id.String(), long, fmt.Sprintf("%032X", 7)} {
			other.sign(serial, time.Now().Add(time.Hour))
		}
		pass(grace + time.Second)
		want(t, f.compare(t, reconcile.Order{Backend: "plain/a"}), "unknown ", "unknown ", "unknown ")
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a"}))
		pass(2 * time.Minute)
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a"}))
		backend.sign(id.String(), time.Now().Add(time.Hour)) // the number of a lease that is over, and has left the CRL
		backend.set(id, false)
		pass(grace + time.Second)
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a"}), "unknown ")
	})
}

// What a list may lack is a gap: for good where the CA says so, for now where it cannot be read, or is short by the ledger.
func TestIssuedGaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		backend := newRegistrar(t)
		f := fresh(t, 0, map[string]plugins.Backend{"ca/a": backend, "plain/a": newRegistrar(t)})
		order := reconcile.Order{Backend: "ca/a"}
		id, stranger := f.issue(t), newID().String()
		backend.sign(stranger, time.Now().Add(time.Hour))
		pass(grace + time.Second)
		for _, tt := range []struct {
			fault error
			want  string
		}{
			{&plugins.PartialError{Problem: "since noon only"}, "since noon only (true)"},
			{errors.Join(plugins.ErrMisconfigured, errors.New("damaged")), plugins.ErrMisconfigured.Error() + " (false)"},
		} {
			backend.ends(tt.fault)
			inv := f.compare(t, order)
			want(t, inv, "unknown ") // what it lists is compared all the same
			if got := gapsOf(inv); got != tt.want {
				t.Errorf("gaps are %s, want %s", got, tt.want)
			}
		}
		backend.ends(nil)
		backend.forget(id.String())
		inv := f.compare(t, order)
		if got := gapsOf(inv); !strings.Contains(got, "lacks certificates that the ledger holds") || strings.Contains(got, "true") {
			t.Errorf("of a list that is short by the ledger the gaps are %s", got)
		}
		backend.ends(&plugins.PartialError{Problem: "since now only", Since: time.Now()})
		if got := gapsOf(f.compare(t, order)); got != "since now only (true)" {
			t.Errorf("of a list that begins late the gaps are %s", got)
		}
		f.meter.reset()
		backend.ends(nil)
		f.compare(t, order)
		if seen := f.meter.of("ca/a"); len(seen) != 0 {
			t.Errorf("the comparison counts as complete: %v", seen)
		}
	})
}
