// Package devdomain is a trust domain for development and tests: a certificate authority and a real SPIFFE Workload
// API, with one unix socket for each identity. Stock SPIFFE clients work against it unchanged. Whoever can open a
// socket has its identity, so it is no trust domain for production; its authorities are marked, see [Is].
package devdomain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/stint-dev/stint/attestor/peercred"
)

const (
	defaultSVIDTTL = 10 * time.Minute
	defaultJWTTTL  = 5 * time.Minute
	socketSuffix   = ".sock"
)

// ErrUnknown says that no workload has that name.
var ErrUnknown = errors.New("unknown workload")

// Config says what a domain is like.
type Config struct {
	TrustDomain spiffeid.TrustDomain // required
	// Dir holds the sockets, mode 0700, made if missing. "" makes a short one under $XDG_RUNTIME_DIR or the
	// temporary directory, and removes it at the end, as well as those there that a killed process left.
	Dir string
	// StateDir keeps the authorities and their keys, unencrypted, so that a restart is the same trust domain. ""
	// keeps nothing.
	StateDir string
	// SVIDTTL is the lifetime of X.509-SVIDs, which are renewed at half of it; 0 means 10 minutes. A certificate's
	// times are whole seconds, so its end is rounded up.
	SVIDTTL time.Duration
	Logger  *zap.Logger // nil is silent
}

// Workload is one identity of the domain and the socket that gives it.
type Workload struct {
	Name     string      // file name of the socket without ".sock": lower-case letters, digits, dashes
	ID       spiffeid.ID // in the domain's trust domain
	DNSNames []string    // DNS SANs: Stint's own SVID has "localhost", for clients that check names
	IPs      []net.IP    // IP SANs
}

// Domain is a running or startable trust domain. It is safe for concurrent use.
type Domain struct {
	config Config
	dir    string
	owner  *os.File // the lock on a directory that New made; nil for another
	server *grpc.Server

	mu        sync.Mutex // guards what follows
	authority authority
	federated []*spiffebundle.Bundle
	workloads map[string]Workload // by socket path
	pending   []net.Listener      // not served yet
	serve     func(net.Listener)  // set while Run runs
	changed   chan struct{}       // closed when authorities or federation change
	closed    bool
}

// New makes the trust domain, or reads it from StateDir, and its directory. Nothing is served until Run is called;
// Close frees what New and Add took.
func New(config Config) (*Domain, error) {
	if config.TrustDomain.IsZero() {
		return nil, errors.New("dev domain: trust domain is missing")
	}
	if config.SVIDTTL <= 0 {
		config.SVIDTTL = defaultSVIDTTL
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	keys, err := loadAuthority(config.StateDir, config.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("dev domain %s: %w", config.TrustDomain.Name(), err)
	}
	dir, owner, err := socketDir(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("dev domain %s: %w", config.TrustDomain.Name(), err)
	}
	d := &Domain{
		config: config, dir: dir, owner: owner, authority: keys,
		workloads: make(map[string]Workload), changed: make(chan struct{}),
	}
	d.server = grpc.NewServer(
		grpc.Creds(credentials(config.Logger)),
		grpc.UnaryInterceptor(requireHeaderUnary), grpc.StreamInterceptor(requireHeaderStream),
	)
	workload.RegisterSpiffeWorkloadAPIServer(d.server, &api{domain: d})
	return d, nil
}

// TrustDomain returns the domain's name.
func (d *Domain) TrustDomain() spiffeid.TrustDomain { return d.config.TrustDomain }

// Dir returns the directory of the sockets.
func (d *Domain) Dir() string { return d.dir }

// Add opens the socket of a workload and returns its path. Clients may connect at once; they are answered while Run
// runs.
func (d *Domain) Add(ctx context.Context, w Workload) (string, error) {
	path, err := d.check(w)
	if err != nil {
		return "", fmt.Errorf("add workload %q: %w", w.Name, err)
	}
	d.mu.Lock()
	_, taken := d.workloads[path]
	closed := d.closed
	if !taken && !closed {
		d.workloads[path] = w
	}
	d.mu.Unlock()
	if taken || closed {
		return "", fmt.Errorf("add workload %q: name is taken or the domain is closed", w.Name)
	}
	if err := d.open(ctx, path); err != nil {
		d.mu.Lock()
		delete(d.workloads, path)
		d.mu.Unlock()
		return "", fmt.Errorf("add workload %q: %w", w.Name, err)
	}
	return path, nil
}

// check returns the path of the workload's socket if all is well with it.
func (d *Domain) check(w Workload) (string, error) {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`).MatchString(w.Name) {
		return "", errors.New("name must be lower-case letters, digits and dashes, at most 32")
	}
	if !w.ID.MemberOf(d.config.TrustDomain) {
		return "", fmt.Errorf("%s is not in trust domain %s", w.ID, d.config.TrustDomain.Name())
	}
	path := filepath.Join(d.dir, w.Name+socketSuffix)
	if len(path) > peercred.MaxPath {
		return "", fmt.Errorf("socket path %s has %d bytes, unix sockets take %d; choose a shorter directory",
			path, len(path), peercred.MaxPath)
	}
	return path, nil
}

// open listens on a socket and has it served, now or when Run begins. A socket left over is replaced: the directory
// is the domain's own.
func (d *Domain) open(ctx context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return errors.Join(errors.New("the domain is closed"), l.Close())
	case d.serve != nil:
		d.serve(l)
	default:
		d.pending = append(d.pending, l)
	}
	return nil
}

// Path returns the path of the workload's socket.
func (d *Domain) Path(name string) (string, error) {
	path := filepath.Join(d.dir, name+socketSuffix)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.workloads[path]; !ok {
		return "", fmt.Errorf("%w %q", ErrUnknown, name)
	}
	return path, nil
}

// Addr returns the workload's address for SPIFFE_ENDPOINT_SOCKET, unix:///…, whether it has been added or not.
func (d *Domain) Addr(name string) string {
	return "unix://" + filepath.Join(d.dir, name+socketSuffix)
}

// Run serves the Workload API until ctx is done, then closes the domain. It runs at most once.
func (d *Domain) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	d.mu.Lock()
	if d.serve != nil || d.closed {
		d.mu.Unlock()
		return errors.New("dev domain: runs or is closed already")
	}
	d.serve = func(l net.Listener) {
		group.Go(func() error {
			if err := d.server.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
				return err
			}
			return nil
		})
	}
	for _, l := range d.pending {
		d.serve(l)
	}
	d.pending = nil
	d.mu.Unlock()
	group.Go(func() error {
		<-ctx.Done()
		return d.Close()
	})
	return group.Wait()
}

// Close ends every stream, and removes the sockets and the directory that New made. Run calls it.
func (d *Domain) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	pending := d.pending
	d.pending = nil
	d.mu.Unlock()

	d.server.Stop() // closes the listeners it serves, which unlinks their sockets
	var errs []error
	for _, l := range pending {
		errs = append(errs, l.Close())
	}
	if d.owner != nil {
		errs = append(errs, os.RemoveAll(d.dir), d.owner.Close())
	}
	return errors.Join(errs...)
}

// Federate hands the bundles of other trust domains to every workload, as SPIRE does with those it federates with.
func (d *Domain) Federate(bundles ...*spiffebundle.Bundle) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.federated = bundles
	d.announce()
}

// RotateCA begins to sign with new authorities. The old ones stay in the bundle until RemoveOldRoots, as in a real
// rotation.
func (d *Domain) RotateCA() error {
	return d.change(func(a authority) (authority, error) { return a.rotated(d.config.TrustDomain) })
}

// RemoveOldRoots leaves only the authorities that sign now in the bundle: whoever was signed by others no longer
// verifies.
func (d *Domain) RemoveOldRoots() error {
	return d.change(func(a authority) (authority, error) { return a.withoutOld(), nil })
}

func (d *Domain) change(f func(authority) (authority, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next, err := f(d.authority)
	if err != nil {
		return err
	}
	if err := next.save(d.config.StateDir); err != nil {
		return err
	}
	d.authority = next
	d.announce()
	return nil
}

// announce wakes every stream. The caller holds mu.
func (d *Domain) announce() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// Bundle returns the domain's bundle as others would federate with it.
func (d *Domain) Bundle() *spiffebundle.Bundle {
	v := d.view()
	return v.authority.bundle(d.config.TrustDomain)
}

// view is what a request sees: one instant of the domain.
type view struct {
	authority authority
	federated []*spiffebundle.Bundle
	changed   <-chan struct{}
}

func (d *Domain) view() view {
	d.mu.Lock()
	defer d.mu.Unlock()
	return view{authority: d.authority, federated: d.federated, changed: d.changed}
}
