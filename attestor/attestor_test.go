package attestor_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
)

var now = time.Date(2026, 3, 1, 10, 14, 7, 0, time.UTC)

func TestIdentityCheckTime(t *testing.T) {
	t.Parallel()
	id := attestor.Identity{
		ID: spiffeid.RequireFromString("spiffe://example.org/a"), Method: attestor.MethodX509,
		NotBefore: now, NotAfter: now.Add(time.Minute),
	}
	for _, c := range []struct {
		name string
		at   time.Time
		kind error
		text string
	}{
		{"first instant", now, nil, ""},
		{"last instant", now.Add(time.Minute), nil, ""},
		{"too early", now.Add(-3 * time.Second), attestor.ErrNotYetValid, "valid in 3 s"},
		{"just after", now.Add(time.Minute + 40*time.Millisecond), attestor.ErrExpired, "40 ms ago"},
		{"after", now.Add(72 * time.Second), attestor.ErrExpired, "expired 12 s ago; reconnect; if it repeats, check clocks (broker says 10:15:19Z)"},
		{"long after", now.Add(time.Hour), attestor.ErrExpired, "59m0s ago"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := id.CheckTime(c.at)
			if !errors.Is(err, c.kind) {
				t.Fatalf("got %v, want kind %v", err, c.kind)
			}
			var refusal *attestor.Error
			if c.kind != nil && (!errors.As(err, &refusal) || !strings.Contains(refusal.Message, c.text)) {
				t.Errorf("message of %v lacks %q", err, c.text)
			}
		})
	}
}

func TestLocalIdentity(t *testing.T) {
	t.Parallel()
	id := attestor.Identity{Method: attestor.MethodLocal, Local: attestor.Local{UID: 1000}}
	if got := id.String(); got != "uid:1000" {
		t.Errorf("String() = %q", got)
	}
	if err := id.CheckTime(now); err != nil {
		t.Errorf("a local peer does not expire: %v", err)
	}
	if id.IsZero() || !(attestor.Identity{}).IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestIdentityAge(t *testing.T) {
	t.Parallel()
	id := attestor.Identity{Method: attestor.MethodX509, NotBefore: now}
	if got := id.Age(now.Add(time.Minute)); got != time.Minute {
		t.Errorf("Age = %v", got)
	}
	if got := id.Age(now.Add(-time.Minute)); got != 0 {
		t.Errorf("Age with a clock behind = %v", got)
	}
}

func TestDomains(t *testing.T) {
	t.Parallel()
	own := spiffeid.RequireTrustDomainFromString("example.org")
	other := spiffeid.RequireTrustDomainFromString("other.org")
	task := spiffeid.RequireTrustDomainFromString("tasks.example.org")
	d, err := attestor.NewDomains(own, task, own, other, other)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Accepted(); len(got) != 2 || got[0] != own || got[1] != other {
		t.Errorf("Accepted() = %v", got)
	}
	for td, want := range map[spiffeid.TrustDomain]error{
		own: nil, other: nil, task: attestor.ErrTaskDomain, {}: attestor.ErrForeignTrustDomain,
		spiffeid.RequireTrustDomainFromString("evil.org"): attestor.ErrForeignTrustDomain,
	} {
		if err := d.Check(td); !errors.Is(err, want) {
			t.Errorf("Check(%q) = %v, want %v", td.Name(), err, want)
		}
	}
	if err := (attestor.Domains{}).Check(own); !errors.Is(err, attestor.ErrForeignTrustDomain) {
		t.Errorf("zero value accepts: %v", err)
	}
}

func TestNewDomainsRefuses(t *testing.T) {
	t.Parallel()
	own := spiffeid.RequireTrustDomainFromString("example.org")
	other := spiffeid.RequireTrustDomainFromString("other.org")
	for name, f := range map[string]func() (attestor.Domains, error){
		"no own":           func() (attestor.Domains, error) { return attestor.NewDomains(spiffeid.TrustDomain{}, other) },
		"task is own":      func() (attestor.Domains, error) { return attestor.NewDomains(own, own) },
		"task is accepted": func() (attestor.Domains, error) { return attestor.NewDomains(own, other, other) },
		"empty federated":  func() (attestor.Domains, error) { return attestor.NewDomains(own, other, spiffeid.TrustDomain{}) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestErrorHoldsKindAndCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("the cause")
	err := error(attestor.Refuse(attestor.ErrUntrusted, "does not verify", cause))
	if !errors.Is(err, attestor.ErrUntrusted) || !errors.Is(err, cause) || errors.Is(err, attestor.ErrExpired) {
		t.Errorf("%v wraps the wrong things", err)
	}
	if got := err.Error(); !strings.Contains(got, "does not verify") || !strings.Contains(got, "the cause") {
		t.Errorf("Error() = %q", got)
	}
}
