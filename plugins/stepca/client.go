package stepca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"

	"github.com/stint-dev/stint/plugins"
)

// Limits on answers in bytes. A CRL entry takes about 40.
const (
	maxAnswer = 1 << 20
	maxCRL    = 64 << 20
)

var (
	errTooLong = errors.New("the answer is too long")
	errUnsent  = errors.New("no connection")
)

// client speaks step-ca's HTTP API. It never retries, and its errors hold nothing of a request or an answer.
type client struct {
	base string // https://host[:port]
	http *http.Client
}

func newClient(base string, roots *x509.CertPool) *client {
	return &client{
		base: strings.TrimRight(base, "/"),
		http: &http.Client{
			Transport: &http.Transport{
				TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
				ForceAttemptHTTP2:   true,
				MaxIdleConnsPerHost: 64,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// get returns the body of a 200. Other statuses are errors.
func (c *client) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, http.NoBody) //nolint:gosec // the URL is the operator's
	if err != nil {
		return nil, fmt.Errorf("%w: %w", plugins.ErrMisconfigured, err)
	}
	status, body, err := c.do(req, limit)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, statusError(path, status)
	}
	return body, nil
}

// post returns the status and the body. An error wraps errUnsent when certainly nothing was sent.
func (c *client) post(ctx context.Context, path string, content any) (int, []byte, error) {
	body, err := json.Marshal(content)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: encode request: %w", errUnsent, err)
	}
	connected := false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body)) //nolint:gosec // the URL is the operator's
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w: %w", plugins.ErrMisconfigured, errUnsent, err)
	}
	req.Header.Set("Content-Type", "application/json")
	status, answer, err := c.do(req, maxAnswer)
	if err != nil && !connected {
		err = fmt.Errorf("%w: %w", errUnsent, err)
	}
	return status, answer, err
}

func (c *client) do(req *http.Request, limit int64) (int, []byte, error) {
	answer, err := c.http.Do(req) //nolint:gosec // the URL is the operator's
	if err != nil {
		return 0, nil, fmt.Errorf("%w: ask step-ca: %w", plugins.ErrUnavailable, err)
	}
	defer func() { _ = answer.Body.Close() }() // read to its end or given up
	body, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: read step-ca's answer: %w", plugins.ErrUnavailable, err)
	}
	if int64(len(body)) > limit {
		return 0, nil, fmt.Errorf("%w: %w", plugins.ErrUnavailable, errTooLong)
	}
	return answer.StatusCode, body, nil
}

// statusError says whether waiting helps or an operator must.
func statusError(path string, status int) error {
	kind := plugins.ErrUnavailable
	if status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout {
		kind = plugins.ErrMisconfigured
	}
	return fmt.Errorf("%w: step-ca answers %d to %s", kind, status, path)
}

// head returns the header of a 200, for the server's clock.
func (c *client) head(ctx context.Context, path string) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", plugins.ErrMisconfigured, err)
	}
	answer, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: ask step-ca: %w", plugins.ErrUnavailable, err)
	}
	defer func() { _ = answer.Body.Close() }() // not wanted
	if answer.StatusCode != http.StatusOK {
		return nil, statusError(path, answer.StatusCode)
	}
	return answer.Header, nil
}
