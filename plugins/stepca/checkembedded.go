package stepca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// Begun reports whether an embedded CA was ever made or used in a data directory: only then may somebody depend on its CRL.
func Begun(dataDir string) bool {
	for _, name := range []string{certFile, issuerFile} {
		if _, err := os.Stat(filepath.Join(dataDir, name)); err == nil {
			return true
		}
	}
	return false
}

// endsSoon is how early check says that the issuing CA ends.
const endsSoon = 30 * 24 * time.Hour

// check reports revocations that were lost, and an issuing CA that ends soon.
func (e *embedded) check(context.Context, []plugins.Role) []plugins.Finding {
	var found []plugins.Finding
	if lost := e.revoked.current.Load().lostAt; !lost.IsZero() {
		found = append(found, broken("ca-crl-lost", "CRL",
			fmt.Sprintf("%s is missing, damaged or of another CA: certificates that were revoked may be accepted again, until %s at the latest",
				crlFile, lost.Add(e.settings.MaxTTL).UTC().Format(time.RFC3339)),
			"with the broker stopped, restore "+crlFile+" of data_dir/ca from a backup; without one the broker begins anew at its start, and revokes again what its ledger has as revoked"))
	}
	if end := e.issuer.cert.NotAfter; time.Until(end) <= endsSoon {
		found = append(found, weak("ca-ends", "issuing CA", "it ends at "+end.UTC().Format(time.RFC3339)+"; nothing is signed beyond that",
			"issuer_cert and issuer_key of a new CA in stint.hcl"))
	}
	return found
}

// probeEmbedded signs one certificate by the role, revokes it, and reads the CRL as it was written. The entry stays for as
// long as one of a task would.
func (b *Backend) probeEmbedded(ctx context.Context, e *embedded, role plugins.Role) []plugins.Finding {
	p := probe{backend: b, role: role}
	_, req, err := probeRequest(role)
	if err != nil {
		p.breaks("probe-issue", err.Error(), "")
		return p.found
	}
	cred, err := b.Issue(ctx, req)
	if err == nil {
		err = e.verify(cred.Chain)
	}
	if err != nil {
		p.breaks("probe-issue", err.Error(), "see that issuer_cert outlives ttl.max, leads to issuer_roots, and that data_dir/ca can be written")
	}
	if len(cred.Chain) == 0 {
		return p.found
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeEnd)
	defer cancel()
	if _, err = b.Revoke(ctx, plugins.Held{Lease: req.Lease, Role: role.Name, Handle: cred.Handle, NotAfter: cred.NotAfter}); err == nil {
		err = e.written(req.Lease)
	}
	if err != nil {
		p.breaks("probe-revoke", fmt.Sprintf("%s; the certificate works until %s", err, cred.NotAfter.UTC().Format(time.RFC3339)),
			"see that "+e.revoked.path+" can be written")
	}
	return p.found
}

// verify holds a chain against the roots that services are given.
func (e *embedded) verify(chain [][]byte) error {
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("read what was signed: %w", err)
		}
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: pool(e.issuer.roots), Intermediates: pool(certs[1:]), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

var errNotWritten = errors.New("the CRL in the file does not hold it")

// written reads the CRL from its file, as the next start would.
func (e *embedded) written(lease plugins.LeaseID) error {
	der, err := os.ReadFile(e.revoked.path)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(e.revoked.path), err)
	}
	c, err := readCRL(der, e.settings.arc, e.issuer.cert)
	if err != nil {
		return err
	}
	if !c.holds(lease) {
		return errNotWritten
	}
	return nil
}
