package source

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/peercred"
)

const (
	retryAfter   = time.Second     // between two tries of a constructor that waits, and of a watch that ended
	tryFor       = 5 * time.Second // bound of one try
	unixScheme   = "unix"
	anyFirstSVID = "pick one with spiffe_id or STINT_SPIFFE_ID"
)

// WorkloadAPI says how to use a Workload API.
type WorkloadAPI struct {
	// Addr is its address, unix:///path or tcp://ip:port; "" takes SPIFFE_ENDPOINT_SOCKET.
	Addr string
	// ID picks one of the SVIDs that it hands out; zero takes the first, and says so in the log if there are more.
	ID spiffeid.ID
	// Trust names the trust domains to accept besides that of the own SVID.
	Trust []spiffeid.TrustDomain
	// JWTBundles also keeps the JWT bundles, which only who accepts JWT-SVIDs needs.
	JWTBundles bool
	// Wait keeps trying until the context is done where the first try fails, as a daemon may that starts before its
	// registration. Otherwise the first failure is the answer.
	Wait bool
	// Await makes a source that has no SVID yet of one whose Workload API gave none until the context was done. It takes an
	// ID, and lets a daemon do meanwhile what needs no SVID.
	Await bool
	// Accept is asked before what comes later is taken; nil takes all.
	Accept func(Material) error
	// Logger takes what happens later; nil is silent.
	Logger *zap.Logger
}

// OpenWorkloadAPI returns a source that has its SVID and bundles, or an error that says what to do: [ErrNoAddress],
// [ErrBadAddress], [ErrNoIdentity] or [ErrUnreachable]. Nothing is kept up to date until Run is called.
func OpenWorkloadAPI(ctx context.Context, config WorkloadAPI) (*Source, error) {
	addr, err := address(config.Addr)
	if err != nil {
		return nil, err
	}
	config.Addr = addr
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(addr))
	if err != nil {
		return nil, fmt.Errorf("workload api at %s: %w", addr, err)
	}
	a := &api{config: config, client: client, source: &Source{trust: config.Trust}}
	a.source.feed = a
	err = a.load(ctx)
	if err != nil && config.Await && !config.ID.IsZero() && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		a.source.await(config.ID)
		a.failed(err)
		return a.source, nil
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return a.source, nil
}

// address returns the address to use, checked.
func address(addr string) (string, error) {
	if addr == "" {
		addr = os.Getenv(workloadapi.SocketEnv)
	}
	if addr == "" {
		return "", fmt.Errorf("%w: %s is not set (SPIRE: unix:///run/spire/sockets/agent.sock; dev: source .stint/env)",
			ErrNoAddress, workloadapi.SocketEnv)
	}
	if err := workloadapi.ValidateAddress(addr); err != nil {
		return "", fmt.Errorf("%w %q: %w", ErrBadAddress, addr, err)
	}
	u, err := url.Parse(addr)
	if err != nil {
		return "", fmt.Errorf("%w %q: %w", ErrBadAddress, addr, err)
	}
	if u.Scheme == unixScheme && u.Host != "" {
		return "", fmt.Errorf("%w %q: the path must be absolute, as in unix:///%s%s", ErrBadAddress, addr, u.Host, u.Path)
	}
	if u.Scheme == unixScheme && len(u.Path) > peercred.MaxPath {
		return "", fmt.Errorf("%w %q: the path has %d bytes, unix sockets take %d", ErrBadAddress, addr, len(u.Path), peercred.MaxPath)
	}
	return addr, nil
}

// api is the feed of a source from a Workload API.
type api struct {
	config WorkloadAPI
	client *workloadapi.Client
	source *Source
}

// load fetches once, or until it works or ctx is done if the configuration says so.
func (a *api) load(ctx context.Context) error {
	for {
		err := a.fetch(ctx)
		if err == nil || !a.config.Wait || ctx.Err() != nil {
			return err
		}
		a.config.Logger.Warn("waiting for an identity", zap.Error(err))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryAfter):
		}
	}
}

func (a *api) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	x509Context, err := a.client.FetchX509Context(ctx)
	if err != nil {
		return a.explain(err)
	}
	svid, err := a.pick(x509Context.SVIDs)
	if err != nil {
		return err
	}
	material := Material{SVID: svid, X509: x509Context.Bundles}
	if err = ownAuthorities(svid.ID, material); err != nil {
		return err
	}
	if a.config.JWTBundles {
		if material.JWT, err = a.client.FetchJWTBundles(ctx); err != nil {
			return a.explain(err)
		}
	}
	return a.source.Replace(material)
}

// pick returns the SVID that the configuration names, else the one that was taken before, else the first.
func (a *api) pick(svids []*x509svid.SVID) (*x509svid.SVID, error) {
	want := a.config.ID
	if current := a.source.current.Load(); want.IsZero() && current != nil { // and has an SVID: none is awaited without an ID
		want = current.svid.ID
	}
	ids := make([]string, 0, len(svids))
	for _, svid := range svids {
		if svid.ID == want {
			return svid, nil
		}
		ids = append(ids, svid.ID.String())
	}
	if !a.config.ID.IsZero() || len(svids) == 0 {
		return nil, fmt.Errorf("%w: the Workload API at %s hands out %v, not %s", ErrNoIdentity, a.config.Addr, ids, want)
	}
	if len(svids) > 1 || !want.IsZero() {
		a.config.Logger.Warn("taking the first of several svids; "+anyFirstSVID, zap.Strings("spiffe_ids", ids))
	}
	return svids[0], nil
}

// explain turns an error of the Workload API into one that says what to type.
func (a *api) explain(err error) error {
	code := status.Code(err)
	if code == codes.PermissionDenied {
		exe, exeErr := os.Executable()
		if exeErr != nil {
			exe = os.Args[0]
		}
		uid := os.Getuid()
		return fmt.Errorf("%w: the Workload API at %s has no identity for this process (uid %d, exe %s): register selector unix:uid:%d: %s",
			ErrNoIdentity, a.config.Addr, uid, exe, uid, Plain(err))
	}
	if code == codes.Unavailable || code == codes.DeadlineExceeded {
		return fmt.Errorf("%w at %s: %s", ErrUnreachable, a.config.Addr, Plain(err))
	}
	return fmt.Errorf("workload api at %s: %w", a.config.Addr, err)
}

func (a *api) fetchJWT(ctx context.Context, params jwtsvid.Params) (*jwtsvid.SVID, error) {
	svid, err := a.client.FetchJWTSVID(ctx, params)
	if err != nil {
		return nil, a.explain(err)
	}
	return svid, nil
}

func (a *api) close() error { return a.client.Close() }

// run watches until ctx is done. go-spiffe's watch ends on some answers (one is that the server goes away in good
// order); it is begun again.
func (a *api) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.repeat(ctx, func() error { return a.client.WatchX509Context(ctx, a) }) })
	if a.config.JWTBundles {
		group.Go(func() error { return a.repeat(ctx, func() error { return a.client.WatchJWTBundles(ctx, a) }) })
	}
	return group.Wait()
}

func (a *api) repeat(ctx context.Context, watch func() error) error {
	for {
		// Each failure has come through failed already.
		_ = watch()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
	}
}

// OnX509ContextUpdate implements [workloadapi.X509ContextWatcher].
func (a *api) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svid, err := a.pick(update.SVIDs)
	if err != nil {
		a.failed(err)
		svid = nil // keep the old one, but take the bundles
	}
	a.replace(Material{SVID: svid, X509: update.Bundles}, err)
}

// OnJWTBundlesUpdate implements [workloadapi.JWTBundleWatcher].
func (a *api) OnJWTBundlesUpdate(update *jwtbundle.Set) { a.replace(Material{JWT: update}, nil) }

// OnX509ContextWatchError implements [workloadapi.X509ContextWatcher].
func (a *api) OnX509ContextWatchError(err error) { a.failed(a.explain(err)) }

// OnJWTBundlesWatchError implements [workloadapi.JWTBundleWatcher].
func (a *api) OnJWTBundlesWatchError(err error) { a.failed(a.explain(err)) }

func (a *api) replace(m Material, fault error) {
	err := ownAuthorities(a.source.ID(), m)
	if err == nil && a.config.Accept != nil {
		err = a.config.Accept(m)
	}
	if err == nil {
		err = a.source.Replace(m)
	}
	if err != nil {
		a.failed(err)
		return
	}
	if fault == nil {
		a.source.fault.Store(nil)
	}
}

// ownAuthorities wants an authority of the own trust domain in bundles that are new. A Workload API has to send one, and an
// answer without is to be discarded (SPIFFE Workload API, sections 4.5 and 5.2.1): taken, it would cut everybody.
func ownAuthorities(own spiffeid.ID, m Material) error {
	if m.X509 == nil {
		return nil
	}
	if b, ok := m.X509.Get(own.TrustDomain()); !ok || b.Empty() {
		return fmt.Errorf("%w: the Workload API hands out no X.509 authority of %s", ErrNoBundle, own.TrustDomain().Name())
	}
	return nil
}

// failed keeps and logs why an update failed. A watch that was cancelled did not fail.
func (a *api) failed(err error) {
	if status.Code(err) == codes.Canceled {
		return
	}
	a.source.fault.Store(&err)
	a.config.Logger.Warn("identity source is down; existing identities stay until they expire", zap.Error(err))
}
