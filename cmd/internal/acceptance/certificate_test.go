package acceptance_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// Done when (3): `openssl verify` accepts an issued certificate against the bundle that came with it; `openssl x509
// -serial` equals the lease ID; after completion `openssl verify -crl_check` with /crl.pem refuses it.
func TestOpensslSeesTheCertificateEnd(t *testing.T) {
	t.Parallel()
	need(t, "openssl", "openssl")
	d := startDev(t, []string{"--no-vault"})
	task := d.declare(t, "web-client")
	issued := decode[struct{ Lease string }](t,
		d.stint(t, "credential", "issue", "--task", task, "--role", "web-client", "--out", "certs", "-o", "json").exits(t, 0).stdout)
	const verify = "openssl verify -CAfile certs/bundle.pem -untrusted certs/chain.pem "
	d.sh(t, verify+"certs/chain.pem").exits(t, 0)
	serial := d.sh(t, "openssl x509 -in certs/chain.pem -noout -serial").exits(t, 0).stdout
	if lease := strings.TrimPrefix(issued.Lease, "leases/"); strings.TrimSpace(serial) != "serial="+lease || len(lease) != 32 {
		t.Errorf("openssl says %s, the lease is %s", serial, lease)
	}
	d.sh(t, "test \"$(openssl pkey -in certs/key.pem -pubout)\" = \"$(openssl x509 -in certs/chain.pem -noout -pubkey)\"").exits(t, 0)

	// With a CRL it is good as long as the task is open, so that what follows is the end's doing.
	write(t, d.dir+"/before.pem", []byte(d.stint(t, "trust", "crl").exits(t, 0).stdout))
	d.sh(t, verify+"-crl_check -CRLfile before.pem certs/chain.pem").exits(t, 0)
	d.stint(t, "task", "complete", task).exits(t, 0)
	write(t, d.dir+"/after.pem", []byte(d.stint(t, "trust", "crl").exits(t, 0).stdout))
	refused := d.sh(t, verify+"-crl_check -CRLfile after.pem certs/chain.pem")
	if refused.code == 0 || !strings.Contains(refused.stderr, "certificate revoked") {
		t.Errorf("not refused as revoked: %s", refused)
	}

	// The same over HTTP, without any program of Stint.
	write(t, d.dir+"/http.pem", get(t, d.variable("STINT_HTTP_ADDR")+"/crl.pem"))
	refused = d.sh(t, verify+"-crl_check -CRLfile http.pem certs/chain.pem")
	if refused.code == 0 || !strings.Contains(refused.stderr, "certificate revoked") {
		t.Errorf("not refused as revoked: %s", refused)
	}
}

// get reads a page of the port without secrets.
func get(tb testing.TB, url string) []byte {
	tb.Helper()
	request, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		tb.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		tb.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		tb.Fatalf("%s: %s: %v", url, answer.Status, err)
	}
	return body
}
