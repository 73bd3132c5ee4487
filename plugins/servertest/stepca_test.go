package servertest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins/servertest"
)

const (
	serial   = "0x0199ABCD00007000800000000000002A"
	spiffeID = "spiffe://tasks.example.org/agent/example.org/billing/task/1"
)

// claims is the claim "stint" of a token that the template accepts.
func claims() map[string]any {
	return map[string]any{
		"serial": serial, "cn": "billing", "sans": []string{spiffeID, "billing.example.org"},
		"ekus": []string{"clientAuth"},
		"extensions": []map[string]any{
			{"id": "1.3.6.1.4.1.99999.1", "critical": false, "value": []byte{0x0c, 0x01, 'x'}},
		},
		"crls": []string{"http://stint.example.org/crl.der"},
	}
}

func token(t *testing.T, ca *servertest.StepCA, path, subject string, stint any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: ca.ProvisionerKey}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	text, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: ca.Provisioner, Subject: subject, Audience: jwt.Audience{ca.URL + path}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Minute)),
	}).Claims(map[string]any{"stint": stint}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func post(t *testing.T, ca *servertest.StepCA, path string, body any) (status int, answer []byte) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, ca.URL+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	response, err := ca.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}

func signRequest(t *testing.T, ca *servertest.StepCA, stint any) map[string]any {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"csr":      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		"ott":      token(t, ca, "/1.0/sign", "billing", stint),
		"notAfter": time.Now().Add(90 * time.Second).UTC().Truncate(time.Second),
	}
}

func issue(t *testing.T, ca *servertest.StepCA) *x509.Certificate {
	t.Helper()
	status, body := post(t, ca, "/1.0/sign", signRequest(t, ca, claims()))
	if status != http.StatusCreated {
		t.Fatalf("sign = %d: %s", status, body)
	}
	var answer struct{ Crt string }
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(answer.Crt))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestStepCAIssuesWhatTheTokenSays(t *testing.T) {
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{})
	got := issue(t, ca)

	want, _ := new(big.Int).SetString(serial, 0)
	if got.SerialNumber.Cmp(want) != 0 {
		t.Errorf("serial = %X, want %X", got.SerialNumber, want)
	}
	if len(got.URIs) != 1 || got.URIs[0].String() != spiffeID {
		t.Errorf("URIs = %v", got.URIs)
	}
	if diff := cmp.Diff([]string{"billing.example.org"}, got.DNSNames); diff != "" {
		t.Errorf("DNS names: %s", diff)
	}
	if diff := cmp.Diff(pkix.Name{CommonName: "billing"}.String(), got.Subject.String()); diff != "" {
		t.Errorf("subject: %s", diff)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, got.ExtKeyUsage); diff != "" {
		t.Errorf("EKU: %s", diff)
	}
	if diff := cmp.Diff([]string{"http://stint.example.org/crl.der"}, got.CRLDistributionPoints); diff != "" {
		t.Errorf("CRL URLs: %s", diff)
	}
	if !hasExtension(got, "1.3.6.1.4.1.99999.1") {
		t.Errorf("no extension of ours in %v", got.Extensions)
	}
	if left := time.Until(got.NotAfter); left > 91*time.Second || left < time.Minute {
		t.Errorf("valid for %v", left)
	}
	if err := got.CheckSignatureFrom(ca.Intermediate); err != nil {
		t.Error(err)
	}
}

func hasExtension(certificate *x509.Certificate, id string) bool {
	for _, extension := range certificate.Extensions {
		if extension.Id.String() == id {
			var text string
			_, err := asn1.Unmarshal(extension.Value, &text)
			return err == nil && text == "x" && !extension.Critical
		}
	}
	return false
}

func TestStepCARefusesIncompleteTokens(t *testing.T) {
	ca := servers.StepCA(t)
	for _, missing := range []string{"serial", "sans", "ekus", "all"} {
		var stint any
		if missing != "all" {
			incomplete := claims()
			delete(incomplete, missing)
			stint = incomplete
		}
		status, body := post(t, ca, "/1.0/sign", signRequest(t, ca, stint))
		if status != http.StatusBadRequest || !bytes.Contains(body, []byte("no complete stint claim")) {
			t.Errorf("without %s: %d: %s", missing, status, body)
		}
	}
}

func TestStepCARevokesAcrossRestart(t *testing.T) {
	for _, database := range []string{"badgerv2", "bbolt"} {
		t.Run(database, func(t *testing.T) {
			ca := servertest.StartStepCA(t, servertest.StepCAOptions{Database: database})
			certificate := issue(t, ca)
			decimal := certificate.SerialNumber.String()
			status, body := post(t, ca, "/1.0/revoke", map[string]any{
				"serial": decimal, "ott": token(t, ca, "/1.0/revoke", decimal, nil), "passive": true,
			})
			if status != http.StatusOK {
				t.Fatalf("revoke = %d: %s", status, body)
			}
			ca.Restart(t)
			for _, entry := range ca.CRL(t).RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(certificate.SerialNumber) == 0 {
					return
				}
			}
			t.Error("the serial is not in the CRL")
		})
	}
}
