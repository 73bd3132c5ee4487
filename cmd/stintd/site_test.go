package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	trustDomain = "example.org"
	stintPath   = "/stint"
	agentPath   = "/agent/a1"
)

// authority is a plain CA of a trust domain, without the mark of a development one, which serve refuses.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "example.org root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// svid makes an X.509-SVID of an hour for a path in the trust domain.
func (a *authority) svid(tb testing.TB, path string) *x509svid.SVID {
	tb.Helper()
	return a.shortSVID(tb, path, time.Hour)
}

func (a *authority) shortSVID(tb testing.TB, path string, life time.Duration) *x509svid.SVID {
	tb.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		tb.Fatal(err)
	}
	key := newKey(tb)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: path}}, DNSNames: []string{"localhost"},
		BasicConstraintsValid: true,
	}, a.cert, key.Public(), a.key)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	svid, err := x509svid.ParseRaw(der, raw)
	if err != nil {
		tb.Fatal(err)
	}
	return svid
}

// source returns a source of the SVID of a path.
func (a *authority) source(tb testing.TB, path string) *source.Source {
	tb.Helper()
	set := x509bundle.NewSet(x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(trustDomain), []*x509.Certificate{a.cert}))
	s, err := source.New(source.Material{SVID: a.svid(tb, path), X509: set})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// site is one installation of stintd: configuration, identity files, resources and what it writes.
type site struct {
	ca   *authority
	dir  string // short, since it holds a unix socket
	grpc string
	http string
	key  string // the log's verifier key
	env  []string
}

// file returns a path in the site.
func (s *site) file(name ...string) string { return filepath.Join(append([]string{s.dir}, name...)...) }

// newSite writes an installation with these backend blocks and documents of resources. identity is a block, or empty for
// files.
func newSite(tb testing.TB, identity, backends, resources string) *site {
	tb.Helper()
	s := &site{ca: newAuthority(tb), dir: shortDir(tb), grpc: servertest.FreeAddress(tb), http: servertest.FreeAddress(tb)}
	for _, name := range []string{"resources.d", "identity", "log"} {
		if err := os.Mkdir(s.file(name), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	s.writeIdentity(tb)
	keys, err := makeKeys(s.file("audit.key"), "stint.example.org/audit")
	if err != nil {
		tb.Fatal(err)
	}
	s.key = keys.Text
	s.resources(tb, resources)
	if identity == "" {
		identity = s.identityFiles()
	}
	write(tb, s.file("stint.hcl"), fmt.Sprintf(`
data_dir = %q
listen {
  grpc  = %q
  http  = %q
  admin = "unix://%s"
}
admins "spiffe://example.org/ops/*" { role = "admin" }
task_trust_domain = "tasks.example.org"
resources = %q
ledger "sqlite" { stop_issuing_below = "16MiB" }
audit {
  origin      = "stint.example.org/audit"
  key_file    = %q
  file        = %q
  checkpoints = %q
}
`, s.file("data"), s.grpc, s.http, s.file("admin.sock"), s.file("resources.d"), s.file("audit.key"), s.file("log", "audit.jsonl"),
		s.file("log", "checkpoints.log"))+identity+backends)
	return s
}

// identityFiles is the block of an identity from files.
func (s *site) identityFiles() string {
	return fmt.Sprintf("identity {\n  cert_file = %q\n  key_file = %q\n  bundle_file = %q\n  trust_domains = [%q]\n}\n",
		s.file("identity", "svid.pem"), s.file("identity", "key.pem"), s.file("identity", "bundle.pem"), trustDomain)
}

// shortDir makes a directory for sockets: a test's own may be too long.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "stintd-") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// writeIdentity writes the daemon's own SVID and the bundle.
func (s *site) writeIdentity(tb testing.TB) {
	tb.Helper()
	cert, key, err := s.ca.svid(tb, stintPath).Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	write(tb, s.file("identity", "svid.pem"), string(cert))
	write(tb, s.file("identity", "key.pem"), string(key))
	write(tb, s.file("identity", "bundle.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw})))
}

// resources replaces the folder of resources.
func (s *site) resources(tb testing.TB, yaml string) {
	tb.Helper()
	write(tb, s.file("resources.d", "all.yaml"), yaml)
}

// start runs the daemon and returns when it is ready.
func (s *site) start(tb testing.TB) *daemon {
	tb.Helper()
	d := launchWith(tb, s.dir, s.env, "serve", "--config", s.file("stint.hcl"))
	d.says(tb, `"msg":"ready"`)
	for line := range strings.Lines(d.log(tb)) {
		if _, took, ok := strings.Cut(line, `"took":`); ok && strings.Contains(line, `"msg":"ready"`) {
			tb.Logf("ready in %.6s s", took)
		}
	}
	return d
}

// agent returns a client with the SVID of a path.
func (s *site) agent(tb testing.TB, path string) *agent.Client {
	tb.Helper()
	return connect(tb, agent.WithAddr(s.grpc), agent.WithSource(s.ca.source(tb, path)), agent.WithLogKey(s.key),
		agent.WithServerID("spiffe://"+trustDomain+stintPath))
}

// admin returns a client of the admin socket.
func (s *site) admin(tb testing.TB) *agent.Client {
	tb.Helper()
	return connect(tb, agent.WithAddr("unix://"+s.file("admin.sock")))
}

func connect(tb testing.TB, opts ...agent.Option) *agent.Client {
	tb.Helper()
	c, err := agent.New(tb.Context(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}
