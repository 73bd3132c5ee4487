// Package source is where Stint's own SVID and the bundles that it verifies others with come from: a SPIFFE Workload
// API, or files. Brokers and agents use the same one.
package source

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Errors of this package.
var (
	// ErrNoAddress says that no Workload API was named.
	ErrNoAddress = errors.New("no workload api address")
	// ErrBadAddress says that the address of the Workload API cannot be one.
	ErrBadAddress = errors.New("bad workload api address")
	// ErrNoIdentity says that the Workload API has nothing for this process, or not the SVID that was asked for.
	ErrNoIdentity = errors.New("no identity")
	// ErrUnreachable says that the Workload API does not answer.
	ErrUnreachable = errors.New("workload api does not answer")
	// ErrNoBundle says that there is no bundle for a trust domain, or that it is not one to be trusted here.
	ErrNoBundle = errors.New("no bundle")
	// ErrNoJWT says that this source cannot fetch JWT-SVIDs: files hold none.
	ErrNoJWT = errors.New("source has no jwt-svids")
)

// Material is what a source hands out at one instant.
type Material struct {
	SVID *x509svid.SVID  // Stint's own, with its key; required
	X509 *x509bundle.Set // bundles to verify X.509-SVIDs with
	JWT  *jwtbundle.Set  // bundles to verify JWT-SVIDs with; nil where they are not asked for
}

// Source holds the present material and says when the bundles change. It implements the go-spiffe sources for
// X.509-SVIDs, X.509 bundles, JWT bundles and JWT-SVIDs. It is safe for concurrent use; reading takes no lock.
type Source struct {
	feed    feed
	awaited spiffeid.ID // the own ID while there is no SVID yet; zero where there is always one
	current atomic.Pointer[state]
	fault   atomic.Pointer[error] // why the last update failed; nil after one that worked

	mu    sync.Mutex             // serialises Replace and SetTrust, and guards what follows
	trust []spiffeid.TrustDomain // accepted besides that of the own SVID
}

// feed is what keeps a source up to date.
type feed interface {
	run(ctx context.Context) error
	fetchJWT(ctx context.Context, params jwtsvid.Params) (*jwtsvid.SVID, error)
	close() error
}

// state is one immutable snapshot.
type state struct {
	svid *x509svid.SVID
	// offered is everything that was handed over; x509 and jwt are what is accepted of it.
	offered    bundles
	x509       map[spiffeid.TrustDomain]*x509bundle.Bundle
	jwt        map[spiffeid.TrustDomain]*jwtbundle.Bundle
	generation uint64        // counts changes of the bundles
	changed    chan struct{} // closed when the bundles change
}

// New returns a source that holds m until Replace is called. Of its bundles it keeps that of the own SVID's trust
// domain and those named in trust; whatever else is handed over is refused.
func New(m Material, trust ...spiffeid.TrustDomain) (*Source, error) {
	s := &Source{trust: slices.Clone(trust)}
	if err := s.Replace(m); err != nil {
		return nil, err
	}
	return s, nil
}

// Replace puts new material in place of the old. Nil sets of bundles keep the old ones.
func (s *Source) Replace(m Material) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	old := s.current.Load()
	if old == nil {
		old = &state{changed: make(chan struct{})}
	}
	if m.SVID == nil {
		m.SVID = old.svid
	}
	if m.SVID == nil {
		return fmt.Errorf("%w: no x509-svid", ErrNoIdentity)
	}
	offered := old.offered
	if m.X509 != nil {
		offered.x509 = clone(m.X509.Bundles(), (*x509bundle.Bundle).TrustDomain)
	}
	if m.JWT != nil {
		offered.jwt = clone(m.JWT.Bundles(), (*jwtbundle.Bundle).TrustDomain)
	}
	s.accept(old, m.SVID, offered)
	return nil
}

// SetTrust makes these the trust domains that are accepted besides that of the own SVID. Who was verified by the bundle of
// another is dropped, as when a root leaves its bundle.
func (s *Source) SetTrust(trust ...spiffeid.TrustDomain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust = slices.Clone(trust)
	old := s.current.Load()
	s.accept(old, old.svid, old.offered)
}

// await makes a source that has nothing yet one that waits for the SVID of an ID.
func (s *Source) await(id spiffeid.ID) {
	s.awaited = id
	s.current.Store(&state{changed: make(chan struct{})})
}

// accept puts what is accepted of the offered bundles in force. The caller holds mu.
func (s *Source) accept(old *state, svid *x509svid.SVID, offered bundles) {
	accepted := append([]spiffeid.TrustDomain{s.idOf(svid).TrustDomain()}, s.trust...)
	next := &state{
		svid: svid, offered: offered, x509: pick(accepted, offered.x509), jwt: pick(accepted, offered.jwt),
		generation: old.generation, changed: old.changed,
	}
	same := equal(old.x509, next.x509) && equal(old.jwt, next.jwt)
	if !same {
		next.generation++
		next.changed = make(chan struct{})
	}
	s.current.Store(next)
	if !same {
		close(old.changed)
	}
}

// bundles are the bundles of any trust domain.
type bundles struct {
	x509 map[spiffeid.TrustDomain]*x509bundle.Bundle
	jwt  map[spiffeid.TrustDomain]*jwtbundle.Bundle
}

// bundle is what the two kinds of bundles have in common.
type bundle[B any] interface {
	Clone() B
	Equal(other B) bool
}

// clone copies bundles, so that nobody else changes them.
func clone[B bundle[B]](all []B, of func(B) spiffeid.TrustDomain) map[spiffeid.TrustDomain]B {
	copied := make(map[spiffeid.TrustDomain]B, len(all))
	for _, b := range all {
		copied[of(b)] = b.Clone()
	}
	return copied
}

// pick keeps the bundles of the accepted trust domains.
func pick[B bundle[B]](accepted []spiffeid.TrustDomain, offered map[spiffeid.TrustDomain]B) map[spiffeid.TrustDomain]B {
	kept := make(map[spiffeid.TrustDomain]B, len(accepted))
	for _, td := range accepted {
		if b, ok := offered[td]; ok {
			kept[td] = b
		}
	}
	return kept
}

// equal says whether two sets hold the same bundles.
func equal[B bundle[B]](a, b map[spiffeid.TrustDomain]B) bool {
	if len(a) != len(b) {
		return false
	}
	for td, one := range a {
		if other, ok := b[td]; !ok || !one.Equal(other) {
			return false
		}
	}
	return true
}

// ID returns the SPIFFE ID of the own SVID, also while that is awaited.
func (s *Source) ID() spiffeid.ID { return s.idOf(s.current.Load().svid) }

func (s *Source) idOf(svid *x509svid.SVID) spiffeid.ID {
	if svid == nil {
		return s.awaited
	}
	return svid.ID
}

// GetX509SVID returns the own SVID, also after it has expired, or [ErrNoIdentity] while it is awaited.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	svid := s.current.Load().svid
	if svid == nil {
		return nil, fmt.Errorf("%w: there is no x509-svid of %s yet", ErrNoIdentity, s.awaited)
	}
	return svid, nil
}

// GetX509BundleForTrustDomain returns the bundle of an accepted trust domain, or [ErrNoBundle]. The bundle is shared:
// do not change it.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if b, ok := s.current.Load().x509[td]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%w of x.509 authorities for %s", ErrNoBundle, td.Name())
}

// GetJWTBundleForTrustDomain returns the JWT bundle of an accepted trust domain, or [ErrNoBundle]. The bundle is
// shared: do not change it.
func (s *Source) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if b, ok := s.current.Load().jwt[td]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%w of jwt authorities for %s", ErrNoBundle, td.Name())
}

// FetchJWTSVID fetches a JWT-SVID for the own SPIFFE ID, or for params.Subject. It is [ErrNoJWT] where the source
// cannot.
func (s *Source) FetchJWTSVID(ctx context.Context, params jwtsvid.Params) (*jwtsvid.SVID, error) {
	if s.feed == nil {
		return nil, ErrNoJWT
	}
	if params.Subject.IsZero() {
		params.Subject = s.ID()
	}
	return s.feed.fetchJWT(ctx, params)
}

// Authorities returns the X.509 authorities of all accepted trust domains and of more, as far as they were handed over, for
// those who look at them as a whole: expiry metrics, and the check that no development CA is among them.
func (s *Source) Authorities(more ...spiffeid.TrustDomain) []*x509.Certificate {
	now := s.current.Load()
	picked := pick(more, now.offered.x509)
	maps.Copy(picked, now.x509)
	var all []*x509.Certificate
	for _, b := range picked {
		all = append(all, b.X509Authorities()...)
	}
	return all
}

// Generation counts the changes of the bundles. What was verified in one generation holds until the next.
func (s *Source) Generation() uint64 { return s.current.Load().generation }

// Changed returns a channel that is closed when the bundles next change. Fetch it before you look at the bundles.
func (s *Source) Changed() <-chan struct{} { return s.current.Load().changed }

// Check returns nil if there is an own SVID that is valid at now, else an error that also says why no new one came.
func (s *Source) Check(now time.Time) error {
	svid, err := s.GetX509SVID()
	if err == nil {
		leaf := svid.Certificates[0]
		if !now.After(leaf.NotAfter) {
			return nil
		}
		err = fmt.Errorf("own x509-svid %s expired at %s", s.ID(), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if fault := s.fault.Load(); fault != nil {
		return fmt.Errorf("%w: %w", err, *fault)
	}
	return err
}

// Run keeps the source up to date until ctx is done, and then returns nil. While the feed is down the last material
// stays: identities live until they expire.
func (s *Source) Run(ctx context.Context) error {
	if s.feed == nil {
		<-ctx.Done()
		return nil
	}
	return s.feed.run(ctx)
}

// Close frees what the constructor took. Stop Run first.
func (s *Source) Close() error {
	if s.feed == nil {
		return nil
	}
	return s.feed.close()
}
