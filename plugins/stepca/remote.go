package stepca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
)

// Paths of step-ca's API. The tokens' audiences are the URLs of two of them.
const (
	pathSign          = "/1.0/sign"
	pathRevoke        = "/1.0/revoke"
	pathCRL           = "/1.0/crl"
	pathIntermediates = "/1.0/intermediates.pem"
	pathHealth        = "/health"
)

const (
	// remoteHorizon is for how long after its deadline a request to sign may still be carried out: its token ends at
	// the deadline, step-ca grants it tokenLeeway more, and then has half a minute to work.
	remoteHorizon = tokenLeeway + 30*time.Second
	// fetchEvery is how often Run fetches the CRL.
	fetchEvery = 20 * time.Second
)

// remote is a step-ca.
type remote struct {
	settings *settings
	client   *client
	tokens   *tokens
	logger   *zap.Logger
	pinned   []*x509.Certificate

	// issuers are the intermediates below the pinned roots, nil until they were asked for.
	issuers atomic.Pointer[[]*x509.Certificate]
	current atomic.Pointer[crl]
	fetches *group[struct{}]
	journal *journal
	signed  *database.Login // step-ca's own database; nil where that is not known
	// lost are revocations that step-ca has to be asked for again. It belongs to the fetch that runs.
	lost map[plugins.LeaseID]entry
}

func newRemote(s *settings, logger *zap.Logger) (*remote, error) {
	c := s.Remote
	if !isURL(c.URL, "https") {
		return nil, fmt.Errorf("%w: url %q is no https URL", errConfig, c.URL)
	}
	if c.Provisioner == "" {
		return nil, fmt.Errorf("%w: no provisioner", errConfig)
	}
	roots, err := parseCertificates(c.RootPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: root_file: %w", errConfig, err)
	}
	t, err := newTokens(c.Provisioner, c.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	j, err := openJournal(s, c.DataDir, time.Now())
	if err != nil {
		return nil, err
	}
	signed, err := c.openDatabase()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return &remote{
		settings: s, client: newClient(c.URL, pool(roots)), tokens: t, logger: logger, pinned: roots, fetches: newGroup[struct{}](),
		journal: j, signed: signed, lost: map[plugins.LeaseID]entry{},
	}, nil
}

// sign asks for the certificate, which is in the list by then, so that a lost answer is in it too; and hands it out only if it
// is what was asked for.
func (r *remote) sign(ctx context.Context, l *leaf) ([][]byte, error) {
	token, err := r.tokens.forSign(ctx, r.client.base+pathSign, l, r.settings.CRLURL)
	if err != nil {
		return nil, refuse(err)
	}
	if err = r.journal.add(ctx, l); err != nil {
		return nil, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	}
	status, body, err := r.client.post(ctx, pathSign, map[string]string{
		"csr":      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: l.csr.Raw})),
		"ott":      token,
		"notAfter": l.notAfter.UTC().Format(time.RFC3339),
	})
	switch {
	case errors.Is(err, errUnsent):
		return nil, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	case err != nil:
		return nil, err
	case status >= 400 && status < 500:
		return nil, fmt.Errorf("%w: %w", plugins.ErrNotIssued, statusError(pathSign, status))
	case status != http.StatusCreated:
		return nil, statusError(pathSign, status)
	}
	return r.accept(ctx, l, body)
}

// accept reads an answer. What it does not accept is never handed out; if it has another serial number than the
// lease's, which alone would not end it, it is revoked by its own.
func (r *remote) accept(ctx context.Context, l *leaf, body []byte) ([][]byte, error) {
	chain, err := parseSigned(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", plugins.ErrUnavailable, err)
	}
	err = l.matches(chain, r.pinned, time.Now())
	if err == nil {
		l.notAfter = chain[0].NotAfter
		return ders(chain), nil
	}
	err = fmt.Errorf("%w: what step-ca issued was dropped: %w; is its template stepca.ProvisionerTemplate?", plugins.ErrMisconfigured, err)
	if chain[0].SerialNumber.Cmp(serial(l.lease)) != 0 {
		_, revokeErr := r.askRevoke(ctx, chain[0].SerialNumber)
		err = errors.Join(err, revokeErr)
	}
	return nil, err
}

// parseSigned reads the chain out of the answer to a request to sign, leaf first and without roots.
func parseSigned(body []byte) ([]*x509.Certificate, error) {
	var answer struct {
		Chain []string `json:"certChain"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errors.New("step-ca's answer is damaged")
	}
	var chain []*x509.Certificate
	for _, text := range answer.Chain {
		certs, err := parseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read step-ca's chain: %w", err)
		}
		if len(chain) == 0 || !isSelfSigned(certs[0]) {
			chain = append(chain, certs[0])
		}
	}
	if len(chain) == 0 {
		return nil, errNoPEM
	}
	return chain, nil
}

func (r *remote) revoke(ctx context.Context, rev revocation) (revoked, error) {
	return r.revokeNumber(ctx, serial(rev.lease), rev.notAfter)
}

// revokeNumber asks for the revocation and believes only the CRL.
func (r *remote) revokeNumber(ctx context.Context, number *big.Int, notAfter time.Time) (revoked, error) {
	status, err := r.askRevoke(ctx, number)
	if err != nil {
		return revoked{}, err
	}
	if err = r.fetches.do(ctx, func([]struct{}) error { return r.fetch(ctx) }); err != nil {
		return revoked{}, err
	}
	c := r.current.Load()
	switch {
	case c.holdsNumber(number): // also when it was revoked before, which step-ca answers with 400
		validity := max(r.settings.CRLValidity, c.nextUpdate.Sub(c.signed))
		return revoked{number: c.number, notAfter: notAfter, olderUntil: time.Now().Add(validity)}, nil
	case status == http.StatusOK || status == http.StatusBadRequest:
		return revoked{}, fmt.Errorf("%w: CRL %s does not hold the serial; set crl.generateOnRevoke in ca.json", plugins.ErrNotProven, c.number)
	default:
		return revoked{}, fmt.Errorf("%w: %w", plugins.ErrNotProven, statusError(pathRevoke, status))
	}
}

func (r *remote) askRevoke(ctx context.Context, number *big.Int) (int, error) {
	token, err := r.tokens.forRevoke(ctx, r.client.base+pathRevoke, number)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", plugins.ErrMisconfigured, err)
	}
	status, _, err := r.client.post(ctx, pathRevoke, map[string]any{
		"serial": number.String(), "ott": token, "passive": true, "reason": "task ended",
	})
	return status, err
}

// fetch gets the newest CRL and keeps it. Only one runs at a time: it is called by way of fetches.
func (r *remote) fetch(ctx context.Context) error {
	c, err := r.download(ctx)
	if err != nil {
		return err
	}
	switch known := r.current.Load(); {
	case c.follows(known):
	case c.anew(known):
		r.lose(known, c)
	case time.Now().Before(known.nextUpdate):
		return fmt.Errorf("%w: step-ca serves CRL %s after %s", plugins.ErrNotProven, c.number, known.number)
	}
	if c, err = r.regain(ctx, c); err != nil {
		return err
	}
	r.current.Store(c)
	return nil
}

// download gets the newest CRL.
func (r *remote) download(ctx context.Context) (*crl, error) {
	der, err := r.client.get(ctx, pathCRL, maxCRL)
	if err != nil {
		return nil, err
	}
	c, err := r.read(ctx, der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", plugins.ErrNotProven, err)
	}
	return c, nil
}

// read checks the CRL against the known issuers, and asks for them anew when none has signed it.
func (r *remote) read(ctx context.Context, der []byte) (*crl, error) {
	if known := r.issuers.Load(); known != nil {
		if c, err := readCRL(der, r.settings.arc, *known...); err == nil {
			return c, nil
		}
	}
	text, err := r.client.get(ctx, pathIntermediates, maxAnswer)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, err
	}
	var good []*x509.Certificate
	for _, cert := range certs {
		_, err := cert.Verify(x509.VerifyOptions{
			Roots: pool(r.pinned), Intermediates: pool(certs), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err == nil {
			good = append(good, cert)
		}
	}
	r.issuers.Store(&good)
	return readCRL(der, r.settings.arc, append(good, r.pinned...)...)
}

func (r *remote) crl(context.Context) ([]byte, error) {
	if c := r.current.Load(); c != nil {
		return c.der, nil
	}
	return nil, fmt.Errorf("%w: no CRL fetched yet", plugins.ErrUnavailable)
}

// issued yields what this backend has asked for, and what step-ca's database has, where that can be asked.
func (r *remote) issued(ctx context.Context) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		for f, err := range r.journal.issued(ctx, time.Now()) {
			if !yield(f, err) {
				return
			}
		}
		if r.signed == nil {
			yield(plugins.Found{}, &plugins.PartialError{Problem: "what step-ca has signed for others is not listed"})
			return
		}
		for f, err := range r.inDatabase(ctx, time.Now()) {
			if !yield(f, err) {
				return
			}
		}
	}
}

func (r *remote) roots() [][]byte { return ders(r.pinned) }

func (r *remote) intermediates() [][]byte {
	if known := r.issuers.Load(); known != nil {
		return ders(*known)
	}
	return nil
}

// run fetches the CRL on a timer until ctx is done.
func (r *remote) run(ctx context.Context) error {
	ticker := time.NewTicker(fetchEvery)
	defer ticker.Stop()
	for {
		err := r.fetchFor(ctx, fetchEvery/2)
		if err != nil && ctx.Err() == nil {
			r.logger.Warn("fetch CRL", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			r.client.http.CloseIdleConnections()
			return nil
		case <-ticker.C:
		}
	}
}

func (r *remote) fetchFor(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.fetches.do(ctx, func([]struct{}) error { return r.fetch(ctx) })
}

func (r *remote) healthy(ctx context.Context) error {
	_, err := r.client.get(ctx, pathHealth, maxAnswer)
	return err
}
