package stepca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// Files in DataDir. A CA's certificate is written last: where one stands, the CRL was complete once.
const (
	certFile   = "ca.crt"
	keyFile    = "ca.key"
	issuerFile = "issuer.crt" // a copy of the operator's own
	crlFile    = "crl.der"
)

// rootLife is how long a root that is made lives.
const rootLife = 10 * 365 * 24 * time.Hour

// Types of PEM blocks.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

var (
	errNoPEM  = errors.New("no PEM certificate in it")
	errKeyPEM = errors.New("no unencrypted private key in PEM")
)

// issuer is the CA that signs, with what stands above it.
type issuer struct {
	cert   *x509.Certificate
	signer crypto.Signer
	// chain follows a leaf: the issuer and further intermediates, without roots.
	chain []*x509.Certificate
	roots []*x509.Certificate
	// used says that this data directory has seen this or another CA before.
	used bool
	// file is where the certificate must be written once the CRL stands; "" where it is there.
	file string
}

// openIssuer takes the operator's CA, or the one in the data directory, or makes one there.
func openIssuer(s *settings, now time.Time) (*issuer, error) {
	c := s.Embedded
	if c.DataDir == "" {
		return nil, fmt.Errorf("%w: no data directory", errConfig)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	if err := removeUnfinished(c.DataDir); err != nil {
		return nil, err
	}
	own, err := readIfThere(filepath.Join(c.DataDir, certFile))
	if err != nil {
		return nil, err
	}
	operators, err := readIfThere(filepath.Join(c.DataDir, issuerFile))
	if err != nil {
		return nil, err
	}
	var is *issuer
	switch {
	case len(c.IssuerCert) > 0:
		is, err = readIssuer(c.IssuerCert, c.IssuerKey, c.IssuerRoots)
		if err == nil && !bytes.Equal(operators, encodeCertificate(is.cert)) {
			is.file = issuerFile
		}
	case len(own) > 0:
		is, err = readOwn(c.DataDir, own)
	default:
		is, err = makeRoot(s, now)
	}
	if err != nil {
		return nil, err
	}
	is.used = len(own)+len(operators) > 0
	return is, is.check(now)
}

// readIfThere returns nothing for a file that does not exist.
func readIfThere(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return content, nil
}

// readOwn reads the CA that was made here.
func readOwn(dir string, cert []byte) (*issuer, error) {
	key, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("%w: read CA key: %w", errConfig, err)
	}
	return readIssuer(cert, secret.New(key), nil)
}

func readIssuer(certPEM []byte, key secret.Value, rootsPEM []byte) (*issuer, error) {
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: issuer_cert: %w", errConfig, err)
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: issuer_key: %w", errConfig, err)
	}
	is := &issuer{cert: certs[0], signer: signer}
	for _, c := range certs {
		if isSelfSigned(c) {
			is.roots = append(is.roots, c)
		} else {
			is.chain = append(is.chain, c)
		}
	}
	if len(rootsPEM) > 0 {
		if is.roots, err = parseCertificates(rootsPEM); err != nil {
			return nil, fmt.Errorf("%w: issuer_roots: %w", errConfig, err)
		}
	}
	return is, nil
}

// check refuses a CA whose certificates or CRLs nobody would accept.
func (i *issuer) check(now time.Time) error {
	public, ok := i.signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(i.cert.PublicKey):
		return fmt.Errorf("%w: issuer_key is not the key of issuer_cert", errConfig)
	case !i.cert.IsCA || i.cert.KeyUsage&x509.KeyUsageCertSign == 0 || i.cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		return fmt.Errorf("%w: issuer_cert may not sign certificates and CRLs (CA, keyCertSign, cRLSign)", errConfig)
	case len(i.cert.SubjectKeyId) == 0:
		return fmt.Errorf("%w: issuer_cert has no subject key identifier", errConfig)
	case len(i.roots) == 0:
		return fmt.Errorf("%w: issuer_cert is an intermediate: set issuer_roots", errConfig)
	}
	_, err := i.cert.Verify(x509.VerifyOptions{
		Roots: pool(i.roots), Intermediates: pool(i.chain), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: issuer_cert does not lead to its roots: %w", errConfig, err)
	}
	return nil
}

// makeRoot makes a self-signed root and writes its key. Its certificate is written by finish.
func makeRoot(s *settings, now time.Time) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	number := make([]byte, 16)
	_, _ = rand.Read(number) // never fails (crypto/rand)
	number[0] &= 0x7f
	der, err := x509.CreateCertificate(rand.Reader, rootTemplate(s, number, now), rootTemplate(s, number, now), key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode CA key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: encoded})
	if err := s.writeFile(filepath.Join(s.Embedded.DataDir, keyFile), keyPEM); err != nil {
		return nil, err
	}
	return &issuer{cert: cert, signer: key, roots: []*x509.Certificate{cert}, file: certFile}, nil
}

// rootTemplate names the task trust domain in the root, as the SPIFFE X.509-SVID standard wants it (section 3.2).
func rootTemplate(s *settings, number []byte, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial(plugins.LeaseID(number)),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Stint task CA %X", number[12:]), Organization: []string{"Stint"}},
		URIs:                  []*url.URL{s.domain.ID().URL()},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
}

// finish writes the certificate once the CRL stands.
func (i *issuer) finish(s *settings) error {
	if i.file == "" {
		return nil
	}
	return s.writeFile(filepath.Join(s.Embedded.DataDir, i.file), encodeCertificate(i.cert))
}

// service is the CA as softcas runs it. It is safe for concurrent use.
func (i *issuer) service(ctx context.Context) (*softcas.SoftCAS, error) {
	ca, err := softcas.New(ctx, apiv1.Options{
		CertificateChain: append([]*x509.Certificate{i.cert}, i.chain...), Signer: i.signer,
	})
	if err != nil {
		return nil, fmt.Errorf("start CA: %w", err)
	}
	return ca, nil
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != pemCertificate {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errNoPEM
	}
	return certs, nil
}

// parseKey reads a private key; its errors hold nothing of it.
func parseKey(key secret.Value) (crypto.Signer, error) {
	for block, rest := pem.Decode(key.Expose()); block != nil; block, rest = pem.Decode(rest) {
		if signer := parseKeyBlock(block.Bytes); signer != nil {
			return signer, nil
		}
	}
	return nil, errKeyPEM
}

func parseKeyBlock(der []byte) crypto.Signer {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		signer, _ := key.(crypto.Signer)
		return signer
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	return nil
}

func isSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func encodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})
}

func ders(certs []*x509.Certificate) [][]byte {
	out := make([][]byte, 0, len(certs))
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}
