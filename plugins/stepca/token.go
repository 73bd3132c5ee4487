package stepca

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stint-dev/stint/plugins/secret"
)

// tokenLife is the longest validity of a one-time token. step-ca accepts it for tokenLeeway longer.
const (
	tokenLife   = 10 * time.Second
	tokenLeeway = time.Minute
)

var errJWK = errors.New("key is no private JWK (RFC 7517) with a kid, of P-256, P-384, P-521, Ed25519 or RSA")

// tokens signs the one-time tokens that step-ca takes as authorisation (provisioner type JWK).
type tokens struct {
	signer      jose.Signer
	keyID       string
	provisioner string
}

// claims is a one-time token's payload.
type claims struct {
	jwt.Claims

	// SANs are the alternative names that the certificate gets.
	SANs []string `json:"sans,omitempty"`
	// Confirmation binds the token to one request to sign.
	Confirmation *confirmation `json:"cnf,omitempty"`
	// Stint is what ProvisionerTemplate reads.
	Stint *stintClaim `json:"stint,omitempty"`
}

type confirmation struct {
	Fingerprint string `json:"x5rt#S256"`
}

// stintClaim is what the template makes a certificate of.
type stintClaim struct {
	Serial     string           `json:"serial"`
	CommonName string           `json:"cn,omitempty"`
	Names      []string         `json:"sans"`
	Usages     []string         `json:"ekus"`
	Extensions []stintExtension `json:"extensions"`
	CRLs       []string         `json:"crls,omitempty"`
}

type stintExtension struct {
	ID       string `json:"id"`
	Critical bool   `json:"critical"`
	Value    []byte `json:"value"`
}

func newTokens(provisioner string, key secret.Value) (*tokens, error) {
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(key.Expose(), &jwk); err != nil { // its text could quote the key: not passed on
		return nil, errJWK
	}
	algorithm := algorithmOf(jwk)
	if algorithm == "" || jwk.KeyID == "" || jwk.IsPublic() || !jwk.Valid() {
		return nil, errJWK
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jwk}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, errJWK
	}
	return &tokens{signer: signer, keyID: jwk.KeyID, provisioner: provisioner}, nil
}

func algorithmOf(jwk jose.JSONWebKey) jose.SignatureAlgorithm {
	switch key := jwk.Key.(type) {
	case *ecdsa.PrivateKey:
		return map[int]jose.SignatureAlgorithm{256: jose.ES256, 384: jose.ES384, 521: jose.ES512}[key.Params().BitSize]
	case ed25519.PrivateKey:
		return jose.EdDSA
	case *rsa.PrivateKey:
		return jose.RS256
	}
	return ""
}

// forSign authorises exactly one request to sign, for as long as the context has time.
func (t *tokens) forSign(ctx context.Context, audience string, l *leaf, crlURL string) (string, error) {
	return t.sign(t.claimsFor(ctx, audience, l, crlURL))
}

func (t *tokens) claimsFor(ctx context.Context, audience string, l *leaf, crlURL string) claims {
	c := t.claims(ctx, audience)
	c.Subject = l.uri.String() // step-ca wants one, and a request's common name among subject and sans
	if l.commonName != "" {
		c.Subject = l.commonName
	}
	c.SANs = append([]string{l.uri.String()}, l.dns...)
	sum := sha256.Sum256(l.csr.Raw)
	c.Confirmation = &confirmation{Fingerprint: base64.RawURLEncoding.EncodeToString(sum[:])}
	c.Stint = &stintClaim{
		Serial: serial(l.lease).String(), CommonName: l.commonName, Names: c.SANs,
		Extensions: []stintExtension{{ID: l.task.Id.String(), Value: l.task.Value}},
	}
	if crlURL != "" {
		c.Stint.CRLs = []string{crlURL}
	}
	for _, usage := range l.usages {
		if usage == x509.ExtKeyUsageServerAuth {
			c.Stint.Usages = append(c.Stint.Usages, "serverAuth")
		} else {
			c.Stint.Usages = append(c.Stint.Usages, "clientAuth")
		}
	}
	return c
}

// forRevoke authorises the revocation of one serial number.
func (t *tokens) forRevoke(ctx context.Context, audience string, number *big.Int) (string, error) {
	c := t.claims(ctx, audience)
	c.Subject = number.String()
	return t.sign(c)
}

func (t *tokens) claims(ctx context.Context, audience string) claims {
	now := time.Now()
	end := now.Add(tokenLife)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(end) {
		end = deadline
	}
	return claims{Claims: jwt.Claims{
		ID: rand.Text(), Issuer: t.provisioner, Audience: jwt.Audience{audience},
		// rounded up, because step-ca refuses what was signed in the second of its start, before it
		IssuedAt: jwt.NewNumericDate(now.Add(time.Second)), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(end),
	}}
}

func (t *tokens) sign(c claims) (string, error) {
	token, err := jwt.Signed(t.signer).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign one-time token: %w", err)
	}
	return token, nil
}
