// Package jwtsvid attests callers by a JWT-SVID that comes with each call (SPIFFE JWT-SVID), for agents behind
// proxies that end TLS. A token counts until it expires, as often as it is shown: SPIRE hands the same cached token
// out again and puts no jti in it, so there is nothing to know a replay by.
package jwtsvid

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/stint-dev/stint/attestor"
)

const (
	// MaxLifetime is the longest time between iat and exp that is accepted.
	MaxLifetime = 10 * time.Minute

	maxToken = 8 << 10          // bytes; a JWT-SVID has less than one kilobyte
	leeway   = 30 * time.Second // for an issuer whose clock is ahead; there is none at the end
)

// Attestor attests JWT-SVIDs. It is safe for concurrent use.
type Attestor struct {
	bundles  jwtbundle.Source
	domains  atomic.Pointer[attestor.Domains]
	audience string
}

// New returns an attestor that accepts the trust domains of domains, verifies against bundles, and takes tokens made
// for audience only (by convention the broker's SPIFFE ID).
func New(bundles jwtbundle.Source, domains attestor.Domains, audience string) (*Attestor, error) {
	if audience == "" {
		return nil, errors.New("jwt-svid: the audience is missing; without one, a token for anybody would do")
	}
	a := &Attestor{bundles: bundles, audience: audience}
	a.SetDomains(domains)
	return a, nil
}

// SetDomains changes which trust domains are accepted, from the next call on.
func (a *Attestor) SetDomains(domains attestor.Domains) { a.domains.Store(&domains) }

// Attest returns the identity that the token proves now.
func (a *Attestor) Attest(_ context.Context, e attestor.Evidence) (attestor.Identity, error) {
	if e.Token == "" {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrNoEvidence,
			"call with a JWT-SVID for "+a.audience+" in the header authorization: Bearer …", nil)
	}
	now := time.Now()
	claimed, err := a.read(e.Token, now)
	if err != nil {
		return attestor.Identity{}, err
	}
	// Up to here nothing was proven. The signature is over the same bytes, so what was read is what is proven.
	svid, err := jwtsvid.ParseAndValidate(e.Token, a.bundles, []string{a.audience})
	if err != nil {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrUntrusted,
			fmt.Sprintf("the JWT-SVID of %s does not verify against the bundle of %s", claimed.ID, claimed.ID.TrustDomain().Name()), err)
	}
	if svid.ID != claimed.ID {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrInvalid, "the JWT-SVID is ambiguous", nil)
	}
	return claimed, nil
}

// read checks everything but the signature, so that the refusal says what is wrong.
func (a *Attestor) read(token string, now time.Time) (attestor.Identity, error) {
	claims, err := parse(token)
	if err != nil {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrInvalid, "the token is no JWT-SVID", err)
	}
	id, err := spiffeid.FromString(claims.Subject)
	if err != nil || id.Path() == "" {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrInvalid, "the JWT-SVID's subject is no SPIFFE ID of a workload", err)
	}
	if err = a.domains.Load().Check(id.TrustDomain()); err != nil {
		return attestor.Identity{}, err
	}
	if !slices.Contains(claims.Audience, a.audience) {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrAudience,
			fmt.Sprintf("the JWT-SVID is for %q, not for %s", strings.Join(claims.Audience, " "), a.audience), nil)
	}
	issued, expires, err := lifetime(claims)
	if err != nil {
		return attestor.Identity{}, err
	}
	if err := attestor.CheckValidity(issued.Add(-leeway), expires, now); err != nil {
		return attestor.Identity{}, err
	}
	if issued.After(now) {
		issued = now // within the leeway
	}
	return attestor.Identity{ID: id, Method: attestor.MethodJWT, NotBefore: issued.UTC(), NotAfter: expires.UTC()}, nil
}

// parse returns the claims of a token, unproven.
func parse(token string) (jwt.Claims, error) {
	if len(token) > maxToken {
		return jwt.Claims{}, fmt.Errorf("it has %d bytes, at most %d are taken", len(token), maxToken)
	}
	// The algorithms that SPIFFE allows; go-jose's own text on failure is about the token and goes nowhere.
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512,
	})
	if err != nil {
		return jwt.Claims{}, errors.New("it does not parse as a signed JWT")
	}
	var claims jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return jwt.Claims{}, errors.New("its claims do not parse")
	}
	return claims, nil
}

// lifetime returns iat and exp, both of which must be there and not too far apart.
func lifetime(claims jwt.Claims) (issued, expires time.Time, err error) {
	if claims.IssuedAt == nil || claims.Expiry == nil {
		return time.Time{}, time.Time{}, attestor.Refuse(attestor.ErrInvalid, "the JWT-SVID lacks iat or exp", nil)
	}
	issued, expires = claims.IssuedAt.Time(), claims.Expiry.Time()
	if life := expires.Sub(issued); life > MaxLifetime {
		return time.Time{}, time.Time{}, attestor.Refuse(attestor.ErrInvalid,
			fmt.Sprintf("the JWT-SVID lives for %s, at most %s are accepted", life, MaxLifetime), nil)
	}
	return issued, expires, nil
}
