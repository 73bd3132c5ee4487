package stepca

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/stint-dev/stint/plugins"
)

// TestRestart checks that revocations, the CRL number and the CA outlive the process, and its files their modes.
func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	b := newEmbedded(t, dir)
	req, other := newRequest(t), newRequest(t)
	cred, _ := issue(t, b, req)
	live, _ := issue(t, b, other)
	if _, err := b.Revoke(t.Context(), held(req, cred)); err != nil {
		t.Fatal(err)
	}
	before := b.current(t)
	again := newEmbedded(t, dir)
	after := again.current(t)
	if after.number.Cmp(before.number) <= 0 || !bytes.Equal(again.Bundle()[0], b.Bundle()[0]) {
		t.Errorf("CRL %s after %s; same root %t", after.number, before.number, bytes.Equal(again.Bundle()[0], b.Bundle()[0]))
	}
	if got := after.entries[req.Lease]; !got.notAfter.Equal(cred.NotAfter) {
		t.Errorf("entry after the restart: %+v, want an end at %v", got, cred.NotAfter)
	}
	if works := accepts(t, again); works(t.Context(), cred) || !works(t.Context(), live) {
		t.Error("the revoked one works, or the live one does not")
	}
	if err := again.Healthy(t.Context()); err != nil {
		t.Errorf("healthy: %v", err)
	}
	for name, mode := range map[string]os.FileMode{".": 0o700 | os.ModeDir, keyFile: 0o600, crlFile: 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, %v, want %v", name, info.Mode(), err, mode)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*-*")); len(left) > 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

// current is the CRL of an embedded backend.
func (b *Backend) current(tb testing.TB) *crl {
	tb.Helper()
	e, ok := b.ca.(*embedded)
	if !ok {
		tb.Fatal("not embedded")
	}
	return e.revoked.current.Load()
}

// TestLostRevocations damages the CRL file in the ways that can happen. Each is loud, and none lowers the number.
func TestLostRevocations(t *testing.T) {
	other := newEmbedded(t, t.TempDir()).current(t).der
	for name, damage := range map[string]func(t *testing.T, path string){
		"missing":        func(t *testing.T, path string) { t.Helper(); must(t, os.Remove(path)) },
		"empty":          func(t *testing.T, path string) { t.Helper(); must(t, os.Truncate(path, 0)) },
		"truncated":      func(t *testing.T, path string) { t.Helper(); must(t, os.Truncate(path, 100)) },
		"of another CA":  func(t *testing.T, path string) { t.Helper(); must(t, os.WriteFile(path, other, 0o600)) },
		"a bit is wrong": flipLast,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := newEmbedded(t, dir)
			req := newRequest(t)
			cred, _ := issue(t, b, req)
			if _, err := b.Revoke(t.Context(), held(req, cred)); err != nil {
				t.Fatal(err)
			}
			number := b.current(t).number
			damage(t, filepath.Join(dir, crlFile))
			core, logs := observer.New(zap.ErrorLevel)
			for range 2 { // the mark outlives a further restart
				again, err := New(embeddedConfig(dir), zap.New(core))
				if err != nil {
					t.Fatal(err)
				}
				if err := again.Healthy(t.Context()); !errors.Is(err, plugins.ErrMisconfigured) {
					t.Errorf("healthy: %v, want ErrMisconfigured", err)
				}
				if got := again.current(t).number; got.Cmp(number) <= 0 {
					t.Errorf("CRL number fell from %s to %s", number, got)
				}
				b = again
			}
			if logs.Len() != 1 {
				t.Errorf("%d errors logged, want 1", logs.Len())
			}
			if _, err := b.Revoke(t.Context(), held(req, cred)); err != nil || accepts(t, b)(t.Context(), cred) {
				t.Errorf("revoking again did not mend it: %v", err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func flipLast(t *testing.T, path string) {
	t.Helper()
	der, err := os.ReadFile(path)
	must(t, err)
	der[len(der)-1] ^= 1
	must(t, os.WriteFile(path, der, 0o600))
}

// TestUnfinishedStart begins again where a start was killed before the CA's certificate was written.
func TestUnfinishedStart(t *testing.T) {
	dir := t.TempDir()
	newEmbedded(t, dir)
	must(t, os.Remove(filepath.Join(dir, certFile)))
	b := newEmbedded(t, dir)
	if err := b.Healthy(t.Context()); err != nil {
		t.Errorf("healthy: %v", err)
	}
	req := newRequest(t)
	if cred, _ := issue(t, b, req); !accepts(t, b)(t.Context(), cred) {
		t.Error("it does not issue")
	}
}
