package main

import (
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/source"
)

const (
	// svidLife is how long SVIDs are valid while the soak rages, and svidTick how often there are new ones: who is without
	// them for more than the difference has no identity any more.
	svidLife = 12 * time.Second
	svidTick = 4 * time.Second
)

// provider is the identity provider of a trust domain: a Workload API for stintd, and sources for agents, who take no part
// in what happens to the API.
type provider struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	socket string
	stop   func() // the API; nil while it is gone

	mu      sync.Mutex // guards what follows
	ca      *authority
	roots   []*x509.Certificate // that are trusted: of ca, and of one before
	life    time.Duration       // of SVIDs
	away    bool                // nobody gets new SVIDs
	denies  bool                // stintd is told that it has no identity
	bundle  []byte              // what stintd gets instead of the roots; nil for the roots
	answer  *workload.X509SVIDResponse
	changed chan struct{} // closed when the answer does
	agents  map[string]*source.Source
	handed  int // how often there were new SVIDs
}

func newProvider(tb testing.TB, ca *authority, socket string) *provider {
	tb.Helper()
	p := &provider{
		socket: socket, ca: ca, roots: []*x509.Certificate{ca.cert}, life: svidLife, agents: map[string]*source.Source{}, changed: make(chan struct{}),
	}
	p.change(tb, func() {})
	p.comes(tb)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(svidTick)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				p.rotate(tb)
			}
		}
	}()
	tb.Cleanup(func() { close(over); <-done })
	return p
}

// agent returns the source of an agent's SVIDs.
func (p *provider) agent(tb testing.TB, path string) *source.Source {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := source.New(p.material(tb, path))
	if err != nil {
		tb.Fatal(err)
	}
	p.agents[path] = s
	return s
}

// material is what an agent gets. The caller holds mu.
func (p *provider) material(tb testing.TB, path string) source.Material {
	tb.Helper()
	own := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(trustDomain), p.roots)
	return source.Material{SVID: p.ca.shortSVID(tb, path, p.life), X509: x509bundle.NewSet(own)}
}

// rotate hands out new SVIDs, unless the provider is away.
func (p *provider) rotate(tb testing.TB) {
	tb.Helper()
	p.change(tb, func() {})
}

// change changes something, and hands out what follows from it.
func (p *provider) change(tb testing.TB, what func()) {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	what()
	if p.away {
		return
	}
	p.handed++
	for path, s := range p.agents {
		if err := s.Replace(p.material(tb, path)); err != nil {
			tb.Error(err)
		}
	}
	p.answer = p.response(tb)
	close(p.changed)
	p.changed = make(chan struct{})
}

// response is what stintd gets. The caller holds mu.
func (p *provider) response(tb testing.TB) *workload.X509SVIDResponse {
	tb.Helper()
	svid := p.ca.shortSVID(tb, stintPath, p.life)
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		tb.Error(err)
	}
	bundle := p.bundle
	if bundle == nil {
		for _, root := range p.roots {
			bundle = append(bundle, root.Raw...)
		}
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: svid.ID.String(), X509Svid: svid.Certificates[0].Raw, X509SvidKey: key, Bundle: bundle,
	}}}
}

// leaves takes the Workload API away, and comes puts it back.
func (p *provider) leaves() {
	p.stop()
	p.stop = nil
}

func (p *provider) comes(tb testing.TB) {
	tb.Helper()
	p.stop = serveWorkloadAPI(tb, p.socket, p)
}

// calm makes SVIDs long again.
func (p *provider) calm(tb testing.TB) {
	tb.Helper()
	p.change(tb, func() { p.life = time.Hour })
}

// FetchX509SVID sends each answer when there is one, or says that there is none.
func (p *provider) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	for {
		p.mu.Lock()
		answer, denies, changed := p.answer, p.denies, p.changed
		p.mu.Unlock()
		if denies {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}
