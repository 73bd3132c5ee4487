package rest_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

func client(t *testing.T, cfg rest.Config) *rest.Client {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second // for a busy machine
	}
	c, err := rest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// server answers every request alike and counts them.
func server(t *testing.T, status int, body string) (string, *atomic.Int64) {
	t.Helper()
	var calls atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL, &calls
}

func TestNothingComesFromTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "hvs.env", "VAULT_NAMESPACE": "env", "VAULT_WRAP_TTL": "60s",
		"VAULT_HEADERS": `{"X-Env":"1"}`, "VAULT_MAX_RETRIES": "9", "VAULT_AGENT_ADDR": "http://127.0.0.1:1",
		"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1",
	} {
		t.Setenv(name, value)
	}
	var header http.Header
	var query string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header, query = r.Header.Clone(), r.URL.String()
		_, _ = io.WriteString(w, `{}`)
	}))
	defer s.Close()
	c := client(t, rest.Config{Address: s.URL, Namespace: "team"})
	call := rest.Call{Method: "LIST", Path: "sys/leases/lookup/a b", Token: secret.FromString("hvs.call")}
	if _, err := c.Do(t.Context(), call); err != nil {
		t.Fatal(err)
	}
	if query != "/v1/sys/leases/lookup/a%20b?list=true" {
		t.Errorf("asked %s", query)
	}
	for name, want := range map[string]string{
		"X-Vault-Token": "hvs.call", "X-Vault-Namespace": "team", "X-Vault-Request": "true", "X-Vault-Wrap-Ttl": "", "X-Env": "",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	call.Global = true
	call.Token = secret.Value{}
	if _, err := c.Do(t.Context(), call); err != nil {
		t.Fatal(err)
	}
	if header.Get("X-Vault-Namespace") != "" || header.Get("X-Vault-Token") != "" {
		t.Errorf("a global call without a token went out as %v", header)
	}
}

// TestErrorsHoldNoAnswer lets Vault put a secret into each kind of answer.
func TestErrorsHoldNoAnswer(t *testing.T) {
	const leak = "postgres://root:hunter2@db"
	for _, answer := range []struct {
		status int
		body   string
	}{
		{500, `{"errors":["failed: ` + leak + `"]}`},
		{400, leak},
		{403, `{"errors":["1 error occurred:\n\t* ` + leak + `\n\n"]}`},
		{200, `{"data":"` + leak + `"}`},
		{200, leak},
		{307, leak},
		{200, `{"data":{"x":"` + leak},
	} {
		url, calls := server(t, answer.status, answer.body)
		_, err := client(t, rest.Config{Address: url}).Do(t.Context(), rest.Call{Method: "PUT", Path: "p", Body: map[string]any{"a": 1}})
		if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(fmt.Sprintf("%+v", err), "hunter2") {
			t.Errorf("%d %s: %v", answer.status, answer.body, err)
		}
		if calls.Load() != 1 {
			t.Errorf("%d: %d calls, want one", answer.status, calls.Load())
		}
		if !errors.Is(err, plugins.ErrUnavailable) && !errors.Is(err, plugins.ErrMisconfigured) {
			t.Errorf("%d: %v is of no kind", answer.status, err)
		}
	}
}

func TestWhatAnErrorProves(t *testing.T) {
	type proves struct{ nothing, lease, accessor, denied, sealed bool }
	for name, tt := range map[string]struct {
		status int
		body   string
		want   proves
	}{
		"denied":             {403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`, proves{nothing: true, denied: true}},
		"no route":           {404, `{"errors":["no handler for route"]}`, proves{nothing: true}},
		"quota":              {429, `{"errors":["request path quota exceeded"]}`, proves{nothing: true}},
		"sealed":             {503, `{"errors":["Vault is sealed"]}`, proves{nothing: true, sealed: true}},
		"overloaded":         {503, `{"errors":["overloaded, try again later"]}`, proves{}},
		"a 400 of an engine": {400, `{"errors":["failed to create user"]}`, proves{}},
		"a 500":              {500, `{"errors":["internal error"]}`, proves{}},
		"a redirect":         {307, ``, proves{nothing: true}},
		"invalid lease":      {400, `{"errors":["invalid lease"]}`, proves{lease: true}},
		"invalid lease, 403": {403, `{"errors":["invalid lease"]}`, proves{nothing: true, denied: true}},
		"about a lease":      {400, `{"errors":["1 error occurred:\n\t* invalid lease\n\n"]}`, proves{}},
		"no lease ID":        {400, `{"errors":["lease_id must be specified"]}`, proves{}},
		"not JSON":           {400, `invalid lease`, proves{}},
		"invalid accessor":   {400, `{"errors":["1 error occurred:\n\t* invalid accessor\n\n"]}`, proves{accessor: true}},
		"bad token":          {403, `{"errors":["bad token"]}`, proves{nothing: true, accessor: true}},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := server(t, tt.status, tt.body)
			_, err := client(t, rest.Config{Address: url}).Do(t.Context(), rest.Call{Method: "GET", Path: "p"})
			var failed *rest.Error
			if !errors.As(err, &failed) {
				t.Fatalf("got %v", err)
			}
			got := proves{rest.NothingHappened(err), rest.InvalidLease(err), rest.InvalidAccessor(err), rest.Denied(err), failed.Sealed()}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if sealed := errors.Is(err, plugins.ErrSealed); sealed != tt.want.sealed {
				t.Errorf("%v is plugins.ErrSealed: %t, want %t", err, sealed, tt.want.sealed)
			}
		})
	}
}

func TestNotSent(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + listener.Addr().String()
	_ = listener.Close()
	_, err = client(t, rest.Config{Address: address}).Do(t.Context(), rest.Call{Method: "GET", Path: "p"})
	if !errors.Is(err, plugins.ErrUnavailable) || !rest.NothingHappened(err) {
		t.Errorf("refused connection: %v", err)
	}
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	defer tls.Close()
	_, err = client(t, rest.Config{Address: tls.URL}).Do(t.Context(), rest.Call{Method: "GET", Path: "p"})
	if !errors.Is(err, plugins.ErrUnavailable) || !rest.NothingHappened(err) {
		t.Errorf("certificate of nobody known: %v", err)
	}
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hangs.Close()
	c := client(t, rest.Config{Address: hangs.URL, Timeout: 50 * time.Millisecond})
	_, err = c.Do(t.Context(), rest.Call{Method: "GET", Path: "p"})
	if !errors.Is(err, context.DeadlineExceeded) || rest.NothingHappened(err) {
		t.Errorf("no answer in time: %v", err)
	}
}

// TestAnswerInPieces sends an answer's body well after its head, as a long one comes.
func TestAnswerInPieces(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"lease_id":"a`)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-r.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
		_, _ = io.WriteString(w, `/b"}`)
	}))
	defer s.Close()
	for _, call := range []rest.Call{{Method: "GET", Path: "p"}, {Method: "PUT", Path: "p", Body: map[string]any{"a": 1}}} {
		reply, err := client(t, rest.Config{Address: s.URL}).Do(t.Context(), call)
		if err != nil || reply.LeaseID != "a/b" {
			t.Errorf("%s: %+v, %v", call.Method, reply, err)
		}
	}
}

// TestBrokenConnectionIsNotRetried breaks the second request on a connection, which net/http would send again.
func TestBrokenConnectionIsNotRetried(t *testing.T) {
	var calls atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			_, _ = io.WriteString(w, `{}`)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	}))
	defer s.Close()
	c := client(t, rest.Config{Address: s.URL})
	call := rest.Call{Method: "GET", Path: "database/creds/stint-x"}
	if _, err := c.Do(t.Context(), call); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), call); err == nil || rest.NothingHappened(err) {
		t.Errorf("a broken connection: %v", err)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("%d requests arrived, want 2", n)
	}
}

// TestOverTLS reads and writes over HTTP/2 with a CA of its own, as a Vault in production is reached.
func TestOverTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		_, _ = fmt.Fprintf(w, `{"data":{"got":%q}}`, r.Method+string(body))
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := client(t, rest.Config{Address: s.URL, CAFile: ca})
	for want, call := range map[string]rest.Call{
		"GET": {Method: "GET", Path: "p"}, `PUT{"a":1}`: {Method: "PUT", Path: "p", Body: map[string]any{"a": 1}},
	} {
		reply, err := c.Do(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if !reply.Decode("got", &got) || got != want {
			t.Errorf("the server got %q, want %q", got, want)
		}
	}
}

func TestAnswerTooLong(t *testing.T) {
	url, _ := server(t, 200, `{"data":{"x":"`+strings.Repeat("x", 1<<20)+`"}}`)
	if _, err := client(t, rest.Config{Address: url}).Do(t.Context(), rest.Call{Method: "GET", Path: "p"}); err == nil {
		t.Error("no error")
	}
}

func TestAddressAndCA(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []rest.Config{
		{Address: ""},
		{Address: "vault.example.org:8200"},
		{Address: "http://vault.example.org:8200"},
		{Address: "ftp://127.0.0.1"},
		{Address: "https://user:pw@vault.example.org"},
		{Address: "https://vault.example.org?x=1"},
		{Address: "https://vault.example.org", CAFile: empty},
		{Address: "https://vault.example.org", CAFile: empty + ".none"},
	} {
		if _, err := rest.New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestWipe(t *testing.T) {
	url, _ := server(t, 200, `{"data":{"password":"hunter2","escaped":"a\"b\u00e9"},"auth":{"client_token":"hvs.x"}}`)
	reply, err := client(t, rest.Config{Address: url}).Do(t.Context(), rest.Call{Method: "GET", Path: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := rest.Text(reply.Data["escaped"]); err != nil || string(text) != `a"bé` {
		t.Errorf("%q, %v", text, err)
	}
	if string(reply.Auth.Token.Expose()) != "hvs.x" || strings.Contains(fmt.Sprintf("%+v", reply.Auth), "hvs.x") {
		t.Error("the token is missing or prints itself")
	}
	raw := reply.Data["password"]
	reply.Wipe()
	if strings.Contains(string(raw), "hunter2") {
		t.Error("the answer was not wiped")
	}
}

// FuzzText holds that a JSON string's text is what encoding/json would say.
func FuzzText(f *testing.F) {
	for _, seed := range []string{`"a"`, `"a\"b"`, `"\u00e9"`, `""`, `"`, `1`, `"a" `, `"a"b"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !json.Valid(raw) {
			return // the decoder hands on nothing else
		}
		var want string
		failed := json.Unmarshal(raw, &want) != nil
		got, err := rest.Text(raw)
		if failed != (err != nil) || (!failed && string(got) != want && utf8.Valid(raw)) {
			t.Errorf("%q: %q, %v; want %q", raw, got, err, want)
		}
	})
}
