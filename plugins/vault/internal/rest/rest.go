// Package rest speaks to one Vault over HTTP: one attempt per call, nothing from the environment, and errors that hold
// no secret.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins/internal/trust"
	"github.com/stint-dev/stint/plugins/secret"
)

// Limits of one call. The deadline of its context counts too, whichever is earlier.
const (
	dialTimeout  = 5 * time.Second
	tlsTimeout   = 5 * time.Second
	idleTimeout  = 30 * time.Second // well under Vault's own 5 minutes, so that the pool holds no dead connection
	maxAnswer    = 1 << 20          // the largest answer read, in bytes
	maxIdleConns = 64
)

// errAnswerTooLong is returned for an answer longer than maxAnswer.
var errAnswerTooLong = errors.New("the answer is too long")

// Config says where a Vault is.
type Config struct {
	Address   string        // URL; https, or http on a loopback address
	CAFile    string        // PEM bundle that alone is trusted; empty: the system's roots
	Namespace string        // Enterprise; empty: root
	Timeout   time.Duration // of each call
}

// Client makes calls to one Vault. It retries none, follows no redirect and uses no proxy.
type Client struct {
	api       *vaultapi.Client
	namespace string
	timeout   time.Duration
}

// Call is one request.
type Call struct {
	Method string // "GET", "PUT", "LIST"
	Path   string // without /v1/; the caller keeps "..", "." and empty segments out
	Token  secret.Value
	Body   map[string]any // nil for none
	// Global sends it to the root namespace: sys/health is served nowhere else.
	Global bool
}

// New makes a Client and connects to nothing. Its errors name the field at fault.
func New(cfg Config) (*Client, error) {
	if err := checkAddress(cfg.Address); err != nil {
		return nil, err
	}
	transport, err := transport(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	api, err := vaultapi.NewClient(&vaultapi.Config{
		Address: cfg.Address,
		HttpClient: &http.Client{
			Transport:     once{transport},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		DisableRedirects: true,
	})
	if err != nil {
		// NewClient reads VAULT_* before it is told not to; only a malformed one can make it fail.
		return nil, fmt.Errorf("make vault client (is a VAULT_* variable malformed?): %w", err)
	}
	api.SetMaxRetries(0)
	// Do bounds each call itself: with a timeout of its own vault/api ends the context of a write before its answer was
	// read, and what does not come in one piece is lost.
	api.SetClientTimeout(0)
	api.ClearToken()
	api.ClearNamespace()
	api.SetHeaders(http.Header{vaultapi.RequestHeaderName: {"true"}})
	api.SetWrappingLookupFunc(func(string, string) string { return "" })
	return &Client{api: api, namespace: cfg.Namespace, timeout: cfg.Timeout}, nil
}

// Do makes the call once. Errors are of type *Error, except that the context's own is wrapped too. The caller MUST
// Wipe the Reply when its data is secret.
func (c *Client) Do(ctx context.Context, call Call) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.send(ctx, call)
	if resp != nil {
		defer func() { _ = resp.Body.Close() }() // it has been read, or is not wanted
	}
	if err != nil {
		return nil, classify(call, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices && resp.StatusCode < http.StatusBadRequest {
		return nil, &Error{Method: call.Method, Path: call.Path, Status: resp.StatusCode}
	}
	body, err := readAll(resp.Body)
	if err != nil {
		return nil, &Error{Method: call.Method, Path: call.Path, cause: err}
	}
	defer clear(body)
	reply := &Reply{Status: resp.StatusCode}
	if len(body) == 0 {
		return reply, nil
	}
	if err := json.Unmarshal(body, reply); err != nil {
		// The decoder's own error may quote the answer.
		return nil, &Error{Method: call.Method, Path: call.Path, cause: errNotJSON}
	}
	return reply, nil
}

// send goes through the raw functions of vault/api, because the others keep the answer in strings. The token travels
// with the call and not in the client, which many tokens share.
func (c *Client) send(ctx context.Context, call Call) (*vaultapi.Response, error) {
	api := c.api.WithRequestCallbacks(func(r *vaultapi.Request) {
		r.Method = call.Method
		if call.Method == "LIST" {
			r.Method = http.MethodGet
			r.Params.Set("list", "true")
		}
		r.ClientToken = string(call.Token.Expose())
		if c.namespace != "" && !call.Global {
			r.Headers.Set(vaultapi.NamespaceHeaderName, c.namespace)
		}
	})
	if call.Body == nil {
		return api.Logical().ReadRawWithDataWithContext(ctx, call.Path, nil)
	}
	body, err := json.Marshal(call.Body)
	if err != nil {
		return nil, errNotJSON
	}
	defer clear(body)
	return api.Logical().WriteRawWithContext(ctx, call.Path, body)
}

func readAll(r io.Reader) ([]byte, error) {
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(r, maxAnswer+1))
	if err != nil {
		clear(buf.Bytes())
		return nil, err
	}
	if n > maxAnswer {
		clear(buf.Bytes())
		return nil, errAnswerTooLong
	}
	return buf.Bytes(), nil
}

// checkAddress refuses what would send tokens in the clear over a network.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return fmt.Errorf("address %q is no URL such as https://vault.example.org:8200", address)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("address holds more than scheme, host, port and path")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		ip := net.ParseIP(u.Hostname())
		if u.Hostname() == "localhost" || (ip != nil && ip.IsLoopback()) {
			return nil
		}
		return fmt.Errorf("address %q is plain http and not on this machine; use https", address)
	}
	return fmt.Errorf("address %q has scheme %q; known are https, and http on this machine", address, u.Scheme)
}

func transport(caFile string) (*http.Transport, error) {
	conf, err := trust.Config(caFile)
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		Proxy:               nil, // Vault is the address that was configured, whatever the environment says
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: tlsTimeout,
		IdleConnTimeout:     idleTimeout,
		MaxIdleConnsPerHost: maxIdleConns,
		ForceAttemptHTTP2:   true,
	}, nil
}

// once keeps net/http from sending a request again by itself, which it does for a GET without a body whose connection
// breaks: reading database/creds/x twice makes two users.
type once struct{ next http.RoundTripper }

// RoundTrip gives a request without a body one that is empty and cannot be replayed.
func (o once) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		return o.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	r.Body, r.GetBody = io.NopCloser(strings.NewReader("")), nil
	return o.next.RoundTrip(r)
}
