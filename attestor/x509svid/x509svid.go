// Package x509svid attests callers by the X.509-SVID of their mTLS connection (SPIFFE X509-SVID). The SVID is looked
// at on every call, not only in the handshake: an expired one, and one whose root has left the bundle, gets nothing,
// and [Attestor.Credentials] cuts its connection.
package x509svid

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/stint-dev/stint/attestor"
)

// Source is where the own SVID and the bundles come from. [github.com/stint-dev/stint/attestor/source.Source] is one.
type Source interface {
	x509svid.Source
	x509bundle.Source
	// Generation counts the changes of the bundles: what verified in one generation holds until the next.
	Generation() uint64
	// Changed returns a channel that is closed when the bundles next change.
	Changed() <-chan struct{}
}

// cacheSize bounds the verified certificates that are remembered (a few hundred bytes each beside what their
// connections hold anyway). Beyond it all are forgotten and verified again at 70 µs each.
const cacheSize = 16384

// Attestor attests X.509-SVIDs. It is safe for concurrent use.
type Attestor struct {
	source  Source
	domains atomic.Pointer[attestor.Domains]

	mu         sync.RWMutex // guards what follows
	generation uint64
	verified   map[*x509.Certificate]verdict
}

// verdict is what holds for a certificate within one generation of the bundles.
type verdict struct {
	id    spiffeid.ID
	until time.Time // the first end of validity in its chain
}

// New returns an attestor that accepts the trust domains of domains and verifies against source.
func New(source Source, domains attestor.Domains) *Attestor {
	a := &Attestor{source: source, verified: make(map[*x509.Certificate]verdict)}
	a.SetDomains(domains)
	return a
}

// SetDomains changes which trust domains are accepted. What was verified before holds until the bundles change, so change
// those that the source hands out after this.
func (a *Attestor) SetDomains(domains attestor.Domains) { a.domains.Store(&domains) }

// Attest returns the identity of the connection's peer, verified against the present bundle. It costs about a
// microsecond while the bundles stay the same.
func (a *Attestor) Attest(_ context.Context, e attestor.Evidence) (attestor.Identity, error) {
	if e.TLS == nil || len(e.TLS.PeerCertificates) == 0 {
		return attestor.Identity{}, attestor.Refuse(attestor.ErrNoEvidence, "call with mTLS and an X.509-SVID", nil)
	}
	identity, _, err := a.attest(e.TLS.PeerCertificates, time.Now())
	return identity, err
}

// attest returns the identity of a chain, leaf first, and until when it holds if the bundles stay the same.
func (a *Attestor) attest(chain []*x509.Certificate, now time.Time) (attestor.Identity, time.Time, error) {
	leaf := chain[0]
	generation := a.source.Generation()
	v, ok := a.recall(leaf, generation)
	if !ok {
		var err error
		if v, err = a.verify(chain, now); err != nil {
			return attestor.Identity{}, time.Time{}, err
		}
		a.remember(leaf, generation, v)
	}
	if err := attestor.CheckValidity(leaf.NotBefore, v.until, now); err != nil {
		return attestor.Identity{}, time.Time{}, err
	}
	identity := attestor.Identity{
		ID: v.id, Method: attestor.MethodX509, NotBefore: leaf.NotBefore.UTC(), NotAfter: v.until.UTC(),
	}
	return identity, v.until, nil
}

// verify does the whole work. What a caller should know about comes first, so that the refusal says it.
func (a *Attestor) verify(chain []*x509.Certificate, now time.Time) (verdict, error) {
	leaf := chain[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return verdict{}, attestor.Refuse(attestor.ErrInvalid, "the certificate is no X.509-SVID: "+err.Error(), nil)
	}
	if id.Path() == "" {
		return verdict{}, attestor.Refuse(attestor.ErrInvalid, fmt.Sprintf("%s names a trust domain, not a workload", id), nil)
	}
	if domainErr := a.domains.Load().Check(id.TrustDomain()); domainErr != nil {
		return verdict{}, domainErr
	}
	if timeErr := attestor.CheckValidity(leaf.NotBefore, leaf.NotAfter, now); timeErr != nil {
		return verdict{}, timeErr
	}
	// go-spiffe accepts any usage; a server's certificate must not pass as a client's.
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return verdict{}, attestor.Refuse(attestor.ErrInvalid, fmt.Sprintf("the SVID of %s lacks the extended key usage clientAuth", id), nil)
	}
	_, chains, err := x509svid.Verify(chain, a.source, x509svid.WithTime(now))
	if err != nil {
		return verdict{}, attestor.Refuse(attestor.ErrUntrusted,
			fmt.Sprintf("the SVID of %s does not verify against the bundle of %s", id, id.TrustDomain().Name()), err)
	}
	return verdict{id: id, until: lastInstant(chains)}, nil
}

// lastInstant is the end of the longest living chain, which is that of its first certificate to expire.
func lastInstant(chains [][]*x509.Certificate) time.Time {
	var last time.Time
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, cert := range chain[1:] {
			if cert.NotAfter.Before(end) {
				end = cert.NotAfter
			}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}

func (a *Attestor) recall(leaf *x509.Certificate, generation uint64) (verdict, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.generation != generation {
		return verdict{}, false
	}
	v, ok := a.verified[leaf]
	return v, ok
}

// remember keeps a verdict under the generation that was read before verifying: it may be older than what was
// verified against, never newer.
func (a *Attestor) remember(leaf *x509.Certificate, generation uint64, v verdict) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case generation < a.generation:
		return
	case generation > a.generation, len(a.verified) >= cacheSize:
		a.generation = generation
		a.verified = make(map[*x509.Certificate]verdict)
	}
	a.verified[leaf] = v
}

// forget drops a certificate whose connection is gone.
func (a *Attestor) forget(leaf *x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.verified, leaf)
}

// ServerConfig returns the TLS configuration of a listener for mTLS: TLS 1.3, the own SVID of the moment, a client
// certificate that this attestor accepts, and no session tickets, because a resumed session skips the verification
// of certificates that go-spiffe installs.
func (a *Attestor) ServerConfig() *tls.Config {
	config := tlsconfig.MTLSServerConfig(a.source, a.source, tlsconfig.AuthorizeAny())
	// One verification in place of go-spiffe's: it asks for more, and what it finds is remembered for the calls.
	config.VerifyPeerCertificate = nil
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("no client certificate")
		}
		_, _, err := a.attest(state.PeerCertificates, time.Now())
		return err
	}
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	config.NextProtos = []string{"h2"}
	return config
}
