package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stint-dev/stint/plugins/servertest"
)

// killer stands before the server of a backend, and kills stintd at every step at which it did not do so before. A step is a
// call about one credential, after the calls about it that the same process made before, and either before the server gets it
// or when the server has answered. So nobody has to write down which there are.
type killer struct {
	over chan struct{} // closed when the test ends

	mu     sync.Mutex // guards what follows
	life   *life
	seen   map[string]bool
	steps  []string // that were seen, in that order
	traced []*traced
}

// life is one process of stintd.
type life struct {
	d     *daemon
	ready chan struct{} // closed when d is; until then calls about credentials wait
	dead  bool
}

// traced is a credential as the servers see it.
type traced struct {
	name string
	ids  []string // by which calls name it: token, accessor, lease, serial number
	in   *life
	// calls are those of that life, by what they are for.
	calls map[purpose][]string
}

// purpose is what a call is for.
type purpose string

const (
	toIssue purpose = "issue"
	toEnd   purpose = "end"
)

// beforeVault returns a killer, and the Vault behind it as stintd is to know it.
func beforeVault(tb testing.TB, server *servertest.Vault) (*killer, *servertest.Vault) {
	tb.Helper()
	k := &killer{over: make(chan struct{}), seen: map[string]bool{}}
	front := httptest.NewServer(k.before(tb, server.Addr, http.DefaultTransport, k.callOfVault))
	tb.Cleanup(front.Close)
	tb.Cleanup(func() { close(k.over) })
	return k, &servertest.Vault{Addr: front.URL}
}

// beforeCA returns a killer, and the step-ca behind it as stintd is to know it.
func beforeCA(tb testing.TB, ca *servertest.StepCA) (*killer, *servertest.StepCA) {
	tb.Helper()
	k := &killer{over: make(chan struct{}), seen: map[string]bool{}}
	front := httptest.NewTLSServer(k.before(tb, ca.URL, ca.Client().Transport, k.callOfCA))
	tb.Cleanup(front.Close)
	tb.Cleanup(func() { close(k.over) })
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	return k, &servertest.StepCA{
		URL: front.URL, RootPEM: slices.Concat(own, ca.RootPEM), Provisioner: ca.Provisioner, ProvisionerKey: ca.ProvisionerKey,
	}
}

// begin begins a life whose process is about to start, and arm lets its calls through.
func (k *killer) begin() *life {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.life = &life{ready: make(chan struct{})}
	return k.life
}

func (*killer) arm(l *life, d *daemon) {
	l.d = d
	close(l.ready)
}

func (k *killer) current() *life {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.life
}

// killed reports whether a process was.
func (k *killer) killed(l *life) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return l.dead
}

// call is a request on its way to a server.
type call struct {
	r    *http.Request
	path string
	body []byte
	life *life
}

// before returns what stands before a server. about says which credential a call is about, and what for.
func (k *killer) before(tb testing.TB, server string, to http.RoundTripper, about func(call) (*traced, purpose)) http.Handler {
	tb.Helper()
	target, err := url.Parse(server)
	if err != nil {
		tb.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		x := call{r: r, path: strings.TrimPrefix(r.URL.Path, "/v1/"), body: body, life: k.current()}
		c, what := about(x)
		step := ""
		if c != nil {
			select {
			case <-x.life.ready:
			case <-k.over:
				panic(http.ErrAbortHandler)
			}
			step = k.step(x, c, what)
			k.kill(x.life, step+" → server")
		}
		// What the server has got, it carries out, whether who asked is killed or not.
		out := r.Clone(context.WithoutCancel(r.Context()))
		out.URL.Scheme, out.URL.Host, out.Host, out.RequestURI = target.Scheme, target.Host, target.Host, ""
		out.Body = io.NopCloser(bytes.NewReader(body))
		out.Header.Del("Accept-Encoding")
		answer, err := to.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close() // read to its end
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if c != nil {
			k.learn(c, text)
			k.kill(x.life, step+" → answer")
		}
		maps.Copy(w.Header(), answer.Header)
		w.Header().Del("Content-Length") // that of what was not unpacked
		w.WriteHeader(answer.StatusCode)
		_, _ = w.Write(text) // who asked may be gone
	})
}

// step names a call by the calls about the credential that the same process made before it.
func (k *killer) step(x call, c *traced, what purpose) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.in != x.life {
		c.in, c.calls = x.life, map[purpose][]string{}
	}
	c.calls[what] = append(c.calls[what], x.path)
	name := c.name
	if c.calls[what][0] == "auth/token/lookup-accessor" {
		name = "what is swept" // all the same to Vault, whatever it was made for
	}
	return name + ": " + strings.Join(c.calls[what], ", ")
}

// kill kills the process at a step that is new, and cuts the connections of one that is dead.
func (k *killer) kill(l *life, step string) {
	k.mu.Lock()
	dead, fresh := l.dead, !k.seen[step]
	if !dead && fresh {
		l.dead, k.seen[step] = true, true
		k.steps = append(k.steps, step)
	}
	k.mu.Unlock()
	switch {
	case dead:
		panic(http.ErrAbortHandler)
	case fresh:
		_ = l.d.cmd.Process.Kill() // ended already: then it is dead as well
		<-l.d.exited
		panic(http.ErrAbortHandler)
	}
}

// learn takes from an answer of Vault by what names calls will be about the credential.
func (k *killer) learn(c *traced, text []byte) {
	var answer struct {
		LeaseID string `json:"lease_id"`
		Auth    struct {
			Token    string `json:"client_token"`
			Accessor string `json:"accessor"`
		} `json:"auth"`
	}
	_ = json.Unmarshal(text, &answer) // not all answers are JSON
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range []string{answer.LeaseID, answer.Auth.Token, answer.Auth.Accessor} {
		if id != "" {
			c.ids = append(c.ids, id)
		}
	}
}

// trace adds a credential.
func (k *killer) trace(name string, ids ...string) *traced {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &traced{name: name, ids: ids}
	k.traced = append(k.traced, c)
	return c
}

// find returns the first credential that fits, or nil.
func (k *killer) find(fits func(*traced) bool) *traced {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i := slices.IndexFunc(k.traced, fits); i >= 0 {
		return k.traced[i]
	}
	return nil
}

func (k *killer) callOfVault(x call) (*traced, purpose) {
	var body struct {
		Policies []string `json:"policies"`
		LeaseID  string   `json:"lease_id"`
		Accessor string   `json:"accessor"`
	}
	_ = json.Unmarshal(x.body, &body) // not all calls have one
	token := x.r.Header.Get("X-Vault-Token")
	switch {
	case strings.HasPrefix(x.path, "auth/token/create/"):
		return k.trace(strings.Join(body.Policies, " ")), toIssue
	case x.path == "sys/leases/tidy":
		return &traced{name: "all leases"}, toEnd
	}
	c := k.find(func(c *traced) bool {
		return slices.ContainsFunc(c.ids, func(id string) bool { return id == token || id == body.LeaseID || id == body.Accessor })
	})
	if c != nil && (x.path == "sys/leases/renew" || slices.Contains(c.ids, token)) {
		return c, toIssue
	}
	return c, toEnd
}

// callOfCA: that a CRL is downloaded is about the credential whose revocation was asked for last.
func (k *killer) callOfCA(x call) (*traced, purpose) {
	var body struct {
		OTT    string `json:"ott"`
		Serial string `json:"serial"`
	}
	_ = json.Unmarshal(x.body, &body) // not all calls have one
	switch x.path {
	case "/1.0/sign":
		return k.trace("certificate", serialIn(body.OTT)), toIssue
	case "/1.0/revoke":
		return k.find(func(c *traced) bool { return slices.Contains(c.ids, body.Serial) }), toEnd
	case "/1.0/crl":
		return k.find(func(c *traced) bool { return c.in == x.life && slices.Equal(c.calls[toEnd], []string{"/1.0/revoke"}) }), toEnd
	}
	return nil, toEnd
}

// serialIn returns the serial number for which a one-time token asks.
func serialIn(ott string) string {
	var claims struct {
		Stint struct {
			Serial string `json:"serial"`
		} `json:"stint"`
	}
	token, err := jwt.ParseSigned(ott, []jose.SignatureAlgorithm{jose.ES256})
	if err == nil {
		err = token.UnsafeClaimsWithoutVerification(&claims)
	}
	if err != nil {
		return err.Error() // no call is about it: the test finds that steps are missing
	}
	return claims.Stint.Serial
}
