package stepca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// pki is an operator's own: a root, an intermediate below it, and a leaf. All in PEM.
type pki struct {
	root, cert, key, leaf, leafKey []byte
}

func newPKI(tb testing.TB) pki {
	tb.Helper()
	template := func(name string, isCA bool) *x509.Certificate {
		number, err := rand.Int(rand.Reader, big.NewInt(1<<62))
		if err != nil {
			tb.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: number, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
			BasicConstraintsValid: true, IsCA: isCA, KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: number.Bytes(),
		}
		if isCA {
			c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		}
		return c
	}
	sign := func(t, parent *x509.Certificate, key, by crypto.Signer) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
		if err != nil {
			tb.Fatal(err)
		}
		return parse(tb, der)
	}
	rootKey, key, leafKey := newKey(tb), newKey(tb), newKey(tb)
	rootTemplate := template("root", true)
	root := sign(rootTemplate, rootTemplate, rootKey, rootKey)
	between := sign(template("intermediate", true), root, key, rootKey)
	leaf := sign(template("leaf", false), between, leafKey, key)
	return pki{
		root: encodeCertificate(root), cert: encodeCertificate(between), leaf: encodeCertificate(leaf),
		key: encodeKey(tb, key), leafKey: encodeKey(tb, leafKey),
	}
}

func encodeKey(tb testing.TB, key crypto.Signer) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
}
