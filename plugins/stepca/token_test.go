package stepca

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stint-dev/stint/plugins/secret"
)

func newJWK(t *testing.T) []byte {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: newKey(t), KeyID: "k1"})
	must(t, err)
	return text
}

// TestTokenIsBound reads a token for one request: bound to it, used once, and over with its deadline.
func TestTokenIsBound(t *testing.T) {
	jwk := newJWK(t)
	var public jose.JSONWebKey
	must(t, json.Unmarshal(jwk, &public))
	tokens, err := newTokens("stint", secret.New(jwk))
	must(t, err)
	s, err := embeddedConfig("x").check()
	must(t, err)
	l, err := s.newLeaf(newRequest(t), time.Now())
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	seen := map[string]bool{}
	for range 2 {
		text, err := tokens.forSign(ctx, "https://ca/1.0/sign", l, "")
		must(t, err)
		parsed, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
		must(t, err)
		var c claims
		must(t, parsed.Claims(public.Public().Key, &c))
		deadline, _ := ctx.Deadline()
		if c.Expiry.Time().After(deadline) || c.Issuer != "stint" || !c.Audience.Contains("https://ca/1.0/sign") || parsed.Headers[0].KeyID != "k1" {
			t.Errorf("claims %+v, headers %+v", c.Claims, parsed.Headers)
		}
		sum := sha256.Sum256(l.csr.Raw)
		if c.Confirmation.Fingerprint != base64.RawURLEncoding.EncodeToString(sum[:]) {
			t.Error("the token is not bound to the request")
		}
		seen[c.ID] = true
	}
	if len(seen) != 2 {
		t.Error("two tokens with one jti")
	}
}

// TestKeysOfTokens takes the kinds that step-ca verifies and no public ones.
func TestKeysOfTokens(t *testing.T) {
	_, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	text := func(key jose.JSONWebKey) secret.Value {
		b, err := json.Marshal(key)
		must(t, err)
		return secret.New(b)
	}
	ec := newKey(t)
	for name, c := range map[string]struct {
		key secret.Value
		ok  bool
	}{
		"P-256":   {text(jose.JSONWebKey{Key: ec, KeyID: "k"}), true},
		"Ed25519": {text(jose.JSONWebKey{Key: private, KeyID: "k"}), true},
		"no kid":  {text(jose.JSONWebKey{Key: ec}), false},
		"public":  {text(jose.JSONWebKey{Key: ec.Public(), KeyID: "k"}), false},
		"shared":  {text(jose.JSONWebKey{Key: []byte("0123456789abcdef"), KeyID: "k"}), false},
		"garbage": {secret.FromString("{hush"), false},
		"empty":   {secret.Value{}, false},
	} {
		if _, err := newTokens("p", c.key); (err == nil) != c.ok || (err != nil && strings.Contains(err.Error(), "hush")) {
			t.Errorf("%s: %v, want ok %t", name, err, c.ok)
		}
	}
}
