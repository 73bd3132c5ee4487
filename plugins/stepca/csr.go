package stepca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"

	"github.com/stint-dev/stint/plugins"
)

// Limits on a request. A key of 4,096 bits with a hundred names takes less than the size.
const (
	maxCSR     = 16 << 10
	minRSA     = 2048
	maxRSA     = 4096
	maxNames   = 100
	keysWanted = "allowed are P-256, P-384, Ed25519, RSA 2048 to 4096"
)

// Tags of GeneralName (RFC 5280 section 4.2.1.6).
const (
	tagDNS = 2
	tagURI = 6
)

// limits is what a request may ask for.
type limits struct {
	uri        string            // the only URI
	commonName string            // the only subject, "" for none
	allows     func(string) bool // whether a DNS name may be asked for
}

// checkCSR reads a PKCS #10 request in DER (RFC 2986) and refuses what it may not ask for: every error is a
// *plugins.RejectedError. It returns the DNS names that were asked for. Of the request only the key and those names
// may go into a certificate.
func checkCSR(der []byte, may limits) (*x509.CertificateRequest, []string, error) {
	switch {
	case len(der) == 0:
		return nil, nil, rejectf("missing; a PKCS #10 request in DER is needed")
	case len(der) > maxCSR:
		return nil, nil, rejectf("%d bytes; at most %d are read", len(der), maxCSR)
	case bytes.HasPrefix(der, []byte("-----BEGIN")):
		return nil, nil, rejectf("this is PEM; DER is needed")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, rejectf("no PKCS #10 request in DER: %v", err)
	}
	if problem := keyProblem(csr.PublicKey); problem != "" {
		return nil, nil, rejectf("%s; %s", problem, keysWanted)
	}
	if csr.SignatureAlgorithm == x509.SHA1WithRSA || csr.SignatureAlgorithm == x509.ECDSAWithSHA1 {
		return nil, nil, rejectf("signed with SHA-1")
	}
	if err = csr.CheckSignature(); err != nil {
		return nil, nil, rejectf("its signature is not by its key")
	}
	if err = checkSubject(csr, may.commonName); err != nil {
		return nil, nil, err
	}
	asked, err := checkExtensions(csr.Extensions, may)
	if err != nil {
		return nil, nil, err
	}
	return csr, asked, nil
}

func rejectf(format string, args ...any) error {
	return &plugins.RejectedError{Field: "csr", Problem: fmt.Sprintf(format, args...)}
}

// keyProblem says what is wrong with a key, or "".
func keyProblem(key any) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return ""
		}
		return key.Params().Name + " key"
	case ed25519.PublicKey:
		return ""
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Sprintf("RSA key of %d bits", n)
		}
		if key.E < 65537 || key.E%2 == 0 {
			return fmt.Sprintf("RSA key with exponent %d", key.E)
		}
		return ""
	}
	return "key of an unknown kind"
}

// checkSubject lets an empty subject pass, or exactly the common name that the role sets.
func checkSubject(csr *x509.CertificateRequest, commonName string) error {
	parts := csr.Subject.Names
	if len(parts) == 0 {
		return nil
	}
	commonNameOID := asn1.ObjectIdentifier{2, 5, 4, 3}
	if len(parts) > 1 || !parts[0].Type.Equal(commonNameOID) {
		return rejectf("its subject has more than a common name; leave it empty")
	}
	if commonName == "" {
		return rejectf("it has a subject, and the role sets none; leave it empty")
	}
	if csr.Subject.CommonName != commonName {
		return rejectf("common name %.80q; the role sets %q: use that, or leave the subject empty", csr.Subject.CommonName, commonName)
	}
	return nil
}

// checkExtensions lets one list of alternative names pass and nothing else.
func checkExtensions(extensions []pkix.Extension, may limits) ([]string, error) {
	sanOID := asn1.ObjectIdentifier{2, 5, 29, 17}
	var asked []string
	seen := false
	for _, ext := range extensions {
		if !ext.Id.Equal(sanOID) {
			return nil, rejectf("it asks for extension %s; only alternative names are allowed", extensionName(ext.Id))
		}
		if seen {
			return nil, rejectf("it has two lists of alternative names")
		}
		seen = true
		var err error
		if asked, err = checkNames(ext.Value, may); err != nil {
			return nil, err
		}
	}
	return asked, nil
}

// checkNames walks GeneralNames itself, because crypto/x509 skips the kinds that it does not know.
func checkNames(der []byte, may limits) ([]string, error) {
	var list asn1.RawValue
	rest, err := asn1.Unmarshal(der, &list)
	if err != nil || len(rest) > 0 || list.Class != asn1.ClassUniversal || list.Tag != asn1.TagSequence || !list.IsCompound {
		return nil, rejectf("its alternative names are damaged")
	}
	var asked []string
	for rest = list.Bytes; len(rest) > 0; {
		var name asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &name); err != nil || name.Class != asn1.ClassContextSpecific {
			return nil, rejectf("its alternative names are damaged")
		}
		if err = checkName(name.Tag, string(name.Bytes), may); err != nil {
			return nil, err
		}
		if name.Tag == tagDNS {
			asked = append(asked, string(name.Bytes))
		}
	}
	slices.Sort(asked)
	asked = slices.Compact(asked)
	if len(asked) > maxNames {
		return nil, rejectf("%d DNS names; at most %d are allowed", len(asked), maxNames)
	}
	return asked, nil
}

// checkName lets the task's URI and the role's DNS names pass.
func checkName(tag int, text string, may limits) error {
	switch {
	case tag == tagURI && text == may.uri, tag == tagDNS && may.allows(text):
		return nil
	case tag == tagURI:
		return rejectf("URI %.200q; the only one it may ask for is %s", text, may.uri)
	case tag == tagDNS:
		return rejectf("DNS name %.80q is not among the role's dns_names", text)
	default:
		return rejectf("alternative name of kind %s; only DNS names and the task's URI are allowed", nameKind(tag))
	}
}

func nameKind(tag int) string {
	kinds := []string{"otherName", "email", "DNS", "x400Address", "directoryName", "ediPartyName", "URI", "IP", "registeredID"}
	if tag < len(kinds) {
		return kinds[tag]
	}
	return "unknown"
}

func extensionName(id asn1.ObjectIdentifier) string {
	switch text := id.String(); text {
	case "2.5.29.15":
		return "keyUsage"
	case "2.5.29.19":
		return "basicConstraints"
	case "2.5.29.37":
		return "extendedKeyUsage"
	default:
		return text
	}
}
