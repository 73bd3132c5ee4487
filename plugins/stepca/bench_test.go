package stepca

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
)

func benchBackend(b *testing.B) *Backend {
	b.Helper()
	backend, err := New(embeddedConfig(b.TempDir()), zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	return backend
}

// BenchmarkIssue is CSR check and certificate for a P-256 key, as the embedded CA does it.
func BenchmarkIssue(b *testing.B) {
	backend := benchBackend(b)
	req := newRequest(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := backend.Issue(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIssueParallel shows that signing takes no lock.
func BenchmarkIssueParallel(b *testing.B) {
	backend := benchBackend(b)
	req := newRequest(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := backend.Issue(b.Context(), req); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkRevokeAmong10000 is one revocation alone, with 10,000 entries on the CRL.
func BenchmarkRevokeAmong10000(b *testing.B) {
	backend := benchBackend(b)
	e, ok := backend.ca.(*embedded)
	if !ok {
		b.Fatal("not embedded")
	}
	items := make([]revocation, 10_000)
	for i := range items {
		items[i] = revocation{lease: newLease(b), notAfter: time.Now().Add(time.Hour)}
	}
	if err := e.revoked.publish(items); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := backend.Revoke(b.Context(), plugins.Held{Lease: newLease(b), NotAfter: time.Now().Add(time.Hour)}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCRL is what serving the CRL costs besides the bytes.
func BenchmarkCRL(b *testing.B) {
	backend := benchBackend(b)
	for b.Loop() {
		if _, err := backend.CRL(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
