package plugintest

import (
	"errors"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// register expects a certificate in the list of what was signed until it expires, also when it is revoked; and that it can be
// ended by what the list says.
func (s *suite) register(t *testing.T) {
	register, ok := s.Backend.(plugins.Register)
	if !ok {
		t.Skip("it keeps no list of what it has signed")
	}
	other, got := s.issue(t), s.issue(t)
	found, listed := s.signed(t, register)[got.req.Lease.String()]
	if !listed {
		t.Fatalf("%s was issued and is not listed", got.cred.PublicRef)
	}
	if age := time.Since(found.IssuedAt); found.PublicRef == "" || age < -clockSlack || age > s.TTL {
		t.Errorf("listed as %q, issued %s ago", found.PublicRef, age)
	}
	if found.NotAfter.Sub(got.cred.NotAfter).Abs() > clockSlack {
		t.Errorf("listed to end at %v, issued to end at %v", found.NotAfter, got.cred.NotAfter)
	}
	if s.info.Ends == plugins.EndsRevocable {
		s.checkEnded(t, got, s.revoke(t, plugins.Held{Handle: found.Handle, NotAfter: found.NotAfter})) // all that is known of a stranger
	}
	after := s.signed(t, register)
	for _, one := range []issued{other, got} {
		if _, listed := after[one.req.Lease.String()]; !listed {
			t.Errorf("%s has not expired and left the list", one.cred.PublicRef)
		}
	}
}

// signed returns what is listed, by serial number.
func (s *suite) signed(t *testing.T, register plugins.Register) map[string]plugins.Found {
	t.Helper()
	all := map[string]plugins.Found{}
	for found, err := range register.Issued(s.context(t)) {
		if _, partial := errors.AsType[*plugins.PartialError](err); partial {
			continue
		}
		if err != nil {
			t.Fatalf("Issued: %v", err)
		}
		all[string(found.Handle)] = found
	}
	return all
}
