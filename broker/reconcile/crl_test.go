package reconcile_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // a house is made of concrete things
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const caResources = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: client-cert}
spec: {backend: ca/a, memory: {csr: true}, ttl: {default: 2m, max: 2m}}
---
apiVersion: stint.dev/v1
kind: Role
metadata: {name: plain}
spec: {backend: plain/a, ttl: {default: 10m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: agents}
spec:
  agents: ["spiffe://example.org/agent/*"]
  owner: platform@example.org
  sponsor: head@example.org
  purposes: [reconcile-invoices]
  roles: [{name: client-cert}, {name: plain}]
  task: {default_ttl: 20m, max_ttl: 1h, max_live: 100, max_live_leases: 1000}
  permit: ceiling
`

// plain is a backend that neither lists nor publishes.
type plain struct{ plugins.Backend }

// ca is a backend that ends certificates by CRL, and lists none unless it is a registrar.
type ca struct {
	plugins.Backend

	key  *ecdsa.PrivateKey
	cert *x509.Certificate

	mu      sync.Mutex // guards all below
	revoked map[plugins.LeaseID]bool
	down    bool
	next    time.Duration // from now to the next update
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{
		Backend: plugintest.NewMemory(plugintest.MemoryConfig{}), key: key, cert: cert, revoked: map[plugins.LeaseID]bool{}, next: time.Minute,
	}
}

func (c *ca) Revoke(_ context.Context, held plugins.Held) (plugins.Ending, error) {
	c.set(held.Lease, true)
	return plugins.Ending{Proof: plugins.OnCRL, At: time.Now(), UncheckedUntil: held.NotAfter}, nil
}

func (c *ca) set(id plugins.LeaseID, revoked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoked[id] = revoked
}

func (c *ca) holds(id plugins.LeaseID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.revoked[id]
}

// fail makes CRLs end then, or be unavailable.
func (c *ca) fail(next time.Duration, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next, c.down = next, down
}

func (c *ca) Bundle() [][]byte { return [][]byte{c.cert.Raw} }

func (c *ca) CRL(context.Context) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return nil, errors.Join(plugins.ErrUnavailable, errors.New("down"))
	}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(min(0, 2*c.next)), NextUpdate: time.Now().Add(c.next)}
	for id, revoked := range c.revoked {
		if revoked {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
				SerialNumber: new(big.Int).SetBytes(id[:]), RevocationTime: time.Now(),
			})
		}
	}
	return x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
}

// issue gets a certificate.
func (f fixture) issue(t *testing.T) lease.ID {
	t.Helper()
	const role = "client-cert"
	agent := f.As(t, "/agent/a")
	task := agent.Declare(t, role)
	res, err := agent.Credentials.IssueCredential(t.Context(), &stintv1.IssueCredentialRequest{
		Task: task.GetName(), Role: role, RequestId: rand.Text(), Csr: []byte("a request"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return idOf(t, res.GetLease())
}

// A CA lists nothing that it has signed; its CRL says what it believes to be revoked.
func TestCRL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		backend := newCA(t)
		f := fresh(t, 0, map[string]plugins.Backend{"ca/a": backend, "plain/a": plain{plugintest.NewMemory(plugintest.MemoryConfig{})}})
		order := reconcile.Order{Backend: "ca/a"}
		alive, over := f.issue(t), f.issue(t)
		if _, err := f.As(t, "/ops/alice").Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: "leases/" + over.String()}); err != nil {
			t.Fatal(err)
		}
		pass(3 * time.Second)
		inv := f.compare(t, order)
		want(t, inv)
		if inv.Source != "crl" || inv.Held != 1 || inv.Matched != 1 || len(inv.Gaps) != 1 || !inv.Gaps[0].Permanent {
			t.Errorf("%+v", inv)
		}

		backend.set(alive, true) // revoked at the CA, by somebody else
		backend.set(over, false) // and this revocation is lost, as by a CA with an empty database
		inv = f.compare(t, order)
		want(t, inv, "gone ", "ended_alive ")
		if inv.Findings[0].Lease.ID != alive || inv.Findings[1].Lease.ID != over {
			t.Errorf("%+v", inv)
		}
		order.RevokeUnknown, order.Settle = true, true
		want(t, f.compare(t, order), "gone settled", "ended_alive revoked")
		pass(3 * time.Second)
		want(t, f.compare(t, order))
		if l := f.row(t, alive); l.State != lease.Revoked || l.Proof != plugins.OnCRL {
			t.Errorf("%s by %s", l.State, l.Proof)
		}
	})
}

// What has expired is on no CRL, and a CA that is down or a backend that cannot tell are gaps.
func TestCRLGaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		backend := newCA(t)
		f := fresh(t, 0, map[string]plugins.Backend{"ca/a": backend, "plain/a": plain{plugintest.NewMemory(plugintest.MemoryConfig{})}})
		over := f.issue(t)
		if _, err := f.As(t, "/ops/alice").Credentials.RevokeLease(t.Context(), &stintv1.RevokeLeaseRequest{Name: "leases/" + over.String()}); err != nil {
			t.Fatal(err)
		}
		pass(3 * time.Second)
		backend.set(over, false)
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a"}), "ended_alive ")
		pass(2 * time.Minute)
		want(t, f.compare(t, reconcile.Order{Backend: "ca/a"}))

		backend.fail(-time.Second, false)
		if inv := f.compare(t, reconcile.Order{Backend: "ca/a"}); len(inv.Gaps) != 2 || !strings.Contains(inv.Gaps[1].Problem, "out of date") {
			t.Errorf("%+v", inv)
		}
		backend.fail(time.Minute, true)
		if inv := f.compare(t, reconcile.Order{Backend: "ca/a"}); len(inv.Gaps) != 2 || inv.Gaps[1].Permanent {
			t.Errorf("%+v", inv)
		}
		inv := f.compare(t, reconcile.Order{Backend: "plain/a"})
		if inv.Source != "" || len(inv.Gaps) != 1 || !inv.Gaps[0].Permanent {
			t.Errorf("%+v", inv)
		}
	})
}
