// Package vaulttest makes a Vault ready for Stint, as an operator would: token role, policies, ways to log in, and
// mounts for ssh, pki, kv and PostgreSQL. It is imported from tests only.
package vaulttest

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
)

// The names that Setup uses.
const (
	Instance   = "vault/test"
	JWTMount   = "jwt-spiffe"
	Audience   = "https://vault.example.org"
	SPIFFEID   = "spiffe://example.org/stint" // Stint's own, which Vault's jwt role is bound to
	OTPLease   = 30 * time.Second             // of the ssh mount, whose leases cannot be cut
	loginRole  = "stint"
	loginTTL   = "1h"
	appRoleTTL = "1h"
)

// Fixture is a Vault that is ready for Stint. There is one for each Vault.
type Fixture struct {
	// Server is the Vault. Root is a client of it with the root token, for looking behind the scenes.
	Server *servertest.Vault
	Root   *vaultapi.Client
	// JWT signs the JWT-SVIDs that this Vault accepts.
	JWT *Signer

	roles map[string]plugins.Role
}

// Setup makes the Vault ready: everything but the roles, which Apply adds.
func Setup(tb testing.TB, server *servertest.Vault) *Fixture {
	tb.Helper()
	f := &Fixture{
		Server: server, Root: server.Client(tb, server.RootToken), JWT: NewSigner(tb, SPIFFEID), roles: map[string]plugins.Role{},
	}
	f.write(tb, "auth/token/roles/"+vault.DefaultTokenRole, tokenRole())
	f.enable(tb, "sys/auth/"+JWTMount, "jwt", nil)
	f.TrustKeys(tb, f.JWT)
	f.write(tb, "auth/"+JWTMount+"/role/"+loginRole, map[string]any{
		"role_type": "jwt", "bound_audiences": []string{Audience}, "user_claim": "sub", "bound_subject": SPIFFEID,
		"token_policies": []string{vault.StintPolicy}, "token_no_default_policy": true, "token_ttl": loginTTL, "token_type": "service",
	})
	f.enable(tb, "sys/auth/approle", "approle", nil)
	f.write(tb, "auth/approle/role/"+loginRole, map[string]any{
		"token_policies": []string{vault.StintPolicy}, "token_no_default_policy": true, "token_ttl": appRoleTTL,
	})
	f.Apply(tb)
	return f
}

// tokenRole is what vault.TokenRole prints, as a request's body.
func tokenRole() map[string]any {
	return map[string]any{
		"allowed_policies_glob": []string{"stint-*"}, "disallowed_policies": []string{"root"}, "orphan": true,
		"renewable": true, "token_no_default_policy": true, "token_type": "service",
	}
}

// Apply writes the policies of these roles' tokens, and the policy of Stint's own token for all roles applied so far.
func (f *Fixture) Apply(tb testing.TB, roles ...plugins.Role) {
	tb.Helper()
	for _, role := range roles {
		f.roles[role.Name] = role
		name, text, err := vault.RolePolicyText(role)
		if err != nil {
			tb.Fatal(err)
		}
		f.Policy(tb, name, text)
	}
	text, err := vault.PolicyText(vault.Config{}, slices.Collect(maps.Values(f.roles)))
	if err != nil {
		tb.Fatal(err)
	}
	f.Policy(tb, vault.StintPolicy, text)
}

// Policy writes one policy.
func (f *Fixture) Policy(tb testing.TB, name, text string) {
	tb.Helper()
	if err := f.Root.Sys().PutPolicyWithContext(tb.Context(), name, text); err != nil {
		tb.Fatal(err)
	}
}

// TrustKeys replaces the keys whose JWT-SVIDs Vault accepts.
func (f *Fixture) TrustKeys(tb testing.TB, signers ...*Signer) {
	tb.Helper()
	var keys []string
	for _, s := range signers {
		keys = append(keys, s.PublicKey(tb))
	}
	f.write(tb, "auth/"+JWTMount+"/config", map[string]any{"jwt_validation_pubkeys": keys})
}

// Config returns a configuration that logs in with a JWT-SVID.
func (f *Fixture) Config() vault.Config {
	return vault.Config{Instance: Instance, Address: f.Server.Addr, Auth: vault.Auth{JWT: &vault.JWTAuth{
		Mount: JWTMount, Role: loginRole, Audience: Audience, Source: f.JWT.Source,
	}}}
}

// AppRole returns the authentication by AppRole, with a fresh secret ID.
func (f *Fixture) AppRole(tb testing.TB) vault.Auth {
	tb.Helper()
	roleID := f.read(tb, "auth/approle/role/"+loginRole+"/role-id")["role_id"]
	answer, err := f.Root.Logical().WriteWithContext(tb.Context(), "auth/approle/role/"+loginRole+"/secret-id", nil)
	if err != nil {
		tb.Fatal(err)
	}
	id, _ := answer.Data["secret_id"].(string)
	role, _ := roleID.(string)
	return vault.Auth{AppRole: &vault.AppRoleAuth{RoleID: role, SecretID: Static(id)}}
}

// TokenFile returns the authentication by a file that holds a fresh token with Stint's policy and these.
func (f *Fixture) TokenFile(tb testing.TB, policies ...string) vault.Auth {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "token")
	if err := os.WriteFile(path, []byte(f.Token(tb, policies...)+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return vault.Auth{Token: &vault.TokenAuth{File: path}}
}

// Token makes a token with Stint's policy and these.
func (f *Fixture) Token(tb testing.TB, policies ...string) string {
	tb.Helper()
	answer, err := f.Root.Auth().Token().CreateOrphanWithContext(tb.Context(), &vaultapi.TokenCreateRequest{
		Policies: append(policies, vault.StintPolicy), NoDefaultPolicy: true, TTL: loginTTL,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return answer.Auth.ClientToken
}

// Leases returns the IDs of the leases that are alive under a path such as ssh/creds/stint-otp.
func (f *Fixture) Leases(tb testing.TB, path string) []string {
	tb.Helper()
	leases := f.list(tb, "sys/leases/lookup/"+path)
	for i, id := range leases {
		leases[i] = path + "/" + id
	}
	return leases
}

// Accessors returns the accessors of all tokens that are alive, Stint's own and the root token's with them.
func (f *Fixture) Accessors(tb testing.TB) []string {
	tb.Helper()
	return f.list(tb, "auth/token/accessors")
}

func (f *Fixture) list(tb testing.TB, path string) []string {
	tb.Helper()
	answer, err := f.Root.Logical().ListWithContext(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	if answer == nil {
		return nil
	}
	keys, _ := answer.Data["keys"].([]any)
	var out []string
	for _, key := range keys {
		text, _ := key.(string)
		out = append(out, text)
	}
	return out
}

// enable mounts an engine or an auth method, unless it is there.
func (f *Fixture) enable(tb testing.TB, path, kind string, config map[string]any) {
	tb.Helper()
	body := map[string]any{"type": kind}
	maps.Copy(body, config)
	_, err := f.Root.Logical().WriteWithContext(tb.Context(), path, body)
	if failed, ok := errors.AsType[*vaultapi.ResponseError](err); ok && failed.StatusCode == http.StatusBadRequest {
		return // in use already
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func (f *Fixture) write(tb testing.TB, path string, body map[string]any) {
	tb.Helper()
	if _, err := f.Root.Logical().WriteWithContext(tb.Context(), path, body); err != nil {
		tb.Fatal(err)
	}
}

func (f *Fixture) read(tb testing.TB, path string) map[string]any {
	tb.Helper()
	answer, err := f.Root.Logical().ReadWithContext(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	if answer == nil {
		tb.Fatalf("vault has no %s", path)
	}
	return answer.Data
}

// Static returns a loader of a fixed secret.
func Static(text string) func(context.Context) (secret.Value, error) {
	return func(context.Context) (secret.Value, error) { return secret.FromString(text), nil }
}
