package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/stint-dev/stint/plugins/secret"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY" // PKCS#8
	hexBase        = 16
	renewTimeout   = 15 * time.Second
)

// Certificate is an issued certificate with its key.
type Certificate struct {
	PrivateKey crypto.Signer       // made here, or the one of IssueOptions
	Chain      []*x509.Certificate // leaf first, without the root
	Bundle     []*x509.Certificate // the roots that the chain ends in
	SPIFFEID   string              // the ID in the leaf, of the task trust domain
}

// TLS returns the certificate as crypto/tls wants it.
func (c *Certificate) TLS() tls.Certificate {
	out := tls.Certificate{PrivateKey: c.PrivateKey, Leaf: c.Chain[0]}
	for _, cert := range c.Chain {
		out.Certificate = append(out.Certificate, cert.Raw)
	}
	return out
}

// Roots returns a pool of the bundle.
func (c *Certificate) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range c.Bundle {
		pool.AddCert(cert)
	}
	return pool
}

// ChainPEM returns the chain, leaf first.
func (c *Certificate) ChainPEM() []byte { return encodeAll(c.Chain) }

// BundlePEM returns the roots.
func (c *Certificate) BundlePEM() []byte { return encodeAll(c.Bundle) }

// KeyPEM returns the private key as PKCS#8. A key that cannot be read out, of a token, is an error.
func (c *Certificate) KeyPEM() (secret.Value, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return secret.Value{}, fmt.Errorf("encode private key: %w", err)
	}
	defer clear(der)
	return secret.New(pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der})), nil
}

func encodeAll(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, cert := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: cert.Raw}))
	}
	return out.Bytes()
}

// newCSR makes a PKCS #10 request for a key, which it makes too unless there is one.
func newCSR(key crypto.Signer, names []string) ([]byte, crypto.Signer, error) {
	if key == nil {
		made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("make key: %w", err)
		}
		key = made
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make csr: %w", err)
	}
	return csr, key, nil
}

// newCertificate parses an answer and checks that it is about our key, carries its lease's ID and leads to its bundle.
func newCertificate(answer *stintv1.IssueCredentialResponse, key crypto.Signer) (*Certificate, error) {
	if key == nil {
		return nil, errors.New("a certificate came where no key was certified")
	}
	chain, err := parseAll(answer.GetCertificate().GetChain())
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	bundle, err := parseAll(answer.GetCertificate().GetBundle())
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	c := &Certificate{PrivateKey: key, Chain: chain, Bundle: bundle, SPIFFEID: answer.GetCertificate().GetSpiffeId()}
	return c, c.check(answer.GetLease())
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, errors.New("empty")
	}
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func (c *Certificate) check(lease *stintv1.Lease) error {
	leaf := c.Chain[0]
	public, ok := leaf.PublicKey.(interface {
		Equal(other crypto.PublicKey) bool
	})
	if !ok || !public.Equal(c.PrivateKey.Public()) {
		return errors.New("it is for another key")
	}
	id := strings.TrimPrefix(lease.GetName(), leasePrefix)
	if serial, ok := new(big.Int).SetString(id, hexBase); !ok || serial.Cmp(leaf.SerialNumber) != 0 {
		return fmt.Errorf("its serial number %X is not the lease ID %s", leaf.SerialNumber, id)
	}
	intermediates := x509.NewCertPool()
	for _, cert := range c.Chain[1:] {
		intermediates.AddCert(cert)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: c.Roots(), Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2), // whatever the clock here says
	}); err != nil {
		return fmt.Errorf("it does not lead to its bundle: %w", err)
	}
	return nil
}

// Rotating is a certificate of a task that is issued anew, with a new key, once two thirds of its life are over. It works
// when it is used: nothing runs in the background. It ends with its task.
type Rotating struct {
	task    *Task
	role    string
	options IssueOptions

	current atomic.Pointer[rotation]
	flight  singleflight.Group // one renewal at a time
}

type rotation struct {
	certificate *Certificate
	tls         *tls.Certificate
	renewAt     time.Time
}

// Certificate issues a certificate that renews itself, for tls.Config.GetClientCertificate and GetCertificate. A key in
// the options is used for all of them.
func (t *Task) Certificate(ctx context.Context, role string, o IssueOptions) (*Rotating, error) {
	r := &Rotating{task: t, role: role, options: o}
	if err := r.renew(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// GetClientCertificate fits tls.Config.GetClientCertificate.
func (r *Rotating) GetClientCertificate(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return r.get(info.Context())
}

// GetCertificate fits tls.Config.GetCertificate, for roles that may be servers.
func (r *Rotating) GetCertificate(info *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return r.get(info.Context())
}

// Current returns the certificate that is used now. Its bundle is what to trust the other side with where that is
// Stint's too.
func (r *Rotating) Current() *Certificate { return r.current.Load().certificate }

// get returns a certificate that is still valid, and renews it when that is due. While the broker does not answer, the old
// one serves until it ends.
func (r *Rotating) get(ctx context.Context) (*tls.Certificate, error) {
	now := time.Now()
	current := r.current.Load()
	if now.Before(current.renewAt) {
		return current.tls, nil
	}
	if ctx == nil { // the info was not made by crypto/tls
		ctx = context.Background() //nolint:contextcheck // there is none to inherit
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout) // other handshakes wait for it too
	defer cancel()
	_, err, _ := r.flight.Do("", func() (any, error) { return nil, r.renew(ctx) })
	current = r.current.Load()
	if err != nil && now.After(current.certificate.Chain[0].NotAfter) {
		return nil, err
	}
	return current.tls, nil
}

func (r *Rotating) renew(ctx context.Context) error {
	credential, err := r.task.Issue(ctx, r.role, r.options)
	if err != nil {
		return fmt.Errorf("certificate of role %s: %w", r.role, err)
	}
	if credential.Certificate == nil {
		return fmt.Errorf("role %s: %w: it issues no certificates", r.role, ErrUsage)
	}
	leaf := credential.Certificate.Chain[0]
	material := credential.Certificate.TLS()
	r.current.Store(&rotation{
		certificate: credential.Certificate, tls: &material,
		renewAt: time.Now().Add(time.Until(leaf.NotAfter) * 2 / 3),
	})
	return nil
}

// Fingerprint returns the SHA-256 of a certificate in lower-case hex, as people compare it.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}
