package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"time"

	gox509svid "github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// errRevoked is why the demo's service turns a certificate away.
var errRevoked = errors.New("certificate is on the CRL")

// demoService is somebody's mTLS service. It knows nothing of Stint but two URLs: the bundle to trust, and the CRL to check.
type demoService struct {
	statusURL string
	roots     *x509.CertPool
	issuers   []*x509.Certificate
	cert      tls.Certificate
	caPool    *x509.CertPool // for its clients: what signs its own certificate
	listener  net.Listener
	http      *http.Server
}

// startDemoService fetches the bundle as an owner of a service would, and serves with a certificate of its own.
func startDemoService(ctx context.Context, statusURL string) (*demoService, error) {
	s := &demoService{statusURL: statusURL, roots: x509.NewCertPool(), caPool: x509.NewCertPool()}
	bundle, err := fetch(ctx, statusURL+"/bundle.pem")
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		cert, perr := x509.ParseCertificate(block.Bytes)
		if perr != nil {
			return nil, fmt.Errorf("parse bundle: %w", perr)
		}
		s.roots.AddCert(cert)
		s.issuers = append(s.issuers, cert)
	}
	if s.cert, err = selfSigned(); err != nil {
		return nil, err
	}
	s.caPool.AddCert(s.cert.Leaf)
	s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.greet),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // the story tells what is refused
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert}, ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs: s.roots, SessionTicketsDisabled: true, VerifyConnection: s.verify,
		},
	}
	return s, nil
}

// run serves until ctx is done.
func (s *demoService) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() }) // the error is that of Serve below
	defer stop()
	err := s.http.ServeTLS(s.listener, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *demoService) url() string { return "https://" + s.listener.Addr().String() }

// verify checks the CRL, which crypto/tls does not.
func (s *demoService) verify(state tls.ConnectionState) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return s.verifyLeaf(ctx, state.PeerCertificates[0])
}

// verifyLeaf fetches the CRL and looks the certificate up in it.
func (s *demoService) verifyLeaf(ctx context.Context, leaf *x509.Certificate) error {
	der, err := fetch(ctx, s.statusURL+"/crl.der")
	if err != nil {
		return err
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("parse CRL: %w", err)
	}
	if err := s.checkCRL(crl); err != nil {
		return err
	}
	for _, e := range crl.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return fmt.Errorf("%w %s", errRevoked, crl.Number)
		}
	}
	return nil
}

func (s *demoService) checkCRL(crl *x509.RevocationList) error {
	if time.Now().After(crl.NextUpdate) {
		return errors.New("the CRL is out of date")
	}
	for _, issuer := range s.issuers {
		if crl.CheckSignatureFrom(issuer) == nil {
			return nil
		}
	}
	return errors.New("the CRL is not signed by the bundle")
}

// greet says who came: the agent behind the task's certificate.
func (s *demoService) greet(w http.ResponseWriter, r *http.Request) {
	id, err := gox509svid.IDFromCert(r.TLS.PeerCertificates[0])
	if err != nil {
		http.Error(w, "no SPIFFE ID", http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "hello "+id.String()) //nolint:gosec // plain text, and the ID is of a verified certificate
}

// callService calls the service with a client certificate and returns what it said.
func callService(ctx context.Context, s *demoService, client tls.Certificate) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: s.caPool, ServerName: "localhost", Certificates: []tls.Certificate{client},
	}}
	defer transport.CloseIdleConnections()
	return get(ctx, &http.Client{Transport: transport, Timeout: 5 * time.Second}, s.url())
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	body, err := get(ctx, &http.Client{Timeout: 5 * time.Second}, url)
	return []byte(body), err
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }() // read only
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return string(body), nil
}

// selfSigned makes the service's own certificate for localhost.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "demo service"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
