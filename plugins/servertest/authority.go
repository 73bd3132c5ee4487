package servertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// authority is a root and an intermediate made for one step-ca.
type authority struct {
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey // the intermediate's; the root's is thrown away
}

func newAuthority(now time.Time) (*authority, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make intermediate key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "servertest root"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	root, err := sign(template, template, rootKey, rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	template.SerialNumber, template.Subject.CommonName = big.NewInt(2), "servertest intermediate"
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	intermediate, err := sign(template, root, key, rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign intermediate: %w", err)
	}
	return &authority{root: root, intermediate: intermediate, key: key}, nil
}

// sign makes the certificate of key, signed by the parent's key.
func sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// write puts root.pem, intermediate.pem and intermediate.key into dir.
func (a *authority) write(dir string) error {
	key, err := x509.MarshalECPrivateKey(a.key)
	if err != nil {
		return fmt.Errorf("encode intermediate key: %w", err)
	}
	for name, block := range map[string]*pem.Block{
		"root.pem":         {Type: "CERTIFICATE", Bytes: a.root.Raw},
		"intermediate.pem": {Type: "CERTIFICATE", Bytes: a.intermediate.Raw},
		"intermediate.key": {Type: "EC PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return fmt.Errorf("write authority: %w", err)
		}
	}
	return nil
}

// encodeCertificate returns the certificate as PEM.
func encodeCertificate(certificate *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
}
