package jwtsvid_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/jwtsvid"
)

const audience = "spiffe://example.org/stint"

func TestAttest(t *testing.T) {
	t.Parallel()
	own := attestortest.NewDomain(t, "example.org", 0)
	friend := attestortest.NewDomain(t, "friend.org", 0)
	foreign := attestortest.NewDomain(t, "foreign.org", 0)
	impostor := attestortest.NewDomain(t, "example.org", 0)
	tasks := attestortest.NewDomain(t, "tasks.example.org", 0)
	// The source holds every bundle, so that the configured trust domains alone decide.
	source := attestortest.NewSource(t, own, "/stint", friend, foreign, tasks)
	a, err := jwtsvid.New(source, attestortest.Domains(t, own, friend), audience)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		name   string
		domain *devdomain.Domain
		r      devdomain.JWTRequest
		want   error
	}{
		{"own", own, devdomain.JWTRequest{}, nil},
		{"federated", friend, devdomain.JWTRequest{}, nil},
		{"ten minutes", own, devdomain.JWTRequest{TTL: 10 * time.Minute}, nil},
		{"issuer's clock a little ahead", own, devdomain.JWTRequest{IssuedAt: now.Add(10 * time.Second)}, nil},
		{"one of several audiences", own, devdomain.JWTRequest{Audience: []string{"x", audience}}, nil},
		{"foreign", foreign, devdomain.JWTRequest{}, attestor.ErrForeignTrustDomain},
		{"task domain", tasks, devdomain.JWTRequest{}, attestor.ErrTaskDomain},
		{"another audience", own, devdomain.JWTRequest{Audience: []string{"spiffe://example.org/vault"}}, attestor.ErrAudience},
		{"too long-lived", own, devdomain.JWTRequest{TTL: 10*time.Minute + time.Second}, attestor.ErrInvalid},
		{"no iat", own, devdomain.JWTRequest{NoIAT: true}, attestor.ErrInvalid},
		{"expired within go-jose's leeway", own, devdomain.JWTRequest{IssuedAt: now.Add(-time.Minute), TTL: 50 * time.Second}, attestor.ErrExpired},
		{"from the future", own, devdomain.JWTRequest{IssuedAt: now.Add(time.Minute)}, attestor.ErrNotYetValid},
		{"wrong key", impostor, devdomain.JWTRequest{}, attestor.ErrUntrusted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.r.ID = attestortest.ID(t, c.domain, "/agent/a")
			if c.r.Audience == nil {
				c.r.Audience = []string{audience}
			}
			token, err := c.domain.IssueJWT(c.r)
			if err != nil {
				t.Fatal(err)
			}
			id, err := a.Attest(t.Context(), attestor.Evidence{Token: token})
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want == nil && (id.ID != c.r.ID || id.Method != attestor.MethodJWT || id.CheckTime(time.Now()) != nil) {
				t.Errorf("got %+v", id)
			}
			if c.want != nil && (!id.IsZero() || strings.Contains(err.Error(), token)) {
				t.Errorf("refusal carries an identity or the token: %v, %v", id, err)
			}
		})
	}
}

func TestAttestRefusesWhatIsNoToken(t *testing.T) {
	t.Parallel()
	own := attestortest.NewDomain(t, "example.org", 0)
	a, err := jwtsvid.New(attestortest.NewSource(t, own, "/stint"), attestortest.Domains(t, own), audience)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := own.IssueJWT(devdomain.JWTRequest{ID: spiffeid.RequireFromString("spiffe://example.org"), Audience: []string{audience}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"empty":               {"", attestor.ErrNoEvidence},
		"junk":                {"junk", attestor.ErrInvalid},
		"unsigned":            {"eyJhbGciOiJub25lIn0.eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy9hIn0.", attestor.ErrInvalid},
		"huge":                {strings.Repeat("x", 9000), attestor.ErrInvalid},
		"trust domain itself": {whole, attestor.ErrInvalid},
	} {
		if _, err := a.Attest(t.Context(), attestor.Evidence{Token: c.token}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := jwtsvid.New(nil, attestor.Domains{}, ""); err == nil {
		t.Error("no audience is accepted")
	}
}

// FuzzAttest holds that no bytes but a signed token make an identity.
func FuzzAttest(f *testing.F) {
	own := attestortest.NewDomain(f, "example.org", 0)
	a, err := jwtsvid.New(attestortest.NewSource(f, own, "/stint"), attestortest.Domains(f, own), audience)
	if err != nil {
		f.Fatal(err)
	}
	impostor := attestortest.NewDomain(f, "example.org", 0)
	forged, err := impostor.IssueJWT(devdomain.JWTRequest{ID: attestortest.ID(f, own, "/a"), Audience: []string{audience}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(forged)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		id, err := a.Attest(t.Context(), attestor.Evidence{Token: token})
		var refusal *attestor.Error
		if !errors.As(err, &refusal) || !id.IsZero() {
			t.Fatalf("got %v, %v", id, err)
		}
	})
}
