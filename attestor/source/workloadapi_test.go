package source_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
)

// answer is what a stub says to a request.
type answer func() (*workload.X509SVIDResponse, error)

// stub is a Workload API that gives every stream its present answer, and the next one when there is one.
type stub struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	mu      sync.Mutex // guards what follows
	present answer
	changed chan struct{}
}

func (s *stub) say(a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
	}
	s.present, s.changed = a, make(chan struct{})
}

func (s *stub) get() (answer, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.present, s.changed
}

func (s *stub) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		present, changed := s.get()
		resp, err := present()
		if err != nil {
			return err
		}
		if err = stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// serveStub returns the address of a Workload API with this answer.
func serveStub(t *testing.T, a answer) (string, *stub) {
	t.Helper()
	s := new(stub)
	s.say(a)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(srv, s)
	attestortest.Serve(t, func(ctx context.Context) error {
		go func() { <-ctx.Done(); srv.Stop() }()
		return srv.Serve(l)
	})
	return "tcp://" + l.Addr().String(), s
}

// denied is what SPIRE says to a process without a registration.
func denied() (*workload.X509SVIDResponse, error) {
	return nil, status.Error(codes.PermissionDenied, "no identity issued")
}

// several answers with an SVID for each path, in this order.
func several(t *testing.T, d *devdomain.Domain, paths ...string) answer {
	t.Helper()
	resp := new(workload.X509SVIDResponse)
	for _, path := range paths {
		svid, err := d.IssueX509(devdomain.X509Request{ID: attestortest.ID(t, d, path)})
		if err != nil {
			t.Fatal(err)
		}
		certs, key, err := svid.MarshalRaw()
		if err != nil {
			t.Fatal(err)
		}
		resp.Svids = append(resp.Svids, &workload.X509SVID{
			SpiffeId: svid.ID.String(), X509Svid: certs, X509SvidKey: key, Bundle: d.Bundle().X509Authorities()[0].Raw,
		})
	}
	return func() (*workload.X509SVIDResponse, error) { return resp, nil }
}

func TestPicksOneOfSeveral(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	logged, logs := observer.New(zap.WarnLevel)
	addr, _ := serveStub(t, several(t, d, "/a", "/b"))
	first, err := source.OpenWorkloadAPI(within(t), source.WorkloadAPI{Addr: addr, Logger: zap.New(logged)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	if got := first.ID().Path(); got != "/a" || logs.Len() != 1 {
		t.Errorf("took %s, %d lines logged", got, logs.Len())
	}
	second, err := source.OpenWorkloadAPI(within(t), source.WorkloadAPI{Addr: addr, ID: attestortest.ID(t, d, "/b")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if got := second.ID().Path(); got != "/b" {
		t.Errorf("took %s", got)
	}
	_, err = source.OpenWorkloadAPI(within(t), source.WorkloadAPI{Addr: addr, ID: attestortest.ID(t, d, "/c")})
	if !errors.Is(err, source.ErrNoIdentity) || !strings.Contains(err.Error(), "spiffe://example.org/a") {
		t.Errorf("an SVID that is not there: %v", err)
	}
}

// SPIRE promises no order: who took the first must keep its identity.
func TestKeepsTheIdentityItTook(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	addr, api := serveStub(t, several(t, d, "/a", "/b"))
	s := open(t, source.WorkloadAPI{Addr: addr})
	before := s.Generation()
	if err := d.RotateCA(); err != nil { // so that the arrival of the answer can be seen
		t.Fatal(err)
	}
	changed := s.Changed()
	api.say(several(t, d, "/b", "/a"))
	select {
	case <-changed:
	case <-time.After(soon):
		t.Fatal("no update")
	}
	if s.ID().Path() != "/a" || s.Generation() != before+1 {
		t.Errorf("the source is now %s, generation %d", s.ID(), s.Generation())
	}
}

func TestOpenWorkloadAPIExplains(t *testing.T) {
	t.Parallel()
	refusing, _ := serveStub(t, denied)
	uid := strconv.Itoa(os.Getuid())
	for _, c := range []struct {
		name, addr string
		want       error
		texts      []string
	}{
		{"no identity", refusing, source.ErrNoIdentity, []string{"has no identity for this process (uid " + uid, "register selector unix:uid:" + uid}},
		{"nobody there", "unix:///nonexistent/agent.sock", source.ErrUnreachable, []string{"/nonexistent/agent.sock"}},
		{"relative", "unix://run/agent.sock", source.ErrBadAddress, []string{"unix:///run/agent.sock"}},
		{"no scheme", "/run/agent.sock", source.ErrBadAddress, []string{"/run/agent.sock"}},
		{"too long", "unix:///" + strings.Repeat("x", 107), source.ErrBadAddress, []string{"107"}},
	} {
		_, err := source.OpenWorkloadAPI(within(t), source.WorkloadAPI{Addr: c.addr})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", c.name, err)
			continue
		}
		for _, text := range c.texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q lacks %q", c.name, err, text)
			}
		}
	}
}

func TestOpenWorkloadAPIReadsTheEnvironment(t *testing.T) {
	t.Setenv(workloadapi.SocketEnv, "")
	_, err := source.OpenWorkloadAPI(t.Context(), source.WorkloadAPI{})
	if !errors.Is(err, source.ErrNoAddress) || !strings.Contains(err.Error(), "SPIFFE_ENDPOINT_SOCKET is not set (SPIRE: ") {
		t.Errorf("got %v", err)
	}
	d := attestortest.NewDomain(t, "example.org", 0)
	attestortest.Serve(t, d.Run)
	t.Setenv(workloadapi.SocketEnv, attestortest.Add(t, d, devdomain.Workload{Name: "a", ID: attestortest.ID(t, d, "/a")}))
	s, err := source.OpenWorkloadAPI(within(t), source.WorkloadAPI{})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

func TestOpenWorkloadAPIWaits(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	registered := several(t, d, "/a")
	var asked atomic.Int64
	addr, _ := serveStub(t, func() (*workload.X509SVIDResponse, error) {
		if asked.Add(1) == 1 {
			return denied()
		}
		return registered()
	})
	s, err := source.OpenWorkloadAPI(within(t), source.WorkloadAPI{Addr: addr, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// TestAwaits: a source may begin without an SVID, whose ID is known. It takes none that is not accepted.
func TestAwaits(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	addr, api := serveStub(t, denied)
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if _, err := source.OpenWorkloadAPI(brief(), source.WorkloadAPI{Addr: addr, Wait: true, Await: true}); err == nil {
		t.Error("it awaits the SVID of nobody")
	}
	var refused atomic.Bool
	refused.Store(true)
	asked := make(chan struct{}, 100)
	s, err := source.OpenWorkloadAPI(brief(), source.WorkloadAPI{
		Addr: addr, ID: attestortest.ID(t, d, "/a"), Wait: true, Await: true,
		Accept: func(source.Material) error {
			defer func() { asked <- struct{}{} }()
			if refused.Load() {
				return errors.New("not this one")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	s.SetTrust(attestortest.ID(t, d, "/a").TrustDomain())
	if _, err := s.GetX509SVID(); !errors.Is(err, source.ErrNoIdentity) || s.ID().Path() != "/a" || s.Check(time.Now()) == nil || len(s.Authorities()) != 0 {
		t.Errorf("without an SVID: %v, %s, %v, %v", err, s.ID(), s.Check(time.Now()), s.Authorities())
	}
	attestortest.Serve(t, s.Run)
	api.say(several(t, d, "/a"))
	<-asked
	if err := s.Check(time.Now()); err == nil {
		t.Error("it took what was not accepted")
	}
	refused.Store(false)
	api.say(several(t, d, "/a"))
	for end := time.Now().Add(soon); s.Check(time.Now()) != nil; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the SVID never came: %v", s.Check(time.Now()))
		}
	}
	if svid, err := s.GetX509SVID(); err != nil || svid.ID.Path() != "/a" {
		t.Errorf("%v, %v", svid, err)
	}
}

// TestBundlesThatAreNone: whatever a Workload API says instead of a bundle, the one in force stays in force, and the next that
// is one is taken.
func TestBundlesThatAreNone(t *testing.T) {
	t.Parallel()
	d, other := attestortest.NewDomain(t, "example.org", 0), attestortest.NewDomain(t, "other.org", 0)
	for name, bundle := range map[string][]byte{"empty": nil, "junk": []byte("junk"), "cut": d.Bundle().X509Authorities()[0].Raw[:100]} {
		none := with(t, several(t, d, "/a"), bundle)
		addr, api := serveStub(t, none)
		config := source.WorkloadAPI{Addr: addr, ID: attestortest.ID(t, d, "/a")}
		if _, err := source.OpenWorkloadAPI(within(t), config); err == nil {
			t.Errorf("%s: a source begins with it", name)
		}
		api.say(several(t, d, "/a"))
		stays(t, d, config, func(kept func()) {
			api.say(none)
			kept()
			api.say(several(t, d, "/a"))
		})
	}
	// The SVID of somebody else comes with the bundle of another trust domain only.
	addr, api := serveStub(t, several(t, d, "/a"))
	stays(t, d, source.WorkloadAPI{Addr: addr, ID: attestortest.ID(t, d, "/a")}, func(kept func()) {
		api.say(several(t, other, "/a"))
		kept()
		api.say(several(t, d, "/a"))
	})
}

// with is an answer with another bundle.
func with(t *testing.T, a answer, bundle []byte) answer {
	t.Helper()
	resp, err := a()
	if err != nil {
		t.Fatal(err)
	}
	resp.Svids[0].Bundle = bundle
	return func() (*workload.X509SVIDResponse, error) { return resp, nil }
}

// stays lets a Workload API fail. kept waits until that is noticed, and sees that the bundle is still in force.
func stays(t *testing.T, d *devdomain.Domain, config source.WorkloadAPI, fail func(kept func())) {
	t.Helper()
	logged, logs := observer.New(zap.WarnLevel)
	config.Logger = zap.New(logged)
	s := open(t, config)
	before, err := s.GetX509BundleForTrustDomain(d.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	fail(func() {
		poll(t, func() bool { return logs.Len() > 0 })
		if now, err := s.GetX509BundleForTrustDomain(d.TrustDomain()); err != nil || !now.Equal(before) {
			t.Errorf("the bundle is no longer in force: %v", err)
		}
	})
	poll(t, func() bool {
		next, err := s.GetX509SVID()
		return err == nil && next != svid
	})
}

// poll waits until something is so.
func poll(t *testing.T, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(soon); !so(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("it never was so")
		}
	}
}
