package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
)

// Defaults of Config.
const (
	DefaultTokenRole          = "stint"
	DefaultMaxRequestDuration = 90 * time.Second // Vault's own default of max_request_duration
	DefaultRequestTimeout     = 10 * time.Second
)

// Config is one backend "vault".
type Config struct {
	Instance string // "vault/prod"
	// Address is a URL that leads to the active node. Plain http is accepted on loopback addresses only.
	Address string
	// CAFile is a PEM bundle that alone is trusted; empty means the system's roots.
	CAFile string
	// Namespace is a namespace of Vault Enterprise; empty means root.
	Namespace string
	// TokenRole is the token role that makes the tokens of credentials; empty means DefaultTokenRole.
	TokenRole string
	// MaxRequestDuration is Vault's max_request_duration: an issue call may bring something to life for so long.
	MaxRequestDuration time.Duration
	// RequestTimeout bounds each HTTP call, beside the context's deadline.
	RequestTimeout time.Duration
	Auth           Auth
	// Databases are those of which the users can be listed; there may be none.
	Databases []Database
}

// Auth is how Stint logs in: exactly one of the three is set.
type Auth struct {
	JWT     *JWTAuth
	AppRole *AppRoleAuth
	Token   *TokenAuth
}

// JWTAuth logs in with Stint's own JWT-SVID at a JWT auth mount. The token is renewed without it, so that a rotation of
// the SVID changes nothing.
type JWTAuth struct {
	Mount    string // "jwt-spiffe", without auth/
	Role     string
	Audience string
	// Source returns a fresh JWT-SVID for the audience. It is called at each login.
	Source func(ctx context.Context, audience string) (secret.Value, error)
}

// AppRoleAuth logs in with a role ID and a secret ID.
type AppRoleAuth struct {
	Mount  string // empty means "approle"
	RoleID string
	// SecretID loads the secret ID. It is called at each login.
	SecretID func(ctx context.Context) (secret.Value, error)
}

// TokenAuth uses a token that somebody else puts into a file and keeps alive, as Vault Agent does. The file is read
// again every 30 s, and when Vault refuses the token.
type TokenAuth struct{ File string }

func (c Config) withDefaults() Config {
	if c.TokenRole == "" {
		c.TokenRole = DefaultTokenRole
	}
	if c.MaxRequestDuration == 0 {
		c.MaxRequestDuration = DefaultMaxRequestDuration
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = DefaultRequestTimeout
	}
	if c.Auth.AppRole != nil && c.Auth.AppRole.Mount == "" {
		withMount := *c.Auth.AppRole
		withMount.Mount = "approle"
		c.Auth.AppRole = &withMount
	}
	return c
}

// validate names every fault at once.
func (c Config) validate() error {
	var faults []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	need(c.Instance != "", "instance is empty")
	need(isName(c.TokenRole), "token_role is %q; it is one path segment", c.TokenRole)
	need(c.MaxRequestDuration > 0, "max_request_duration is %s; it is positive", c.MaxRequestDuration)
	need(c.RequestTimeout > 0, "request_timeout is %s; it is positive", c.RequestTimeout)
	for _, d := range c.Databases {
		faults = append(faults, d.validate()...)
	}
	return errors.Join(append(faults, c.Auth.validate()...)...)
}

func (a Auth) validate() []error {
	var faults []error
	methods := 0
	if a.JWT != nil {
		methods++
		if !isPath(a.JWT.Mount) || a.JWT.Role == "" || a.JWT.Audience == "" || a.JWT.Source == nil {
			faults = append(faults, errors.New(`auth "jwt" needs mount, role, audience and a source of JWT-SVIDs`))
		}
	}
	if a.AppRole != nil {
		methods++
		if !isPath(a.AppRole.Mount) || a.AppRole.RoleID == "" || a.AppRole.SecretID == nil {
			faults = append(faults, errors.New(`auth "approle" needs mount, role_id and secret_id`))
		}
	}
	if a.Token != nil {
		methods++
		if a.Token.File == "" {
			faults = append(faults, errors.New(`auth "token" needs file`))
		}
	}
	if methods != 1 {
		faults = append(faults, fmt.Errorf("%d auth methods are set; exactly one of jwt, approle, token is needed", methods))
	}
	return faults
}

func (a Auth) method() login.Method {
	switch {
	case a.JWT != nil:
		jwt := *a.JWT
		return login.JWT{Mount: jwt.Mount, Role: jwt.Role, Token: func(ctx context.Context) (secret.Value, error) {
			return jwt.Source(ctx, jwt.Audience)
		}}
	case a.AppRole != nil:
		return login.AppRole{Mount: a.AppRole.Mount, RoleID: a.AppRole.RoleID, SecretID: a.AppRole.SecretID}
	}
	return login.File{Path: a.Token.File}
}

// isName is true of one path segment that Vault takes literally.
func isName(s string) bool {
	return s != "" && s != "." && !strings.Contains(s, "..") && !strings.ContainsAny(s, "/\\*+%?#{}\" \t\r\n")
}

// isPath is true of one or more such segments.
func isPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !isName(part) {
			return false
		}
	}
	return true
}
