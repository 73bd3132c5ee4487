package stepca

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
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/stint-dev/stint/plugins"
)

// probeTTL is the life of a certificate that Probe has made; it expires by itself where it cannot be revoked.
const probeTTL = time.Minute

// probeEnd is how long revoking it may take, even when there is no time left to look at anything else.
const probeEnd = 30 * time.Second

const pathRenew = "/1.0/renew"

// Probe signs one certificate by the role for real and revokes it; of a remote step-ca it also tries to renew it, which
// must not work. Nobody else may use an embedded CA's data directory meanwhile. Params are not used: certificates take none.
func (b *Backend) Probe(ctx context.Context, role plugins.Role, _ map[string]string) []plugins.Finding {
	switch ca := b.ca.(type) {
	case *embedded:
		return b.probeEmbedded(ctx, ca, role)
	case *remote:
		return b.probeRemote(ctx, ca, role)
	}
	return nil
}

func (b *Backend) probeRemote(ctx context.Context, r *remote, role plugins.Role) []plugins.Finding {
	p := probe{backend: b, remote: r, role: role}
	key, req, err := probeRequest(role)
	if err != nil {
		p.breaks("probe-issue", err.Error(), "")
		return p.found
	}
	cred, err := b.Issue(ctx, req)
	if err != nil {
		p.breaks("probe-issue", err.Error(), "see step-ca's log; its provisioner must have the template, key and claims of docs/check.md")
		if errors.Is(err, plugins.ErrNotIssued) {
			return p.found
		}
		cred.NotAfter = req.NotAfter
	} else {
		p.renew(ctx, tls.Certificate{Certificate: cred.Chain, PrivateKey: key})
	}
	p.revoke(ctx, plugins.Held{Lease: req.Lease, Role: role.Name, Handle: cred.Handle, NotAfter: cred.NotAfter})
	return p.found
}

func probeRequest(role plugins.Role) (*ecdsa.PrivateKey, plugins.Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, plugins.Request{}, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, plugins.Request{}, fmt.Errorf("make a request: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, plugins.Request{}, fmt.Errorf("make an ID: %w", err)
	}
	ttl := probeTTL
	if role.MaxTTL > 0 {
		ttl = max(min(ttl, role.MaxTTL), time.Second)
	}
	return key, plugins.Request{
		Lease: plugins.LeaseID(id), TaskID: id.String(), TaskName: "stintd-check", Agent: "spiffe://check.invalid/stintd",
		Role: role, CSR: csr, NotAfter: time.Now().Add(ttl),
	}, nil
}

// probe collects what one Probe finds.
type probe struct {
	backend *Backend
	remote  *remote // nil of an embedded one
	role    plugins.Role
	found   []plugins.Finding
}

func (p *probe) breaks(code, problem, remedy string) {
	p.found = append(p.found, broken(code, "role "+p.role.Name, "tried: "+problem, remedy))
}

// renew asks for another certificate with the one that was issued, as its holder could.
func (p *probe) renew(ctx context.Context, cert tls.Certificate) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: pool(p.remote.pinned), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.remote.client.base+pathRenew, http.NoBody)
	if err != nil {
		return
	}
	answer, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return // its handshake was refused: a certificate for servers only cannot be renewed so
	}
	defer func() { _ = answer.Body.Close() }() // read to its end or given up
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil || answer.StatusCode != http.StatusCreated {
		return
	}
	problem := "step-ca renewed the certificate for its holder"
	if chain, err := parseSigned(body); err == nil {
		if _, err := p.remote.askRevoke(ctx, chain[0].SerialNumber); err != nil {
			problem += "; the new one works until " + chain[0].NotAfter.UTC().Format(time.RFC3339)
		}
	}
	p.breaks("ca-renewal", problem, `"claims": {"disableRenewal": true, "disableSmallstepExtensions": false} of the provisioner and a "db", in ca.json`)
}

func (p *probe) revoke(ctx context.Context, held plugins.Held) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeEnd)
	defer cancel()
	_, err := p.backend.Revoke(ctx, held)
	if err == nil {
		return
	}
	code, remedy := "probe-revoke", `"crl": {"enabled": true, "generateOnRevoke": true} in ca.json, and a "db"`
	if errors.Is(err, plugins.ErrNotProven) && p.remote.current.Load() != nil {
		code = "ca-crl-on-revoke"
	}
	p.breaks(code, fmt.Sprintf("%s; the certificate works until %s", err, held.NotAfter.UTC().Format(time.RFC3339)), remedy)
}
