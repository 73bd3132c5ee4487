package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// clockHeld is for how long nothing ends by a clock that was set.
	clockHeld = 5 * time.Minute
	// brokenOffWait is how long it takes to sweep an intent whose token Vault was killed while revoking: Vault removes that when its
	// TTL is over, the credential's and the horizon, and by then attempts are a minute apart.
	brokenOffWait = crashTTL + crashHorizon + 90*time.Second
)

// happened sees that enough was done, and in a soak that is long enough, that every fault was there and was felt.
func (s *soak) happened(t *testing.T, seed uint64) {
	t.Helper()
	if len(s.issued) < 10 || s.long && s.completed == 0 {
		t.Fatal("too little happened for the test to mean anything")
	}
	for reason, n := range s.failed {
		if reason != strings.ToUpper(reason) || slices.Contains([]string{"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS"}, reason) {
			t.Errorf("agents were told %q, %d times, which explains nothing", reason, n)
		}
	}
	if !s.long {
		return
	}
	for _, w := range s.storms(seed) {
		for _, f := range w.faults {
			if s.faults[f.name] == 0 {
				t.Errorf("it never happened: %s", f.name)
			}
		}
	}
	for _, reason := range []string{
		"BACKEND_MISCONFIGURED", "BACKEND_UNAVAILABLE", "LEDGER_UNAVAILABLE", "POLICY_ERROR", "RESTORE_UNCONFIRMED", "UNAUTHENTICATED",
	} {
		if s.failed[reason] == 0 {
			t.Errorf("no agent was ever told %s", reason)
		}
	}
	if len(s.steps.hit) < len(reachable())/2 {
		t.Error("stintd was stopped at too few steps")
	}
}

// endsAll returns when every task is closed. Where the clock was set so lately that nothing ends by it, an operator stops all.
func (s *soak) endsAll(t *testing.T) {
	t.Helper()
	if !s.clockMended.IsZero() && time.Since(s.clockMended) < clockHeld+time.Minute {
		stream, err := s.admin(t).Admin().Stop(t.Context(), &stintv1.StopRequest{
			Target: &stintv1.StopRequest_All{All: true}, Wait: durationpb.New(closeWait),
		})
		for err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("stop everything: %v", err)
		}
	}
	s.closedWithin(t, s.admin(t), brokenOffWait)
}

// reconciles compares what backends hold with the ledger, and revokes what is alive and should not be, until there is none:
// what was issued after the copy of a ledger, and what a CA has lost. What is young is looked at again when it is not.
func (s *soak) reconciles(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error {
		err := s.reconcile(t)
		if err != nil {
			<-time.After(time.Second) // it asks for everything
		}
		return err
	})
	n, all := 0, s.ledger(t)
	for name := range s.issued {
		if _, ok := all.leases[name]; !ok {
			n++
		}
	}
	t.Logf("the ledger was restored %d times, and could not be opened again %d times; it lacks %d credentials that were acknowledged; "+
		"reconciliation revoked %d that the ledger had lost, and again %d that a CA had lost", s.restores, s.ended, n, s.unknown, s.revived)
	s.lostEnd(t)
}

// reconcile is what an operator does after a restore. It returns nil when nothing differs. Each difference has to have its
// reason: reconciling is no way to sweep under the carpet what teardown left.
func (s *soak) reconcile(tb testing.TB) error {
	tb.Helper()
	res, err := s.admin(tb).Admin().Reconcile(tb.Context(), &stintv1.ReconcileRequest{RevokeUnknown: true})
	if err != nil {
		return err
	}
	for _, inv := range res.GetInventories() {
		s.judgeAll(tb, inv)
		if inv.GetUnknown()+inv.GetEndedAlive()+inv.GetInFlight()+inv.GetStrays() > 0 {
			err = fmt.Errorf("%w: %s holds what it should not: %v", errNotYet, inv.GetBackend(), inv)
		}
		for _, gap := range inv.GetGaps() {
			if !gap.GetPermanent() {
				err = fmt.Errorf("%w: %s does not say: %s", errNotYet, inv.GetBackend(), gap.GetProblem())
			}
		}
	}
	return err
}

// judgeAll judges what was not judged before.
func (s *soak) judgeAll(tb testing.TB, inv *stintv1.Inventory) {
	tb.Helper()
	all := s.ledger(tb)
	for _, d := range inv.GetDifferences() {
		if !s.differed[d.GetKey()] {
			s.judge(tb, inv.GetBackend(), d, all)
		}
		s.differed[d.GetKey()] = true
	}
}

// judge says whether there may be a difference. Nothing that ended is alive, but at a CA that has lost revocations, and nothing
// is unknown but what a restore has lost, or what an intent was swept for, which Vault may be about to end.
func (s *soak) judge(tb testing.TB, backend string, d *stintv1.Difference, all records) {
	tb.Helper()
	switch d.GetKind() {
	case stintv1.DifferenceKind_DIFFERENCE_KIND_ENDED_ALIVE:
		if s.revived++; !s.loses(backend) {
			tb.Errorf("%s of %s is %s, and %s holds it", d.GetLease().GetName(), d.GetRole(), d.GetLease().GetState(), backend)
		}
	case stintv1.DifferenceKind_DIFFERENCE_KIND_UNKNOWN:
		s.unknown++
		if strings.HasPrefix(backend, "stepca/") {
			s.judgeSerial(tb, backend, d)
			return
		}
		made := d.GetIssuedAt().AsTime()
		fits := func(l lease.Lease) bool { // its issue began shortly before
			return l.Role == d.GetRole() && made.Sub(l.CreatedAt).Abs() < lease.IssueTimeout+crashHorizon+maxJump
		}
		if s.lost.at(made) || slices.ContainsFunc(slices.Collect(maps.Values(s.lost.leases)), fits) ||
			slices.ContainsFunc(slices.Collect(maps.Values(all.leases)), func(l lease.Lease) bool { return l.Proof == plugins.Swept && fits(l) }) {
			return
		}
		tb.Errorf("%s holds %s of %s, made at %s, which the ledger never had", backend, d.GetKey(), d.GetRole(), made)
	case stintv1.DifferenceKind_DIFFERENCE_KIND_GONE: // its token was revoked; its task ends it
	case stintv1.DifferenceKind_DIFFERENCE_KIND_DEAD, stintv1.DifferenceKind_DIFFERENCE_KIND_UNSPECIFIED:
		tb.Errorf("%s: %v of %s", backend, d.GetKind(), d.GetRole())
	}
}

// loses reports whether a backend was made to lose revocations.
func (s *soak) loses(backend string) bool {
	n := 0
	s.note(func() {
		switch backend {
		case "stepca/internal":
			n = s.faults["embedded CRL missing"] + s.faults["embedded CRL truncated"] + s.faults["embedded CRL stale"]
		case "stepca/remote":
			n = s.faults["step-ca: database lost"]
		}
	})
	return n > 0
}

// judgeSerial says whether the ledger may not know a certificate. Of a step-ca's every intent is in the ledger before it is asked;
// what the embedded CA has signed is not when a kill comes before its commit, and then nobody was given it.
func (s *soak) judgeSerial(tb testing.TB, backend string, d *stintv1.Difference) {
	tb.Helper()
	name, given := "leases/"+d.GetKey(), false
	s.note(func() { given = s.issued[name] != nil })
	if !s.lost.holds(name) && (given || backend != "stepca/internal") {
		tb.Errorf("%s has signed %s, made at %s, which the ledger never had (given to an agent: %t)", backend, d.GetKey(), d.GetIssuedAt().AsTime(), given)
	}
}

// lostEnd expects every certificate on a CRL that restores have lost and that nobody was given; what was given is tried.
func (s *soak) lostEnd(t *testing.T) {
	t.Helper()
	n := 0
	for name, l := range s.lost.leases {
		if signed := l.State == lease.Active || l.Proof == plugins.OnCRL; !signed || !strings.HasPrefix(l.Backend, "stepca/") {
			continue
		}
		if n++; time.Now().Before(l.NotAfter) && !s.onCRL(t, l.Backend)[l.ID.String()] {
			t.Errorf("%s of %s was lost with its ledger, and is on no CRL", name, l.Role)
		}
	}
	t.Logf("%d certificates were lost with a ledger, and have expired or are revoked", n)
}

// onCRL returns the serial numbers on a CRL, as leases are named.
func (s *soak) onCRL(t *testing.T, backend string) map[string]bool {
	t.Helper()
	block, _ := pem.Decode(s.get(t, "/crl.pem?backend="+backend))
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		out[fmt.Sprintf("%032X", e.SerialNumber)] = true
	}
	return out
}

// checkConsul asks Consul what is alive. Its tokens have no end of their own: of one that Vault forgot, nobody was told the
// secret, and the ledger says that it was swept.
func (s *soak) checkConsul(t *testing.T, all records) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error { // what was swept is ended by Vault in the background
		if leases := s.vault.Leases(t, consulPath); len(leases) != 0 {
			return fmt.Errorf("%w: Vault has %d leases of Consul's tokens left", errNotYet, len(leases))
		}
		return nil
	})
	told := map[string]string{}
	for name, credential := range s.issued {
		if credential.Lease.GetRole() == consulRole {
			told[string(credential.Fields["token"].Expose())] = name
		}
	}
	left := s.consul.left()
	for _, token := range left {
		if name, ok := told[token.secret]; ok {
			t.Errorf("Consul has a token left that was handed out with %s, %s", name, all.leases[name].State)
		} else if !s.sweptFor(token.about, all) {
			t.Errorf("Consul has a token left that the ledger does not account for: %s", token.about)
		}
	}
	t.Logf("%d tokens of Consul's are left that Vault made and forgot; each has its lease, swept", len(left))
}

// sweptFor reports whether a lease of the task that a token of Consul's was made for was swept, or lost with its ledger.
func (s *soak) sweptFor(about string, all records) bool {
	fields := strings.Fields(about) // Vault, its role, the token's display name, nanoseconds
	if len(fields) != 4 {
		return false
	}
	if at, err := strconv.ParseInt(fields[3], 10, 64); err == nil && s.lost.at(time.Unix(0, at)) {
		return true
	}
	fits := func(l lease.Lease) bool {
		_, short, _ := strings.Cut(l.TaskName, "reconcile-invoices-")
		return l.Role == consulRole && strings.HasSuffix(fields[2], "-"+short)
	}
	for _, l := range all.leases {
		if fits(l) && l.Proof == plugins.Swept {
			return true
		}
	}
	for _, l := range s.lost.leases {
		if fits(l) && (l.Proof == plugins.Swept || l.State == lease.Intent) {
			return true
		}
	}
	return false
}

// verifies proves that the log continues all that an agent has seen, but for what restores have lost by its own word.
func (s *soak) verifies(t *testing.T, client *agent.Client) error {
	t.Helper()
	err := client.VerifyLog(t.Context())
	if s.restores > 0 && errors.Is(err, agent.ErrRestored) && !errors.Is(err, agent.ErrLog) {
		client.AcceptRestore()
		err = client.VerifyLog(t.Context())
	}
	return err
}

// keepSigned keeps what step-ca has signed, before its database is lost.
func (c *crash) keepSigned(tb testing.TB) {
	tb.Helper()
	maps.Copy(c.signed, certificatesIn(read(tb, c.caData), c.ca.Intermediate))
}
