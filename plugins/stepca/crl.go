package stepca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/stint-dev/stint/plugins"
)

var errCRL = errors.New("CRL cannot be used")

// crl is a signed CRL, read. It never changes.
type crl struct {
	der    []byte
	number *big.Int
	// signed is when it was made: thisUpdate without the backdating where it is our own.
	signed, nextUpdate time.Time
	entries            map[plugins.LeaseID]entry
	// foreign are those whose serial number is longer than a lease ID, in decimal.
	foreign map[string]bool
	// lostAt is when older entries were lost; zero for never.
	lostAt time.Time
	// points are the URLs that the CRL names as its own (issuing distribution point).
	points []string
}

// entry is one revoked certificate.
type entry struct {
	revokedAt time.Time
	notAfter  time.Time // zero where the CRL does not say
}

// readCRL parses a CRL, checks that one of the issuers signed it, and reads the private extensions below the arc.
func readCRL(der []byte, arc arcIDs, issuers ...*x509.Certificate) (*crl, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCRL, err)
	}
	if !signedByOne(list, issuers) {
		return nil, fmt.Errorf("%w: not signed by the issuer", errCRL)
	}
	c := &crl{
		der: der, number: list.Number, signed: list.ThisUpdate, nextUpdate: list.NextUpdate,
		entries: make(map[plugins.LeaseID]entry, len(list.RevokedCertificateEntries)), foreign: map[string]bool{},
	}
	if c.number == nil {
		return nil, fmt.Errorf("%w: it has no number", errCRL)
	}
	if err := c.readExtensions(list.Extensions, arc); err != nil {
		return nil, err
	}
	for _, revoked := range list.RevokedCertificateEntries {
		if err := c.readEntry(revoked, arc); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func signedByOne(list *x509.RevocationList, issuers []*x509.Certificate) bool {
	for _, issuer := range issuers {
		if list.CheckSignatureFrom(issuer) == nil {
			return true
		}
	}
	return false
}

func (c *crl) readEntry(revoked x509.RevocationListEntry, arc arcIDs) error {
	lease, ok := leaseNumbered(revoked.SerialNumber)
	if !ok {
		c.foreign[revoked.SerialNumber.String()] = true
		return nil
	}
	e := entry{revokedAt: revoked.RevocationTime}
	for _, ext := range revoked.Extensions {
		if ext.Id.Equal(arc.notAfter) {
			t, err := readTime(ext.Value)
			if err != nil {
				return err
			}
			e.notAfter = t
		}
	}
	c.entries[lease] = e
	return nil
}

// leaseNumbered returns the lease whose serial number it is; false where it can be of none.
func leaseNumbered(number *big.Int) (plugins.LeaseID, bool) {
	var lease plugins.LeaseID
	if number.Sign() <= 0 || number.BitLen() > 8*len(lease) {
		return lease, false
	}
	number.FillBytes(lease[:])
	return lease, true
}

func (c *crl) holdsNumber(number *big.Int) bool {
	lease, ok := leaseNumbered(number)
	return ok && c.holds(lease) || c.foreign[number.String()]
}

func (c *crl) readExtensions(extensions []pkix.Extension, arc arcIDs) error {
	pointOID := asn1.ObjectIdentifier{2, 5, 29, 28}
	for _, ext := range extensions {
		switch {
		case ext.Id.Equal(arc.lost):
			t, err := readTime(ext.Value)
			if err != nil {
				return err
			}
			c.lostAt = t
		case ext.Id.Equal(pointOID):
			c.points = issuingPoints(ext.Value)
		}
	}
	return nil
}

// issuingPoints returns the URLs of an issuing distribution point (RFC 5280 section 5.2.5), as far as it names any.
func issuingPoints(der []byte) []string {
	var point struct {
		Name struct {
			Full []asn1.RawValue `asn1:"optional,tag:0"`
		} `asn1:"optional,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &point); err != nil {
		return nil
	}
	var urls []string
	for _, name := range point.Name.Full {
		if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
			urls = append(urls, string(name.Bytes))
		}
	}
	return urls
}

// list is the CRL as crypto/x509 signs it.
func (c *crl) list(arc arcIDs) (*x509.RevocationList, error) {
	list := &x509.RevocationList{
		Number: c.number, ThisUpdate: c.signed.Add(-backdate).UTC(), NextUpdate: c.nextUpdate.UTC(),
		RevokedCertificateEntries: make([]x509.RevocationListEntry, 0, len(c.entries)),
	}
	for lease, e := range c.entries {
		ext, err := timeExtension(arc.notAfter, e.notAfter)
		if err != nil {
			return nil, err
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial(lease), RevocationTime: e.revokedAt.UTC(), ExtraExtensions: []pkix.Extension{ext},
		})
	}
	if !c.lostAt.IsZero() {
		ext, err := timeExtension(arc.lost, c.lostAt)
		if err != nil {
			return nil, err
		}
		list.ExtraExtensions = append(list.ExtraExtensions, ext)
	}
	return list, nil
}

func timeExtension(id asn1.ObjectIdentifier, t time.Time) (pkix.Extension, error) {
	der, err := asn1.MarshalWithParams(t.UTC().Truncate(time.Second), "generalized")
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode time: %w", err)
	}
	return pkix.Extension{Id: id, Value: der}, nil
}

func readTime(der []byte) (time.Time, error) {
	var t time.Time
	rest, err := asn1.UnmarshalWithParams(der, &t, "generalized")
	if err != nil || len(rest) > 0 {
		return time.Time{}, fmt.Errorf("%w: a time in it is damaged", errCRL)
	}
	return t, nil
}
