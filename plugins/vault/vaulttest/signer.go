package vaulttest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stint-dev/stint/plugins/secret"
)

// svidLife is how long a JWT-SVID lives: the five minutes of SPIRE.
const svidLife = 5 * time.Minute

// Signer signs JWT-SVIDs (SPIFFE JWT-SVID section 3) of one SPIFFE ID with a key of its own.
type Signer struct {
	id  string
	key *ecdsa.PrivateKey
}

// NewSigner makes a Signer with a new P-256 key.
func NewSigner(tb testing.TB, spiffeID string) *Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return &Signer{id: spiffeID, key: key}
}

// Source returns a fresh JWT-SVID. It is a vault.JWTAuth's Source.
func (s *Signer) Source(_ context.Context, audience string) (secret.Value, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, nil)
	if err != nil {
		return secret.Value{}, fmt.Errorf("make signer: %w", err)
	}
	now := time.Now()
	text, err := jwt.Signed(signer).Claims(jwt.Claims{
		Subject: s.id, Audience: jwt.Audience{audience}, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(svidLife)),
	}).Serialize()
	if err != nil {
		return secret.Value{}, fmt.Errorf("sign JWT-SVID: %w", err)
	}
	return secret.FromString(text), nil
}

// PublicKey returns the key that verifies the JWT-SVIDs, in PEM.
func (s *Signer) PublicKey(tb testing.TB) string {
	tb.Helper()
	return publicPEM(tb, s.key.Public())
}

func publicPEM(tb testing.TB, key crypto.PublicKey) string {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
