package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// lostParts are what ledgers held that were replaced by older copies of them, and those copies do not.
type lostParts struct {
	leases map[string]lease.Lease // by "leases/<ID>", as they were last
	// spans are when more may have been lost, of ledgers that could not be read any more.
	spans []span
}

// span is a stretch of time.
type span struct{ from, to time.Time }

// add notes what a ledger held that its copy does not.
func (p *lostParts) add(held, copied records) {
	if p.leases == nil {
		p.leases = map[string]lease.Lease{}
	}
	for name, l := range held.leases {
		if _, ok := copied.leases[name]; !ok {
			p.leases[name] = l
		}
	}
}

// holds reports whether a lease was lost: it is known to be, or its issue began in a span, as its ID says (RFC 9562 section
// 5.7), or so shortly before that its commit was in it.
func (p *lostParts) holds(name string) bool {
	if _, ok := p.leases[name]; ok {
		return true
	}
	id, err := lease.ParseID(strings.TrimPrefix(name, "leases/"))
	if err != nil {
		return false
	}
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return p.at(time.UnixMilli(ms))
}

// at reports whether something was made in a span, or its issue began before, or Vault was late with it: it goes on with a call
// after the broker that made it was killed.
func (p *lostParts) at(made time.Time) bool {
	for _, s := range p.spans {
		if made.After(s.from.Add(-lease.IssueTimeout)) && made.Before(s.to.Add(crashHorizon)) {
			return true
		}
	}
	return false
}

// swept is records.forgotten for what was lost: an intent that nobody was to sweep any more counts as swept.
func (p *lostParts) swept(u leftUser) error {
	all := records{leases: map[string]lease.Lease{}}
	for name, l := range p.leases {
		if l.State == lease.Intent {
			l.Proof = plugins.Swept
		}
		all.leases[name] = l
	}
	return all.forgotten(u)
}

// restoreLedger puts a backup in place of the ledger, as after the loss of a disk.
func (s *soak) restoreLedger(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	copied := s.backup(tb)
	s.outgrown(tb)
	<-time.After(lasting)
	s.daemon.kill(tb)
	s.lost.add(s.ledger(tb), readLedger(tb, copied))
	s.putBack(tb, copied)
}

// damageLedger overwrites pages of the ledger until that is noticed, and restores it from a backup.
func (s *soak) damageLedger(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	copied := s.backup(tb)
	s.outgrown(tb)
	<-time.After(lasting)
	began := time.Now()
	s.lost.add(s.ledger(tb), readLedger(tb, copied))
	s.damage(tb)
	<-time.After(lasting)
	s.daemon.kill(tb)
	s.lost.spans = append(s.lost.spans, span{began, time.Now()})
	s.putBack(tb, copied)
}

// damage overwrites pages until stintd says that its ledger is damaged. What it remembers it may write back.
func (s *soak) damage(tb testing.TB) {
	tb.Helper()
	file := s.file("data", sqlite.File)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < time.Minute; <-tick.C {
		if strings.Contains(string(read(tb, file)), `"lane":"`) {
			spoil(tb, file, `"lane":"`)
		}
		ready, err := download(tb.Context(), "http://"+s.http+"/readyz")
		if s.daemon.ended() || err == nil && strings.Contains(string(ready), "damaged") {
			return
		}
	}
	tb.Fatalf("stintd does not notice that its ledger is damaged; it said:\n%s", tail(s.daemon.log(tb)))
}

// backup makes a copy of the ledger.
func (s *soak) backup(tb testing.TB) (copied string) {
	tb.Helper()
	copied = s.file("copied.db")
	if code, _, errs := run(tb, s.dir, "backup", "--config", s.file("stint.hcl"), "--out", copied); code != 0 {
		tb.Fatalf("backup exits with %d: %s", code, errs)
	}
	return copied
}

// outgrown waits until a checkpoint of what came after a copy is beside the ledger: without one nobody could tell the copy from
// it. After a disk that was full, the file of checkpoints goes on seconds later only.
func (s *soak) outgrown(tb testing.TB) {
	tb.Helper()
	size := int64(-1)
	eventually(tb, dies, func() error {
		if size < 0 {
			var err error
			if size, err = s.logSize(tb); err != nil {
				return err
			}
		}
		text, err := audit.NewestCheckpoint(s.file("log", "checkpoints.log"))
		if err != nil {
			return err
		}
		if known, err := audit.ReadCheckpoint(text); err != nil || known.Size > size {
			return err
		}
		return fmt.Errorf("%w: no checkpoint of more than %d records is written", errNotYet, size)
	})
}

// putBack starts stintd on a copy. It is held until an administrator, who has looked, confirms it.
func (s *soak) putBack(tb testing.TB, copied string) {
	tb.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(s.file("data", sqlite.File+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			tb.Fatal(err)
		}
	}
	if err := os.Rename(copied, s.file("data", sqlite.File)); err != nil {
		tb.Fatal(err)
	}
	s.restores++
	s.daemon = s.start(tb)
	admin := s.admin(tb).Admin()
	held, err := admin.GetRestore(tb.Context(), &stintv1.GetRestoreRequest{})
	if err != nil || !held.GetHeld() {
		tb.Fatalf("stintd does not hold an older copy: %v, %v", held, err)
	}
	s.tells("RESTORE_UNCONFIRMED")
	// What it does not know is listed, as far as the backends answer, and revoked in the end.
	_, _ = admin.Reconcile(tb.Context(), &stintv1.ReconcileRequest{})
	eventually(tb, time.Minute, func() error {
		after, err := admin.ConfirmRestore(tb.Context(), &stintv1.ConfirmRestoreRequest{Size: held.GetSize(), Comment: "a soak"})
		if err == nil && (after.GetHeld() || after.GetEpoch() < 2) {
			err = fmt.Errorf("confirmed, it says %v", after)
		}
		return err
	})
}
