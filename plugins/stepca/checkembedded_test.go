package stepca

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestProbeEmbedded expects the certificate of a probe on the CRL, and says so where the CRL cannot be written.
func TestProbeEmbedded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if Begun(dir) {
		t.Error("an empty folder holds a CA")
	}
	b := newEmbedded(t, dir)
	if !Begun(dir) {
		t.Error("a CA that was made is not seen")
	}
	compare(t, "probe", b.Probe(t.Context(), newRequest(t).Role, nil), nil)
	next, ok := newEmbedded(t, dir).ca.(*embedded)
	if !ok || len(next.revoked.current.Load().entries) != 1 {
		t.Error("the next start does not have the probe's revocation")
	}

	file := filepath.Join(dir, crlFile)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(file, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	compare(t, "probe", b.Probe(t.Context(), newRequest(t).Role, nil), []string{"error probe-revoke role ledger-api"})
}

// TestCheckEmbeddedLost finds a CRL that is gone, and is silent once it is back.
func TestCheckEmbeddedLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	newEmbedded(t, dir)
	good, err := os.ReadFile(filepath.Join(dir, crlFile))
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, crlFile)))
	lost := newEmbedded(t, dir)
	compare(t, "check", lost.Check(t.Context(), nil), []string{"error ca-crl-lost CRL"})
	must(t, os.WriteFile(filepath.Join(dir, crlFile), good, 0o600))
	compare(t, "restored", newEmbedded(t, dir).Check(t.Context(), nil), nil)
	if !slices.Equal(lost.Bundle()[0], newEmbedded(t, dir).Bundle()[0]) {
		t.Error("another CA was made")
	}
}
