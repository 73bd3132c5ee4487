package login_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// fake is a Vault that knows tokens and their lives, and nothing else.
type fake struct {
	// mu guards what follows.
	mu     sync.Mutex
	ttl    time.Duration
	max    time.Duration // of one token, over all renewals
	down   bool
	issued int
	tokens map[string]*life
	calls  []string
}

type life struct{ until, last time.Time }

func newFake() *fake {
	return &fake{ttl: time.Hour, max: 24 * time.Hour, tokens: map[string]*life{}}
}

func (f *fake) Do(_ context.Context, call rest.Call) (*rest.Reply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, &rest.Error{Method: call.Method, Path: call.Path, NotSent: true}
	}
	f.calls = append(f.calls, call.Path)
	switch call.Path {
	case "sys/health":
		return &rest.Reply{Status: http.StatusOK, Health: rest.Health{Initialized: true, ClusterID: "c1"}}, nil
	case "auth/jwt/login":
		if call.Body["role"] != "stint" || call.Body["jwt"] == "" {
			return nil, &rest.Error{Status: http.StatusBadRequest}
		}
		f.issued++
		token := fmt.Sprintf("hvs.%d", f.issued)
		f.tokens[token] = &life{until: time.Now().Add(f.ttl), last: time.Now().Add(f.max)}
		return f.auth(token, f.ttl)
	}
	known := f.tokens[string(call.Token.Expose())]
	if known == nil || time.Now().After(known.until) {
		return nil, &rest.Error{Status: http.StatusForbidden}
	}
	if call.Path == "auth/token/renew-self" {
		left := min(f.ttl, time.Until(known.last))
		known.until = time.Now().Add(left)
		return f.auth("", left)
	}
	return &rest.Reply{Status: http.StatusOK}, nil
}

func (f *fake) auth(token string, ttl time.Duration) (*rest.Reply, error) {
	text, err := json.Marshal(map[string]any{"auth": map[string]any{
		"client_token": token, "lease_duration": int64(ttl / time.Second), "renewable": true, "token_type": "service",
	}})
	if err != nil {
		return nil, err
	}
	reply := &rest.Reply{Status: http.StatusOK}
	return reply, json.Unmarshal(text, reply)
}

func (f *fake) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.tokens)
}

func (f *fake) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *fake) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c == path {
			n++
		}
	}
	return n
}

func jwt(context.Context) (secret.Value, error) { return secret.FromString("a.b.c"), nil }

func session(f *fake) *login.Session {
	return login.New(f, login.JWT{Mount: "jwt", Role: "stint", Token: jwt}, zap.NewNop())
}

// TestSessionOutlivesItsTokens runs for three days: the token works at every minute, is renewed, and is replaced before
// renewing stops to help.
func TestSessionOutlivesItsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := session(f)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		for range 3 * 24 * 60 {
			<-time.After(time.Minute)
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Do(t.Context(), rest.Call{Path: "auth/token/lookup-self", Token: token}); err != nil {
				t.Fatalf("the token is dead: %v", err)
			}
		}
		if n := f.count("auth/jwt/login"); n < 3 || n > 5 {
			t.Errorf("%d logins in three days of tokens that live a day", n)
		}
		if n := f.count("auth/token/renew-self"); n < 120 || n > 160 {
			t.Errorf("%d renewals in three days, want one each half hour", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

// TestOutage takes Vault away for longer than the token lives.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := session(f)
		go func() { _ = s.Run(t.Context()) }()
		synctest.Wait()
		f.set(true)
		<-time.After(2 * time.Hour)
		if _, err := s.Token(t.Context()); !errors.Is(err, plugins.ErrUnavailable) {
			t.Errorf("during the outage: %v", err)
		}
		f.set(false)
		<-time.After(31 * time.Second)
		if n := f.count("auth/jwt/login"); n != 2 {
			t.Errorf("%d logins, want one before and one by itself after the outage", n)
		}
	})
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := session(f)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Refused(t.Context(), first); ok {
			t.Error("a live token that is new was replaced")
		}
		f.kill()
		second, ok := s.Refused(t.Context(), first)
		if !ok || second.Equal(first) {
			t.Error("a dead token was not replaced")
		}
		if again, ok := s.Refused(t.Context(), first); !ok || !again.Equal(second) {
			t.Error("who comes late with the dead token did not get the new one")
		}
		if n := f.count("auth/jwt/login"); n != 2 {
			t.Errorf("%d logins, want 2", n)
		}
		// Policies may have changed since: a live token is replaced too, but not often.
		<-time.After(61 * time.Second)
		if third, ok := s.Refused(t.Context(), second); !ok || third.Equal(second) {
			t.Error("a live token of 61 s was not replaced")
		}
		f.set(true)
		<-time.After(61 * time.Second)
		token, _ := s.Token(t.Context())
		if _, ok := s.Refused(t.Context(), token); ok {
			t.Error("a failed login gave another token")
		}
	})
}

func TestManyAtOnceLogInOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := session(f)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if cluster, err := s.Cluster(t.Context()); err != nil || cluster != "c1" {
					t.Errorf("%q, %v", cluster, err)
				}
			})
		}
		wg.Wait()
		if n := f.count("auth/jwt/login"); n > 2 {
			t.Errorf("%d logins for callers at once", n)
		}
	})
}

func TestFileIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for _, token := range []string{"hvs.a", "hvs.b"} {
			f.tokens[token] = &life{until: time.Now().Add(24 * time.Hour)}
		}
		path := filepath.Join(t.TempDir(), "token")
		write := func(text string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("hvs.a\n")
		s := login.New(f, login.File{Path: path}, zap.NewNop())
		go func() { _ = s.Run(t.Context()) }()
		for _, step := range []struct{ file, want string }{{"hvs.a", "hvs.a"}, {"hvs.b\n", "hvs.b"}} {
			write(step.file)
			<-time.After(31 * time.Second)
			token, err := s.Token(t.Context())
			if err != nil || string(token.Expose()) != step.want {
				t.Errorf("with %q in the file: %v", step.file, err)
			}
		}
		if slices.Contains(f.calls, "auth/token/renew-self") {
			t.Error("a token of somebody else was renewed")
		}
		write("")
		if _, err := login.New(f, login.File{Path: path}, zap.NewNop()).Token(t.Context()); !errors.Is(err, plugins.ErrMisconfigured) {
			t.Errorf("an empty file: %v", err)
		}
	})
}

func TestLoginFaults(t *testing.T) {
	broken := func(context.Context) (secret.Value, error) { return secret.Value{}, errors.New("no SVID") }
	for name, tt := range map[string]struct {
		method login.Method
		want   error
	}{
		"no SVID":      {login.JWT{Mount: "jwt", Role: "stint", Token: broken}, plugins.ErrUnavailable},
		"wrong role":   {login.JWT{Mount: "jwt", Role: "other", Token: jwt}, plugins.ErrMisconfigured},
		"no secret ID": {login.AppRole{Mount: "approle", RoleID: "r", SecretID: broken}, plugins.ErrMisconfigured},
		"no file":      {login.File{Path: filepath.Join(t.TempDir(), "none")}, plugins.ErrMisconfigured},
		"no token":     {login.AppRole{Mount: "approle", RoleID: "r", SecretID: jwt}, plugins.ErrMisconfigured},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			if _, err := login.New(f, tt.method, zap.NewNop()).Token(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
