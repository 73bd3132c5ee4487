package login

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// Doer makes one call to Vault; *rest.Client is one.
type Doer interface {
	Do(ctx context.Context, call rest.Call) (*rest.Reply, error)
}

// Method is a way to get a token of Stint's own.
type Method interface {
	// login gets a token. It is called again whenever the token is to be replaced.
	login(ctx context.Context, vault Doer) (Token, error)
}

// Token is a token of Stint's own.
type Token struct {
	Value     secret.Value
	TTL       time.Duration // from now; zero: it does not expire
	Renewable bool          // by the session; false where somebody else renews it
}

// Loader reads a secret when it is needed.
type Loader func(ctx context.Context) (secret.Value, error)

// JWT logs in with a JWT, such as a JWT-SVID, at an auth mount of type jwt.
type JWT struct {
	Mount, Role string
	Token       Loader
}

func (m JWT) login(ctx context.Context, vault Doer) (Token, error) {
	jwt, err := m.Token(ctx)
	if err != nil {
		return Token{}, fmt.Errorf("get the JWT to log in with: %w: %w", plugins.ErrUnavailable, err)
	}
	return post(ctx, vault, m.Mount, map[string]any{"role": m.Role, "jwt": string(jwt.Expose())})
}

// AppRole logs in with a role ID and a secret ID at an auth mount of type approle.
type AppRole struct {
	Mount, RoleID string
	SecretID      Loader
}

func (m AppRole) login(ctx context.Context, vault Doer) (Token, error) {
	id, err := m.SecretID(ctx)
	if err != nil {
		return Token{}, fmt.Errorf("load the secret ID: %w: %w", plugins.ErrMisconfigured, err)
	}
	return post(ctx, vault, m.Mount, map[string]any{"role_id": m.RoleID, "secret_id": string(id.Expose())})
}

// post logs in. Any refusal is a misconfiguration, whatever status Vault chose for it.
func post(ctx context.Context, vault Doer, mount string, body map[string]any) (Token, error) {
	reply, err := vault.Do(ctx, rest.Call{Method: http.MethodPut, Path: "auth/" + mount + "/login", Body: body})
	if err != nil {
		return Token{}, fmt.Errorf("log in at auth/%s: %w", mount, err)
	}
	auth := reply.Auth
	if auth == nil || auth.Token.IsZero() {
		return Token{}, fmt.Errorf("log in at auth/%s: %w: the answer holds no token", mount, plugins.ErrMisconfigured)
	}
	if auth.TokenType == "batch" {
		return Token{}, fmt.Errorf("log in at auth/%s: %w: a batch token cannot make others; set token_type=service",
			mount, plugins.ErrMisconfigured)
	}
	return Token{Value: auth.Token.Value, TTL: seconds(auth.LeaseDuration), Renewable: auth.Renewable}, nil
}

// rereadFile is how often a token file is read again.
const rereadFile = 30 * time.Second

// File reads a token that somebody else keeps alive in a file, as Vault Agent does.
type File struct{ Path string }

func (m File) login(ctx context.Context, vault Doer) (Token, error) {
	text, err := os.ReadFile(m.Path)
	if err != nil {
		return Token{}, fmt.Errorf("read the token file: %w: %w", plugins.ErrMisconfigured, err)
	}
	token := secret.New(bytes.TrimSpace(text))
	if token.IsZero() {
		return Token{}, fmt.Errorf("read the token file: %w: %s is empty", plugins.ErrMisconfigured, m.Path)
	}
	if _, err := vault.Do(ctx, rest.Call{Method: http.MethodGet, Path: "auth/token/lookup-self", Token: token}); err != nil {
		return Token{}, fmt.Errorf("look up the token of %s: %w", m.Path, err)
	}
	// Twice the interval, because a session replaces its token at half its life.
	return Token{Value: token, TTL: 2 * rereadFile}, nil
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
