package devdomain

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// X509Request says what an X.509-SVID issued directly is like. Unlike the Workload API it signs what it is told, so
// that tests can have SVIDs that are expired, foreign or otherwise wrong.
type X509Request struct {
	ID        spiffeid.ID
	TTL       time.Duration      // from now; negative for one that has expired; 0 means the domain's SVIDTTL
	DNSNames  []string           // DNS SANs
	IPs       []net.IP           // IP SANs
	ExtUsages []x509.ExtKeyUsage // nil means serverAuth and clientAuth
}

// IssueX509 signs an X.509-SVID with a new P-256 key.
func (d *Domain) IssueX509(r X509Request) (*x509svid.SVID, error) {
	if r.TTL == 0 {
		r.TTL = d.config.SVIDTTL
	}
	if r.ExtUsages == nil {
		r.ExtUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue x509-svid: %w", err)
	}
	template, err := r.template(time.Now())
	if err != nil {
		return nil, fmt.Errorf("issue x509-svid: %w", err)
	}
	a := d.view().authority
	der, err := x509.CreateCertificate(rand.Reader, template, a.caCert, key.Public(), a.caKey)
	if err != nil {
		return nil, fmt.Errorf("issue x509-svid: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue x509-svid: %w", err)
	}
	return &x509svid.SVID{ID: r.ID, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, nil
}

// template returns the certificate to sign. Its end is rounded up to the second that the encoding can hold.
func (r X509Request) template(now time.Time) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(r.TTL + time.Second - time.Nanosecond).Truncate(time.Second)
	notBefore := now.Add(-backdate)
	if notBefore.After(notAfter) {
		notBefore = notAfter.Add(-backdate)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Stint development"}},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		URIs:         []*url.URL{r.ID.URL()},
		DNSNames:     r.DNSNames,
		IPAddresses:  r.IPs,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  r.ExtUsages,
		// A leaf says that it is no authority.
		BasicConstraintsValid: true,
	}, nil
}

// JWTRequest says what a JWT-SVID issued directly is like.
type JWTRequest struct {
	ID       spiffeid.ID
	Audience []string
	IssuedAt time.Time     // zero means now
	TTL      time.Duration // from IssuedAt; 0 means 5 minutes
	NoIAT    bool          // leaves the iat claim out
}

// IssueJWT signs a JWT-SVID (ES256) without a jti, as SPIRE does by default.
func (d *Domain) IssueJWT(r JWTRequest) (string, error) {
	if r.IssuedAt.IsZero() {
		r.IssuedAt = time.Now()
	}
	if r.TTL == 0 {
		r.TTL = defaultJWTTTL
	}
	claims := jwt.Claims{
		Subject:  r.ID.String(),
		Audience: r.Audience,
		Expiry:   jwt.NewNumericDate(r.IssuedAt.Add(r.TTL)),
		IssuedAt: jwt.NewNumericDate(r.IssuedAt),
	}
	if r.NoIAT {
		claims.IssuedAt = nil
	}
	a := d.view().authority
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.jwtKey, KeyID: a.jwtID}},
		new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("issue jwt-svid: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("issue jwt-svid: %w", err)
	}
	return token, nil
}
