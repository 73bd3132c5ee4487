package status

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"

	"go.uber.org/zap"
)

// trust serves what a relying service needs to trust issued certificates.
type trust struct {
	publishers func() []Publisher
	log        *zap.Logger
}

// errNoBundle says that a backend is not ready.
var errNoBundle = errors.New("no bundle yet")

// bundlePEM answers the CA certificates (RFC 7468), roots first.
func (t trust) bundlePEM(w http.ResponseWriter, r *http.Request) {
	t.serve(w, r, contentPEM, func(_ context.Context, p Publisher) ([]byte, error) {
		var b bytes.Buffer
		for _, der := range p.Bundle() {
			if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
				return nil, err
			}
		}
		if b.Len() == 0 {
			return nil, errNoBundle
		}
		return b.Bytes(), nil
	})
}

// crlPEM answers the newest CRL (RFC 5280) in PEM.
func (t trust) crlPEM(w http.ResponseWriter, r *http.Request) {
	t.serve(w, r, contentPEM, func(ctx context.Context, p Publisher) ([]byte, error) {
		der, err := p.CRL(ctx)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
	})
}

// crlDER answers the newest CRL in DER, as a CRL distribution point has to (RFC 5280, section 4.2.1.13).
func (t trust) crlDER(w http.ResponseWriter, r *http.Request) {
	t.serve(w, r, contentDERCRL, func(ctx context.Context, p Publisher) ([]byte, error) { return p.CRL(ctx) })
}

// reader reads what a publisher publishes.
type reader func(context.Context, Publisher) ([]byte, error)

// serve answers what read returns for the publisher that the request names.
func (t trust) serve(w http.ResponseWriter, r *http.Request, contentType string, read reader) {
	publisher, ok := t.pick(r.URL.Query().Get("backend"))
	if !ok {
		http.Error(w, "no such backend issues certificates; there are: "+strings.Join(t.names(), ", "), http.StatusNotFound)
		return
	}
	body, err := read(r.Context(), publisher)
	if err != nil {
		t.log.Warn("cannot serve bundle or crl", zap.String("backend", publisher.Name), zap.Error(err))
		http.Error(w, publisher.Name+" has none now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set(headerContent, contentType)
	if _, err := w.Write(body); err != nil {
		t.log.Debug("status answer not sent", zap.Error(err))
	}
}

// pick returns the named publisher, or the first for "".
func (t trust) pick(name string) (Publisher, bool) {
	for _, p := range t.publishers() {
		if name == "" || p.Name == name {
			return p, true
		}
	}
	return Publisher{}, false
}

func (t trust) names() []string {
	var names []string
	for _, p := range t.publishers() {
		names = append(names, p.Name)
	}
	return names
}
