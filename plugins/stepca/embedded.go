package stepca

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
)

// embedded is the CA in this process. Signing certificates takes no lock.
type embedded struct {
	settings *settings
	issuer   *issuer
	ca       *softcas.SoftCAS
	revoked  *revocations
	journal  *journal
}

// openEmbedded reads or makes what is in the data directory.
func openEmbedded(s *settings, logger *zap.Logger) (*embedded, error) {
	now := time.Now()
	is, err := openIssuer(s, now)
	if err != nil {
		return nil, err
	}
	ca, err := is.service(context.Background())
	if err != nil {
		return nil, err
	}
	dir := s.Embedded.DataDir
	r := &revocations{
		settings: s, issuer: is, signer: ca, logger: logger, path: filepath.Join(dir, crlFile), group: newGroup[revocation](),
	}
	if err = r.open(now); err != nil {
		return nil, err
	}
	since := now
	if !is.used && is.file == certFile { // its key is new
		since = time.Time{}
	}
	j, err := openJournal(s, dir, since)
	if err != nil {
		return nil, err
	}
	if err = is.finish(s); err != nil {
		return nil, err
	}
	return &embedded{settings: s, issuer: is, ca: ca, revoked: r, journal: j}, nil
}

// sign makes the certificate and returns its chain in DER, leaf first, when it is in the list of what was signed.
func (e *embedded) sign(ctx context.Context, l *leaf) ([][]byte, error) {
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w: %w", plugins.ErrUnavailable, plugins.ErrNotIssued, context.Cause(ctx))
	case e.revoked.current.Load().holds(l.lease):
		return nil, fmt.Errorf("%w: the serial is on the CRL already", plugins.ErrNotIssued)
	case l.notAfter.After(e.issuer.cert.NotAfter):
		return nil, refuse(fmt.Errorf("it would outlive the issuing CA, which ends at %s", e.issuer.cert.NotAfter.Format(time.RFC3339)))
	}
	if err := e.revoked.keep(ctx, time.Now()); err != nil {
		return nil, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	}
	if l.notBefore.Before(e.issuer.cert.NotBefore) {
		l.notBefore = e.issuer.cert.NotBefore
	}
	made, err := e.ca.CreateCertificate(&apiv1.CreateCertificateRequest{
		Template: l.template(e.settings.CRLURL), CSR: l.csr, Lifetime: l.notAfter.Sub(l.notBefore),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w: %w", plugins.ErrUnavailable, plugins.ErrNotIssued, err)
	}
	if err := e.journal.add(ctx, l); err != nil {
		e.revoked.group.join([]revocation{{lease: l.lease, notAfter: l.notAfter}}) // the next CRL holds what is dropped
		return nil, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	}
	return append([][]byte{made.Certificate.Raw}, ders(e.issuer.chain)...), nil
}

// revoke returns when the serial is on the CRL that is served.
func (e *embedded) revoke(ctx context.Context, rev revocation) (revoked, error) {
	on, number, err := e.revoked.add(ctx, rev)
	if err != nil {
		return revoked{}, err
	}
	return revoked{
		number: number, notAfter: on.notAfter, olderUntil: on.revokedAt.Add(e.settings.CRLValidity),
	}, nil
}

func (e *embedded) crl(context.Context) ([]byte, error) { return e.revoked.current.Load().der, nil }

func (e *embedded) roots() [][]byte { return ders(e.issuer.roots) }

func (e *embedded) intermediates() [][]byte { return ders(e.issuer.chain) }

// issued yields what was signed: nobody else has the CA's key.
func (e *embedded) issued(ctx context.Context) iter.Seq2[plugins.Found, error] {
	return e.journal.issued(ctx, time.Now())
}

func (e *embedded) run(ctx context.Context) error { return e.revoked.run(ctx) }

func (e *embedded) healthy(context.Context) error {
	now := time.Now()
	if end := e.issuer.cert.NotAfter; now.After(end) {
		return fmt.Errorf("%w: the issuing CA ended at %s", plugins.ErrMisconfigured, end.Format(time.RFC3339))
	}
	return e.revoked.healthy(now)
}
