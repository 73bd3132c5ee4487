package main

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// crlOf reads the CRL that an embedded CA has written, and holds its CA's signature.
func crlOf(t *testing.T, s *site) *x509.RevocationList {
	t.Helper()
	list, err := x509.ParseRevocationList(read(t, s.file("data", "ca", "internal", "crl.der")))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// filesOf returns every file below a folder with its content.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out[path] = string(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestProbeOfTheEmbeddedCA issues and revokes with the CA that serves, and finds what it revoked on the CRL that it wrote:
// never beside a broker, whose own the CRL is, and without a CA before the first start.
func TestProbeOfTheEmbeddedCA(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	config := s.file("stint.hcl")
	if code, found := check(t, s.dir, config, "--probe"); code != 0 || len(found) != 0 {
		t.Errorf("before the first start it exits with %d: %+v", code, found)
	}
	if _, err := os.Stat(s.file("data")); !os.IsNotExist(err) {
		t.Errorf("the probe made a data directory: %v", err)
	}

	d := s.start(t)
	before := crlOf(t, s)
	code, found := check(t, s.dir, config, "--probe")
	if code != exitWeakens || !slices.Equal(codesOf(found), []string{"probe-skipped"}) || !strings.Contains(found[0].Problem, "a broker serves") ||
		found[0].Subject != "stepca/internal role "+certRole || !strings.Contains(found[0].Remedy, "stop the broker") {
		t.Errorf("beside a broker it exits with %d: %+v", code, found)
	}
	if after := crlOf(t, s); len(after.RevokedCertificateEntries) != len(before.RevokedCertificateEntries) {
		t.Errorf("beside a broker it revoked: %d entries after %d", len(after.RevokedCertificateEntries), len(before.RevokedCertificateEntries))
	}
	d.stop(t)

	before = crlOf(t, s)
	if code, found = check(t, s.dir, config, "--probe"); code != 0 || len(found) != 0 {
		t.Errorf("with the broker stopped it exits with %d: %+v", code, found)
	}
	after := crlOf(t, s)
	if len(after.RevokedCertificateEntries) != len(before.RevokedCertificateEntries)+1 || after.Number.Cmp(before.Number) <= 0 {
		t.Errorf("CRL %s with %d entries after %s with %d", after.Number, len(after.RevokedCertificateEntries), before.Number, len(before.RevokedCertificateEntries))
	}
	s.start(t).stop(t) // it lets go of the data directory, and what it wrote is what a start reads
	if again := crlOf(t, s); len(again.RevokedCertificateEntries) != len(after.RevokedCertificateEntries) {
		t.Errorf("the next start has %d entries, %d were written", len(again.RevokedCertificateEntries), len(after.RevokedCertificateEntries))
	}
}

// TestCheckOfLostRevocations truncates the CRL of a CA that served. It is found, and a probe makes nothing worse.
func TestCheckOfLostRevocations(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	s.start(t).stop(t)
	file := s.file("data", "ca", "internal", "crl.der")
	good := read(t, file)
	write(t, file, string(good[:len(good)/2]))
	before := filesOf(t, s.file("data", "ca"))
	for _, flags := range [][]string{nil, {"--offline"}, {"--probe"}} {
		want := []string{"ca-crl-lost"}
		switch {
		case slices.Contains(flags, "--offline"):
			want = nil // what backends say is asked only online
		case slices.Contains(flags, "--probe"):
			want = append(want, "probe-skipped")
		}
		code, found := check(t, s.dir, s.file("stint.hcl"), flags...)
		if !slices.Equal(codesOf(found), want) || (code == exitBreaks) != (want != nil) {
			t.Errorf("check %v exits with %d: %+v", flags, code, found)
		}
	}
	for path, text := range filesOf(t, s.file("data", "ca")) {
		if before[path] != text {
			t.Errorf("check changed or made %s", path)
		}
	}
	write(t, file, string(good)) // the remedy: restore it
	if code, found := check(t, s.dir, s.file("stint.hcl"), "--probe"); code != 0 || len(found) != 0 {
		t.Errorf("restored, it exits with %d: %+v", code, found)
	}
	if bytes.Equal(good, read(t, file)) {
		t.Error("the probe did not reach the CRL")
	}
}

// TestCheckOfAnIssuerThatEnds gives the embedded CA an issuer that ends before what a probe asks for.
func TestCheckOfAnIssuerThatEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", "", catalog(limits{}, certRole))
	if err := os.Mkdir(s.file("etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeIssuer(t, s.ca, s.dir, time.Now().Add(45*time.Second))
	write(t, s.file("stint.hcl"), string(read(t, s.file("stint.hcl")))+`backend "stepca" "internal" {
  issuer_cert  = "`+s.file("etc", "issuing-ca.pem")+`"
  issuer_roots = "`+s.file("etc", "root-ca.pem")+`"
  issuer_key   = "file://`+s.file("etc", "issuing-ca.key")+`"
}
`)
	code, found := check(t, s.dir, s.file("stint.hcl"), "--probe")
	if code != exitBreaks || !slices.Equal(codesOf(found), []string{"ca-ends", "probe-issue"}) {
		t.Errorf("check exits with %d: %+v", code, found)
	}
	finds(t, found, plugins.Weakens, "issuing CA", "issuer_cert and issuer_key")
	finds(t, found, plugins.Breaks, "role "+certRole, "outlive the issuing CA")
	writeIssuer(t, s.ca, s.dir, s.ca.cert.NotAfter) // the remedy: a new CA
	if code, found = check(t, s.dir, s.file("stint.hcl"), "--probe"); code != 0 || len(found) != 0 {
		t.Errorf("with a new CA it exits with %d: %+v", code, found)
	}
}

// TestOnlyTheOwnerProbes keeps files of root out of the broker's data directory.
func TestOnlyTheOwnerProbes(t *testing.T) {
	t.Parallel()
	found := untried{reason: ownerError{dir: "/var/lib/stint", uid: 998}}.Probe(t.Context(), plugins.Role{Name: "r"}, nil)
	if len(found) != 1 || found[0].Code != "probe-skipped" || !strings.Contains(found[0].Remedy, "sudo -u '#998'") {
		t.Errorf("found %+v", found)
	}
}
