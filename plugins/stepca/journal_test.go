package stepca

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
)

// listed returns what a backend has signed, and the errors in the list.
func listed(tb testing.TB, b *Backend) (map[plugins.LeaseID]plugins.Found, []error) {
	tb.Helper()
	all := map[plugins.LeaseID]plugins.Found{}
	var faults []error
	for f, err := range b.Issued(context.WithoutCancel(tb.Context())) {
		if err != nil {
			faults = append(faults, err)
			continue
		}
		lease, err := leaseOf(plugins.Held{Handle: f.Handle})
		if err != nil {
			tb.Fatal(err)
		}
		all[lease] = f
	}
	return all, faults
}

// wantListed expects certificates in the list, and no error.
func wantListed(tb testing.TB, b *Backend, want ...plugins.LeaseID) {
	tb.Helper()
	all, faults := listed(tb, b)
	if len(faults) > 0 || len(all) != len(want) {
		tb.Errorf("%d are listed, want %d; it ends with %v", len(all), len(want), faults)
	}
	for _, lease := range want {
		if _, ok := all[lease]; !ok {
			tb.Errorf("%s is not listed", lease)
		}
	}
}

func journalOf(tb testing.TB, b *Backend) *journal {
	tb.Helper()
	e, ok := b.ca.(*embedded)
	if !ok {
		tb.Fatal("not embedded")
	}
	return e.journal
}

// fileOf is the file that holds a certificate.
func fileOf(tb testing.TB, b *Backend, req plugins.Request) string {
	tb.Helper()
	return filepath.Join(journalOf(tb, b).dir, req.NotAfter.UTC().Format(hourLayout))
}

// issueUntil issues a certificate that ends then.
func issueUntil(tb testing.TB, b *Backend, notAfter time.Time) plugins.Request {
	tb.Helper()
	req := newRequest(tb)
	req.NotAfter = notAfter
	issue(tb, b, req)
	return req
}

// TestJournalOutlivesTheProcess lists what was signed, over a restart, whichever hour it ends in.
func TestJournalOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	b := newEmbedded(t, dir)
	wantListed(t, b)
	now := time.Now()
	soon, late := issueUntil(t, b, now.Add(5*time.Minute)), issueUntil(t, b, now.Add(20*time.Hour))
	for range 2 {
		wantListed(t, b, soon.Lease, late.Lease)
		b = newEmbedded(t, dir)
	}
	all, _ := listed(t, b)
	f := all[late.Lease]
	if !f.NotAfter.Equal(late.NotAfter.Truncate(time.Second)) || f.IssuedAt.Sub(now).Abs() > time.Minute || f.PublicRef != "serial "+late.Lease.String() {
		t.Errorf("%+v", f)
	}
	later := journalOf(t, b)
	n := 0
	for f, err := range later.issued(t.Context(), now.Add(time.Hour)) {
		if n++; err != nil || f.Handle != plugins.Handle(late.Lease.String()) {
			t.Errorf("an hour later there is %v, %v", f, err)
		}
	}
	if n != 1 {
		t.Errorf("an hour later there are %d", n)
	}
}

// TestJournalCutOff lets lines be cut off, as a kill leaves them: they count for nothing, and what follows them counts.
func TestJournalCutOff(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	end := time.Now().Add(5 * time.Minute)
	first := issueUntil(t, b, end)
	whole := issuance{lease: newLease(t), issued: time.Now(), notAfter: end}.line()
	want := []plugins.LeaseID{first.Lease}
	for _, cut := range []string{"", whole[:1], whole[:40], whole[:len(whole)-1], whole[:50] + "\x00\x00\x00", "\x00\x00"} {
		appendTo(t, fileOf(t, b, first), "\n"+cut)
		wantListed(t, b, want...)
		want = append(want, issueUntil(t, b, end).Lease)
		wantListed(t, b, want...)
	}
}

// TestJournalDamaged expects an error, and all that can be read before it.
func TestJournalDamaged(t *testing.T) {
	end := time.Now().Add(5 * time.Minute)
	whole := issuance{lease: newLease(t), issued: time.Now(), notAfter: end}.line()
	for name, line := range map[string]string{
		"text":             "hello",
		"no hex":           "X" + whole[1:],
		"another hour":     issuance{lease: newLease(t), issued: time.Now(), notAfter: end.Add(2 * time.Hour)}.line(),
		"no time":          strings.Replace(whole, "T", "t", 1),
		"the end of one":   whole[5:],
		"two in one":       whole + whole,
		"a hole in it":     whole[:30] + "\x00\x00\x00" + whole[33:],
		"something at end": whole + " ",
	} {
		t.Run(name, func(t *testing.T) {
			b := newEmbedded(t, t.TempDir())
			first := issueUntil(t, b, end)
			appendTo(t, fileOf(t, b, first), line+"\n")
			second := issueUntil(t, b, end)
			all, faults := listed(t, b)
			if len(all) != 2 || len(faults) != 1 || !errors.Is(faults[0], plugins.ErrMisconfigured) || errors.Is(faults[0], errors.ErrUnsupported) {
				t.Errorf("%d are listed, and it ends with %v", len(all), faults)
			}
			if _, ok := all[second.Lease]; !ok {
				t.Error("what was signed after the damage is not listed")
			}
		})
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, errors.Join(err, f.Close()))
}

// TestJournalCannotBeWritten refuses to issue: by a full disk, which leaves half of a line, and without the directory. What was
// signed and dropped is on the next CRL, and the disk mended, all goes on.
func TestJournalCannotBeWritten(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	j := journalOf(t, b)
	j.settings.sync = func(f *os.File) error {
		info, err := f.Stat()
		return errors.Join(err, f.Truncate(info.Size()-20), syscall.ENOSPC)
	}
	req := newRequest(t)
	refuses := func() {
		t.Helper()
		if _, err := b.Issue(t.Context(), req); !errors.Is(err, plugins.ErrNotIssued) || !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("issue said %v, want ErrNotIssued and ErrUnavailable", err)
		}
	}
	refuses()
	j.settings.sync = (*os.File).Sync
	wantListed(t, b)
	next := newRequest(t)
	issue(t, b, next)
	wantListed(t, b, next.Lease)
	_, err := b.Revoke(t.Context(), plugins.Held{Lease: next.Lease, NotAfter: next.NotAfter})
	must(t, err)
	if !b.current(t).holds(req.Lease) {
		t.Error("what was signed and dropped is not on the CRL that came after it")
	}

	must(t, os.RemoveAll(j.dir))
	req = newRequest(t)
	refuses()
	if all, faults := listed(t, b); len(all) != 0 || len(faults) != 1 || errors.Is(faults[0], errors.ErrUnsupported) {
		t.Errorf("a journal that is gone lists %v, and ends with %v", all, faults)
	}
}

// TestJournalBeginsLate lists what it knows and says since when, until nothing from before can be alive: after an upgrade, or
// when the journal was lost. So it is with an operator's own CA, which may have signed elsewhere before.
func TestJournalBeginsLate(t *testing.T) {
	dir := t.TempDir()
	issueUntil(t, newEmbedded(t, dir), time.Now().Add(time.Hour))
	must(t, os.RemoveAll(filepath.Join(dir, journalDir)))
	cfg := embeddedConfig(t.TempDir())
	p := newPKI(t)
	own(p.cert, p.key, p.root)(&cfg)
	operators, err := New(cfg, zap.NewNop())
	must(t, err)
	for name, b := range map[string]*Backend{"lost": newEmbedded(t, dir), "lost, and restarted": newEmbedded(t, dir), "operator's": operators} {
		req := newRequest(t)
		issue(t, b, req)
		all, faults := listed(t, b)
		if _, ok := all[req.Lease]; !ok || len(faults) != 1 {
			t.Fatalf("%s: %v are listed, and it ends with %v", name, all, faults)
		}
		partial, ok := errors.AsType[*plugins.PartialError](faults[0])
		if !ok || !errors.Is(partial, errors.ErrUnsupported) || time.Since(partial.Since).Abs() > time.Minute {
			t.Fatalf("%s: it ends with %v", name, faults[0])
		}
		for _, err := range journalOf(t, b).issued(t.Context(), partial.Since.Add(b.settings.MaxTTL)) {
			t.Errorf("%s: when nothing from before is alive, it ends with %v", name, err)
		}
	}
}

// TestJournalForgets removes the files of hours that are past, and keeps what a clock that is set back brings to life.
func TestJournalForgets(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	j := journalOf(t, b)
	req := newRequest(t)
	issue(t, b, req)
	over := req.NotAfter.Truncate(time.Hour).Add(time.Hour)
	must(t, j.prune(over.Add(keepExpired)))
	wantListed(t, b, req.Lease)
	must(t, j.prune(over.Add(keepExpired+time.Second)))
	wantListed(t, b)
	issue(t, b, newRequest(t))
	if hours, err := j.hours(); err != nil || len(hours) != 1 {
		t.Errorf("files %v, %v", hours, err)
	}
}

// TestJournalShared lets many issues share few writes, and loses none.
func TestJournalShared(t *testing.T) {
	b := newEmbedded(t, t.TempDir())
	var syncs atomic.Int64
	gate := make(chan struct{})
	journalOf(t, b).settings.sync = func(f *os.File) error {
		if syncs.Add(1) == 1 {
			<-gate
		}
		return f.Sync()
	}
	const n = 64
	end := time.Now().Add(5 * time.Minute)
	var all []plugins.LeaseID
	var group sync.WaitGroup
	for range n {
		req := newRequest(t)
		req.NotAfter = end
		all = append(all, req.Lease)
		group.Go(func() {
			if _, err := b.Issue(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	deadline, tick := time.Now().Add(20*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for journalOf(t, b).group.waiting() < n-1 && time.Now().Before(deadline) {
		<-tick.C
	}
	close(gate)
	group.Wait()
	if got := syncs.Load(); got > 2 {
		t.Errorf("%d issues took %d writes", n, got)
	}
	wantListed(t, b, all...)
}

func (g *group[T]) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		return 0
	}
	return len(g.open.items)
}
