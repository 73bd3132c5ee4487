package servertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// errStatus says that a server answered with another status than 200.
var errStatus = errors.New("unexpected HTTP status")

// StepCAOptions says what differs from a plain step-ca. The zero value suits Stint.
type StepCAOptions struct {
	// Template is the provisioner's certificate template; empty means ProvisionerTemplate.
	Template string
	// Database is step-ca's kind of database, kept in the server's directory: badgerv2 (if empty), badger or bbolt. Or
	// postgresql or mysql, with the Source that a user of it who may do everything connects to.
	Database, Source string
	// MinTTL and MaxTTL limit a certificate's validity; zero means 1 s and 24 h.
	MinTTL, MaxTTL time.Duration
	// CRLValidity is the time from a CRL's thisUpdate to its nextUpdate; zero means 1 min.
	CRLValidity time.Duration
	// Change alters ca.json before it is written, to plant a fault; nil changes nothing. The provisioner is
	// config["authority"].(map[string]any)["provisioners"].([]any)[0].(map[string]any).
	Change func(config map[string]any)
}

// StepCA is a running step-ca with one JWK provisioner, renewal disabled, and a CRL that is built at each revocation
// and served at URL/1.0/crl.
type StepCA struct {
	Process

	// URL is where it serves, such as https://127.0.0.1:23456. The certificate it serves with chains to Root.
	URL string
	// Root and Intermediate are its CA certificates; what it issues is signed by Intermediate.
	Root, Intermediate *x509.Certificate
	// RootPEM is Root as PEM.
	RootPEM []byte
	// Provisioner is the name of the JWK provisioner: the issuer of one-time tokens.
	Provisioner string
	// ProvisionerKey is the private key, P-256 with a key ID and ES256, that signs one-time tokens.
	ProvisionerKey jose.JSONWebKey

	database string // file or directory
}

// StartStepCA starts a step-ca that ends with the test.
func StartStepCA(tb testing.TB, options StepCAOptions) *StepCA {
	tb.Helper()
	ca, err := newStepCA(tb.Context(), tb.TempDir(), options)
	give(tb, err)
	tb.Cleanup(func() { ca.Stop(tb) })
	return ca
}

// Restart stops the step-ca if it runs and starts it at the same address, with the same keys and database. step-ca
// refuses one-time tokens that were signed before it started.
func (s *StepCA) Restart(tb testing.TB) {
	tb.Helper()
	s.Stop(tb)
	give(tb, s.start(tb.Context()))
}

// RestartEmpty is Restart with an empty database: what was issued and revoked is forgotten.
func (s *StepCA) RestartEmpty(tb testing.TB) {
	tb.Helper()
	s.Stop(tb)
	give(tb, os.RemoveAll(s.database))
	give(tb, s.start(tb.Context()))
}

// Client returns an HTTP client that trusts only this step-ca.
func (s *StepCA) Client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(s.Root)
	return &http.Client{
		Timeout:   readyTimeout,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}
}

// CRL fetches the current CRL and checks that Intermediate signed it.
func (s *StepCA) CRL(tb testing.TB) *x509.RevocationList {
	tb.Helper()
	list, err := s.crl(tb.Context())
	give(tb, err)
	return list
}

func (s *StepCA) crl(ctx context.Context) (*x509.RevocationList, error) {
	der, err := s.get(ctx, "/1.0/crl")
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("parse CRL: %w", err)
	}
	if err := list.CheckSignatureFrom(s.Intermediate); err != nil {
		return nil, fmt.Errorf("check CRL: %w", err)
	}
	return list, nil
}

// get returns the body at a path of the step-ca.
func (s *StepCA) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	client := s.Client()
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask step-ca: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask step-ca for %s: %w: %s", path, errStatus, response.Status)
	}
	return io.ReadAll(response.Body)
}

func (s *StepCA) ready(ctx context.Context) error {
	_, err := s.get(ctx, "/health")
	return err
}

func newStepCA(ctx context.Context, dir string, options StepCAOptions) (*StepCA, error) {
	binary, err := findBinary("STEP_CA_BIN", "step-ca")
	if err != nil {
		return nil, err
	}
	authority, err := newAuthority(time.Now())
	if err != nil {
		return nil, err
	}
	if err = authority.write(dir); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make provisioner key: %w", err)
	}
	host, port, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(host, strconv.Itoa(port))
	s := &StepCA{
		URL: "https://" + address, Root: authority.root, Intermediate: authority.intermediate,
		RootPEM: encodeCertificate(authority.root), Provisioner: "stint",
		ProvisionerKey: jose.JSONWebKey{Key: key, KeyID: "stint-1", Algorithm: string(jose.ES256), Use: "sig"},
	}
	config := filepath.Join(dir, "ca.json")
	if err := s.writeConfig(config, address, options); err != nil {
		return nil, err
	}
	s.command = command{
		path: binary,
		args: []string{config},
		env:  []string{"HOME=" + dir, "STEPPATH=" + dir, "PATH=" + os.Getenv("PATH")},
		dir:  dir, ready: s.ready, stop: syscall.SIGTERM, kill: syscall.SIGKILL,
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}
