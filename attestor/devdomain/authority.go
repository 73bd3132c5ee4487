package devdomain

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// Organization is the subject organization of every authority that this package makes. It is the mark by which
	// [Is] knows them.
	Organization = "Stint development, not for production"

	caTTL     = 365 * 24 * time.Hour
	backdate  = 10 * time.Second // against clocks that are a little behind
	stateFile = "devdomain.pem"
	stateMode = 0o600
)

// Is says whether a certificate is an authority of a development trust domain, which a production broker refuses.
func Is(cert *x509.Certificate) bool {
	return slices.Contains(cert.Subject.Organization, Organization)
}

// authority is the signing keys of a domain and its bundle. It is immutable.
type authority struct {
	caKey  *ecdsa.PrivateKey
	caCert *x509.Certificate
	jwtKey *ecdsa.PrivateKey
	jwtID  string

	oldRoots []*x509.Certificate
	oldJWT   map[string]crypto.PublicKey
}

// newAuthority makes keys and a self-signed root for a trust domain.
func newAuthority(td spiffeid.TrustDomain) (authority, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("make authority key: %w", err)
	}
	jwtKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("make jwt key: %w", err)
	}
	cert, err := selfSigned(td, caKey)
	if err != nil {
		return authority{}, err
	}
	return compose(caKey, cert, jwtKey)
}

func selfSigned(td spiffeid.TrustDomain, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{Organization}, CommonName: td.Name(), SerialNumber: serial.Text(16)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caTTL),
		URIs:                  []*url.URL{td.ID().URL()},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority: %w", err)
	}
	return x509.ParseCertificate(der)
}

// compose puts an authority together; the JWT key's ID is derived from the key, so that a restart keeps it.
func compose(caKey *ecdsa.PrivateKey, cert *x509.Certificate, jwtKey *ecdsa.PrivateKey) (authority, error) {
	der, err := x509.MarshalPKIXPublicKey(jwtKey.Public())
	if err != nil {
		return authority{}, fmt.Errorf("name jwt key: %w", err)
	}
	const idBytes = 8
	id := hex.EncodeToString(der[len(der)-idBytes:])
	return authority{caKey: caKey, caCert: cert, jwtKey: jwtKey, jwtID: id}, nil
}

// rotated signs with new keys and still trusts the old ones.
func (a authority) rotated(td spiffeid.TrustDomain) (authority, error) {
	next, err := newAuthority(td)
	if err != nil {
		return authority{}, err
	}
	next.oldRoots = append(slices.Clone(a.oldRoots), a.caCert)
	next.oldJWT = map[string]crypto.PublicKey{a.jwtID: a.jwtKey.Public()}
	maps.Copy(next.oldJWT, a.oldJWT)
	return next, nil
}

func (a authority) withoutOld() authority {
	a.oldRoots, a.oldJWT = nil, nil
	return a
}

// roots returns the X.509 authorities, the signing one first.
func (a authority) roots() []*x509.Certificate {
	return append([]*x509.Certificate{a.caCert}, a.oldRoots...)
}

// bundle returns the bundle of the trust domain.
func (a authority) bundle(td spiffeid.TrustDomain) *spiffebundle.Bundle {
	b := spiffebundle.FromX509Authorities(td, a.roots())
	keys := map[string]crypto.PublicKey{a.jwtID: a.jwtKey.Public()}
	maps.Copy(keys, a.oldJWT)
	b.SetJWTAuthorities(keys)
	return b
}

// loadAuthority reads the authority from a directory; it makes (and writes) one if there is none, if it is about to
// expire, or if it belongs to another trust domain.
func loadAuthority(dir string, td spiffeid.TrustDomain) (authority, error) {
	if dir == "" {
		return newAuthority(td)
	}
	content, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return authority{}, fmt.Errorf("read authority: %w", err)
	}
	if err == nil {
		a, parseErr := parseAuthority(content)
		if parseErr != nil {
			return authority{}, fmt.Errorf("read authority %s: %w", filepath.Join(dir, stateFile), parseErr)
		}
		if a.caCert.Subject.CommonName == td.Name() && time.Until(a.caCert.NotAfter) > caTTL/2 {
			return a, nil
		}
	}
	a, err := newAuthority(td)
	if err != nil {
		return authority{}, err
	}
	return a, a.save(dir)
}

// save writes the signing keys and their root, whole or not at all. Old authorities are not kept over a restart.
func (a authority) save(dir string) error {
	if dir == "" {
		return nil
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.caCert.Raw})
	for _, key := range []*ecdsa.PrivateKey{a.caKey, a.jwtKey} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("write authority: %w", err)
		}
		content = append(content, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("write authority: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	if err := os.WriteFile(path+".new", content, stateMode); err != nil {
		return fmt.Errorf("write authority: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write authority: %w", err)
	}
	return nil
}

// parseAuthority reads what save wrote: a certificate and two keys.
func parseAuthority(content []byte) (authority, error) {
	var cert *x509.Certificate
	var keys []*ecdsa.PrivateKey
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			parsed, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return authority{}, err
			}
			cert = parsed
			continue
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return authority{}, err
		}
		key, ok := parsed.(*ecdsa.PrivateKey)
		if !ok {
			return authority{}, fmt.Errorf("unexpected key %T", parsed)
		}
		keys = append(keys, key)
	}
	const caAndJWT = 2
	if cert == nil || len(keys) != caAndJWT || !keys[0].PublicKey.Equal(cert.PublicKey) {
		return authority{}, errors.New("not a certificate and its two keys")
	}
	return compose(keys[0], cert, keys[1])
}

// serialNumber returns 127 random bits, positive as X.509 asks.
func serialNumber() (*big.Int, error) {
	const bits = 127
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), bits))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
