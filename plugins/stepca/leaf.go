package stepca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"path"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/plugins"
)

// backdate is how far NotBefore and thisUpdate lie back, for verifiers whose clock is slow.
const backdate = time.Minute

var errLease = errors.New("the lease ID is no positive serial number")

// leaf is a certificate to be signed: all of it decided, none of it signed.
type leaf struct {
	lease               plugins.LeaseID
	csr                 *x509.CertificateRequest
	commonName          string
	uri                 *url.URL
	dns                 []string
	usages              []x509.ExtKeyUsage
	task                pkix.Extension
	notBefore, notAfter time.Time
}

// newLeaf checks a request and says what to sign for it. Every error wraps ErrNotIssued.
func (s *settings) newLeaf(req plugins.Request, now time.Time) (*leaf, error) {
	r, err := parseRole(req.Role.Config)
	if err != nil {
		return nil, refuse(fmt.Errorf("role %s: %w", req.Role.Name, err))
	}
	agent, err := spiffeid.FromString(req.Agent)
	if err != nil {
		return nil, refuse(fmt.Errorf("agent: %w", err))
	}
	id, err := TaskURI(s.domain, agent, req.TaskID)
	if err != nil {
		return nil, refuse(err)
	}
	l := &leaf{
		lease: req.Lease, uri: id.URL(), usages: r.usages,
		notBefore: now.Add(-backdate).Truncate(time.Second), notAfter: req.NotAfter.Truncate(time.Second),
	}
	l.commonName, err = r.subject(names{agentName: agentName(agent), agentID: agent.String(), taskName: req.TaskName})
	if err != nil {
		return nil, refuse(fmt.Errorf("role %s: %w", req.Role.Name, err))
	}
	if err = s.checkTimes(l, now); err != nil {
		return nil, err
	}
	var asked []string
	l.csr, asked, err = checkCSR(req.CSR, limits{uri: id.String(), commonName: l.commonName, allows: r.allows})
	if err != nil {
		return nil, err
	}
	l.dns = r.names(asked)
	l.task, err = s.arc.extension(TaskInfo{TaskID: req.TaskID, ManifestHash: req.ManifestHash, Role: req.Role.Name})
	if err != nil {
		return nil, refuse(err)
	}
	return l, nil
}

// checkTimes refuses what cannot be a serial number, or lives too long or not at all.
func (s *settings) checkTimes(l *leaf, now time.Time) error {
	switch {
	case l.lease == plugins.LeaseID{} || l.lease[0]&0x80 != 0:
		return refuse(errLease)
	case !l.notAfter.After(now):
		return refuse(errors.New("its end is now or has passed"))
	case l.notAfter.Sub(now) > s.MaxTTL:
		return refuse(fmt.Errorf("it would live longer than the CA signs for, %s", s.MaxTTL))
	}
	return nil
}

// refuse makes err an operator's to mend, with nothing issued.
func refuse(err error) error {
	return fmt.Errorf("%w: %w: %w", plugins.ErrMisconfigured, plugins.ErrNotIssued, err)
}

// agentName is the last segment of the agent's path, or its trust domain where the path is empty.
func agentName(agent spiffeid.ID) string {
	if agent.Path() == "" {
		return agent.TrustDomain().Name()
	}
	return path.Base(agent.Path())
}

// serial is a lease ID as a serial number.
func serial(lease plugins.LeaseID) *big.Int { return new(big.Int).SetBytes(lease[:]) }

// template is the certificate for the embedded CA to sign.
func (l *leaf) template(crlURL string) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber:          serial(l.lease),
		Subject:               pkix.Name{CommonName: l.commonName},
		URIs:                  []*url.URL{l.uri},
		DNSNames:              l.dns,
		NotBefore:             l.notBefore,
		NotAfter:              l.notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           l.usages,
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{l.task},
		PublicKey:             l.csr.PublicKey,
	}
	if crlURL != "" {
		t.CRLDistributionPoints = []string{crlURL}
	}
	return t
}

// publicRef names a certificate to people.
func (l *leaf) publicRef() string {
	if l.commonName != "" {
		return "CN=" + l.commonName
	}
	return "serial " + l.lease.String()
}
