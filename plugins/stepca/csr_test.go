package stepca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/plugins"
)

// testLimits are those of testRole.
func testLimits(tb testing.TB) limits {
	tb.Helper()
	r, err := parseRole([]byte(testRole))
	if err != nil {
		tb.Fatal(err)
	}
	return limits{uri: testURI, commonName: "eu1", allows: r.allows}
}

func curveKey(tb testing.TB, curve elliptic.Curve) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func rsaKey(tb testing.TB, bits int) crypto.Signer {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// rsa8192 is a request with a key of 8,192 bits whose signature is nonsense: making a real one takes seconds, and the size must
// be refused before the signature is looked at.
func rsa8192(tb testing.TB) []byte {
	tb.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 8191)
	n.SetBit(n, 0, 1)
	public, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537})
	if err != nil {
		tb.Fatal(err)
	}
	info, err := asn1.Marshal(struct {
		Version int
		Subject asn1.RawValue
		Key     asn1.RawValue
		Attrs   asn1.RawValue
	}{0, asn1.RawValue{FullBytes: []byte{0x30, 0}}, asn1.RawValue{FullBytes: public}, asn1.RawValue{FullBytes: []byte{0xa0, 0}}})
	if err != nil {
		tb.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: info},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: make([]byte, 1024), BitLength: 8192},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func mustURL(tb testing.TB, text string) *url.URL {
	tb.Helper()
	u, err := url.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

// TestAllowedRequests takes every kind of key and of name that the rules allow.
func TestAllowedRequests(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	uri := mustURL(t, testURI)
	for name, c := range map[string]struct {
		key      crypto.Signer
		template x509.CertificateRequest
		dns      []string
	}{
		"P-256":    {newKey(t), x509.CertificateRequest{}, nil},
		"P-384":    {curveKey(t, elliptic.P384()), x509.CertificateRequest{}, nil},
		"Ed25519":  {ed, x509.CertificateRequest{}, nil},
		"RSA 2048": {rsaKey(t, 2048), x509.CertificateRequest{}, nil},
		"RSA 3072": {rsaKey(t, 3072), x509.CertificateRequest{}, nil},
		"own URI":  {ed, x509.CertificateRequest{URIs: []*url.URL{uri}}, nil},
		"own name": {ed, x509.CertificateRequest{Subject: pkix.Name{CommonName: "eu1"}}, nil},
		"DNS": {
			ed,
			x509.CertificateRequest{DNSNames: []string{"x.jobs.example.org", "a.example.org", "a.example.org"}, URIs: []*url.URL{uri}},
			[]string{"a.example.org", "x.jobs.example.org"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, asked, err := checkCSR(newCSR(t, c.key, &c.template), testLimits(t))
			if err != nil || !slices.Equal(asked, c.dns) {
				t.Errorf("asked %v, %v, want %v", asked, err, c.dns)
			}
		})
	}
}

// forbidden are requests of every kind that is refused, with a word of the reason.
func forbidden(tb testing.TB) map[string]struct {
	der  []byte
	want string
} {
	tb.Helper()
	key := newKey(tb)
	with := func(change x509.CertificateRequest) []byte { return newCSR(tb, key, &change) }
	extension := func(id []int, value ...byte) []byte {
		return with(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: id, Value: value}}})
	}
	names := func(raw ...byte) []byte {
		return extension([]int{2, 5, 29, 17}, append([]byte{0x30, byte(len(raw))}, raw...)...)
	}
	good := with(x509.CertificateRequest{})
	badSignature := slices.Clone(good)
	badSignature[len(badSignature)-1] ^= 1
	return map[string]struct {
		der  []byte
		want string
	}{
		"P-224":            {newCSR(tb, curveKey(tb, elliptic.P224()), &x509.CertificateRequest{}), "P-224 key"},
		"P-521":            {newCSR(tb, curveKey(tb, elliptic.P521()), &x509.CertificateRequest{}), "P-521 key"},
		"RSA 1024":         {newCSR(tb, rsaKey(tb, 1024), &x509.CertificateRequest{}), "RSA key of 1024 bits"},
		"RSA 8192":         {rsa8192(tb), "RSA key of 8192 bits"},
		"CA":               {extension([]int{2, 5, 29, 19}, 0x30, 3, 1, 1, 0xff), "basicConstraints"},
		"key usage":        {extension([]int{2, 5, 29, 15}, 3, 2, 5, 0xa0), "keyUsage"},
		"extended usage":   {extension([]int{2, 5, 29, 37}, 0x30, 0), "extendedKeyUsage"},
		"other extension":  {extension([]int{1, 2, 3}, 5, 0), "1.2.3"},
		"email":            {with(x509.CertificateRequest{EmailAddresses: []string{"a@example.org"}}), "kind email"},
		"IP":               {with(x509.CertificateRequest{IPAddresses: []net.IP{{127, 0, 0, 1}}}), "kind IP"},
		"other name":       {names(0xa0, 2, 5, 0), "kind otherName"},
		"registered ID":    {names(0x88, 1, 42), "kind registeredID"},
		"unknown kind":     {names(0x8b, 1, 42), "kind unknown"},
		"foreign DNS":      {with(x509.CertificateRequest{DNSNames: []string{"b.example.org"}}), "b.example.org"},
		"two labels":       {with(x509.CertificateRequest{DNSNames: []string{"x.y.jobs.example.org"}}), "x.y.jobs.example.org"},
		"wildcard":         {with(x509.CertificateRequest{DNSNames: []string{"*.jobs.example.org"}}), "not among"},
		"parent":           {with(x509.CertificateRequest{DNSNames: []string{"jobs.example.org"}}), "not among"},
		"upper case":       {with(x509.CertificateRequest{DNSNames: []string{"A.example.org"}}), "not among"},
		"foreign URI":      {with(x509.CertificateRequest{URIs: []*url.URL{mustURL(tb, "spiffe://example.org/agent/other")}}), "the only one"},
		"second URI":       {with(x509.CertificateRequest{URIs: []*url.URL{mustURL(tb, testURI), mustURL(tb, testURI+"0")}}), "the only one"},
		"foreign name":     {with(x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}), "common name"},
		"more of a name":   {with(x509.CertificateRequest{Subject: pkix.Name{CommonName: "eu1", Organization: []string{"o"}}}), "more than a common name"},
		"an organisation":  {with(x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"eu1"}}}), "more than a common name"},
		"bad signature":    {badSignature, "signature"},
		"trailing data":    {append(slices.Clone(good), 0), "PKCS #10"},
		"cut short":        {good[:len(good)-1], "PKCS #10"},
		"garbage":          {[]byte("garbage"), "PKCS #10"},
		"empty":            {nil, "missing"},
		"huge":             {bytes.Repeat([]byte{0x30}, maxCSR+1), "at most"},
		"PEM":              {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good}), "PEM"},
		"a certificate":    {parsePEM(tb, newPKI(tb).leaf), "PKCS #10"},
		"too many names":   {with(x509.CertificateRequest{DNSNames: manyNames()}), "at most"},
		"damaged SAN":      {extension([]int{2, 5, 29, 17}, 4, 1, 0), ""},
		"two lists of SAN": {with(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(tb, "a.example.org"), san(tb, "a.example.org")}}), ""},
	}
}

func san(tb testing.TB, name string) pkix.Extension {
	tb.Helper()
	value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tagDNS, Bytes: []byte(name)}})
	if err != nil {
		tb.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func manyNames() []string {
	var names []string
	for a := range "0123456789a" {
		for b := range "0123456789" {
			names = append(names, string("0123456789a"[a])+string("0123456789"[b])+"x.jobs.example.org")
		}
	}
	return names
}

func parsePEM(tb testing.TB, text []byte) []byte {
	tb.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		tb.Fatal("no PEM")
	}
	return block.Bytes
}

// TestForbiddenRequests expects each to be refused with a precise reason, and as the caller's own fault.
func TestForbiddenRequests(t *testing.T) {
	for name, c := range forbidden(t) {
		t.Run(name, func(t *testing.T) {
			_, _, err := checkCSR(c.der, testLimits(t))
			var rejected *plugins.RejectedError
			if !errors.As(err, &rejected) || rejected.Field != "csr" || !strings.Contains(rejected.Problem, c.want) {
				t.Errorf("checkCSR said %v, want a rejection that says %q", err, c.want)
			}
			if !errors.Is(err, plugins.ErrNotIssued) {
				t.Errorf("%v does not promise that nothing was issued", err)
			}
		})
	}
}

// TestSubjectWithoutName refuses a common name where the role sets none.
func TestSubjectWithoutName(t *testing.T) {
	der := newCSR(t, newKey(t), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "eu1"}})
	may := testLimits(t)
	may.commonName = ""
	if _, _, err := checkCSR(der, may); err == nil {
		t.Error("a common name that no role set was accepted")
	}
}

// FuzzCSR: whatever is accepted has an allowed key, a valid signature, and only allowed names; nothing panics.
func FuzzCSR(f *testing.F) {
	for _, c := range forbidden(f) {
		f.Add(c.der)
	}
	f.Add(newCSR(f, newKey(f), &x509.CertificateRequest{DNSNames: []string{"a.example.org"}}))
	may := testLimits(f)
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, asked, err := checkCSR(der, may)
		if err != nil {
			if _, ok := errors.AsType[*plugins.RejectedError](err); !ok {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if keyProblem(csr.PublicKey) != "" || csr.CheckSignature() != nil {
			t.Fatal("a bad key or signature was accepted")
		}
		for _, u := range csr.URIs {
			if u.String() != testURI {
				t.Fatalf("URI %s was accepted", u)
			}
		}
		for _, name := range append(asked, csr.DNSNames...) {
			if !may.allows(name) {
				t.Fatalf("DNS name %q was accepted", name)
			}
		}
		if len(csr.EmailAddresses)+len(csr.IPAddresses) > 0 {
			t.Fatal("an email or IP address was accepted")
		}
	})
}
