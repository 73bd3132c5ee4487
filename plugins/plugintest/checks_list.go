package plugintest

import (
	"errors"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// clockSlack is how far the backend's clock may be from the suite's.
const clockSlack = 5 * time.Second

// list expects a credential in the list while it lives, and not afterwards.
func (s *suite) list(t *testing.T) {
	lister, ok := s.Backend.(plugins.Lister)
	if !ok {
		t.Skip("it does not list")
	}
	other, got := s.issue(t), s.issue(t)
	key := lister.Key(got.cred.Handle)
	if key == "" || key == lister.Key(other.cred.Handle) {
		t.Errorf("Key of two credentials: %q, %q", key, lister.Key(other.cred.Handle))
	}
	found := s.listed(t, lister, key)
	if found == nil {
		t.Fatalf("%s is alive and not listed", got.cred.PublicRef)
	}
	s.checkFound(t, lister, got, *found)
	if s.info.Ends != plugins.EndsRevocable {
		return
	}
	held := got.held()
	held.Lease, held.Handle = plugins.LeaseID{}, found.Handle // all that is known of what nobody here issued
	s.checkEnded(t, got, s.revoke(t, held))
	if s.listed(t, lister, key) != nil {
		t.Errorf("%s is revoked and still listed", got.cred.PublicRef)
	}
	for _, h := range []plugins.Handle{found.Handle, got.cred.Handle} {
		if _, err := lister.Find(s.context(t), h); !errors.Is(err, plugins.ErrGone) {
			t.Errorf("Find of what is revoked said %v, want ErrGone", err)
		}
	}
	if s.listed(t, lister, lister.Key(other.cred.Handle)) == nil {
		t.Errorf("%s is gone from the list after another was revoked", other.cred.PublicRef)
	}
}

// checkFound holds what was listed against what was issued, by the handle of either.
func (s *suite) checkFound(t *testing.T, lister plugins.Lister, got issued, listed plugins.Found) {
	t.Helper()
	if listed.PublicRef == "" {
		t.Error("what is listed has no public reference")
	}
	for _, h := range []plugins.Handle{listed.Handle, got.cred.Handle} {
		found, err := lister.Find(s.context(t), h)
		if err != nil {
			t.Fatalf("Find: %v", err)
		}
		if lister.Key(found.Handle) != lister.Key(got.cred.Handle) || found.PublicRef != listed.PublicRef {
			t.Errorf("Find returned %q, %q; listed was %q, %q", lister.Key(found.Handle), found.PublicRef, lister.Key(listed.Handle), listed.PublicRef)
		}
		if age := time.Since(found.IssuedAt); age < -clockSlack || age > s.TTL {
			t.Errorf("found as issued at %v, which is %s ago", found.IssuedAt, age)
		}
		if found.NotAfter.Sub(got.cred.NotAfter).Abs() > clockSlack {
			t.Errorf("found to end at %v, issued to end at %v", found.NotAfter, got.cred.NotAfter)
		}
	}
}

// listed returns what is listed under a key, or nil, and checks that nothing is listed twice.
func (s *suite) listed(t *testing.T, lister plugins.Lister, key string) *plugins.Found {
	t.Helper()
	seen := map[string]*plugins.Found{}
	for found, err := range lister.List(s.context(t), s.Role) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		k := lister.Key(found.Handle)
		if k == "" || seen[k] != nil {
			t.Errorf("listed with the key %q, which is empty or was listed before", k)
		}
		seen[k] = &found
	}
	return seen[key]
}

// listBroken lists and finds without the backend.
func (s *suite) listBroken(t *testing.T, got issued) {
	t.Helper()
	lister, ok := s.Backend.(plugins.Lister)
	if !ok {
		return
	}
	var last error
	for _, err := range lister.List(s.context(t), s.Role) {
		last = err
	}
	if !errors.Is(last, plugins.ErrUnavailable) {
		t.Errorf("List without the backend ended with %v, want ErrUnavailable", last)
	}
	if _, err := lister.Find(s.context(t), got.cred.Handle); err == nil || errors.Is(err, plugins.ErrGone) {
		t.Errorf("Find without the backend said %v", err)
	}
}
