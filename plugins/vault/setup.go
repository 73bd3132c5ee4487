package vault

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// SetupOptions is what a set-up needs beside the configuration of the backend.
type SetupOptions struct {
	// Subject is Stint's own SPIFFE ID, which alone may log in by JWT.
	Subject string
	// DiscoveryURL is that of the trust domain's OIDC discovery provider; empty leaves the keys of the JWT mount alone.
	DiscoveryURL string
}

// heredocEnd ends a policy in the script. No line of a policy is equal to it.
const heredocEnd = "END_OF_POLICY"

// SetupScript returns a script for a POSIX shell that gives a Vault what this backend and these roles need, with the
// vault command: policies, token role and a way to log in. It may run again, and leaves engines alone. Its error wraps
// plugins.ErrInvalidRole.
func (b *Backend) SetupScript(o SetupOptions, roles []plugins.Role) (string, error) {
	s := &script{}
	s.head(b.cfg)
	if err := s.policies(b.cfg, roles); err != nil {
		return "", err
	}
	s.line("")
	s.line("# 2. The token role: every credential is taken with an orphan token of its own, with the policy of its role only.")
	settings := append(TokenRole(), "allowed_policies=", "token_explicit_max_ttl=0", "token_period=0", "token_num_uses=0")
	s.write("auth/token/roles/"+b.cfg.TokenRole, settings...)
	s.line("")
	s.line("# 3. How Stint logs in.")
	s.auth(b.cfg.Auth, o)
	s.line("")
	s.line("# 4. Engines are yours: docs/databases.md and deploy/vault/README.md say what each has to be set to. These are used:")
	for _, role := range roles {
		if r, err := recipe.Parse(role); err == nil {
			s.line("#   " + r.Rule().Path + "  by role " + printable(role.Name))
		}
	}
	s.line("")
	s.line("# 5. Then, with a token that may read what serving must not:")
	s.line("#   (umask 077; vault token create -orphan -no-default-policy -policy=" + CheckPolicy + " -ttl=1h -field=token > check-token)")
	s.line("#   stintd check --vault-token-file check-token")
	return s.String(), nil
}

// script collects lines of a shell script.
type script struct{ strings.Builder }

func (s *script) line(text string) { fmt.Fprintln(s, text) }

// write writes a path of Vault; path and settings are taken literally.
func (s *script) write(path string, settings ...string) {
	words := []string{"vault write " + shellQuote(path)}
	for _, arg := range settings {
		words = append(words, shellQuote(arg))
	}
	s.line(strings.Join(words, " \\\n  "))
}

func (s *script) head(cfg Config) {
	s.line("#!/bin/sh")
	s.line("# What backend " + printable(cfg.Instance) + " needs, as `stintd setup vault` prints it. Run it as an administrator of that Vault, with the")
	s.line("# vault command and VAULT_TOKEN set. It may run again.")
	s.line("set -eu")
	s.line("export VAULT_ADDR=" + shellQuote(cfg.Address))
	if cfg.CAFile != "" {
		s.line("export VAULT_CACERT=" + shellQuote(cfg.CAFile))
	}
	if cfg.Namespace != "" {
		s.line("export VAULT_NAMESPACE=" + shellQuote(cfg.Namespace))
	}
}

// policies writes Stint's own, each role's, and that of check. Roles may share one only if it is the same.
func (s *script) policies(cfg Config, roles []plugins.Role) error {
	own, err := PolicyText(cfg, roles)
	if err != nil {
		return err
	}
	check, err := CheckPolicyText(roles)
	if err != nil {
		return err
	}
	s.line("")
	s.line("# 1. Policies: of Stint's own token, of the tokens of each role's credentials, and of `stintd check`.")
	s.policy(StintPolicy, own)
	texts := map[string][]string{}
	var names []string
	for _, role := range roles {
		name, text, err := RolePolicyText(role)
		if err != nil {
			return err
		}
		if texts[name] == nil {
			names = append(names, name)
		}
		texts[name] = append(texts[name], text)
	}
	slices.Sort(names)
	for _, name := range names {
		s.policy(name, strings.Join(texts[name], ""))
	}
	s.policy(CheckPolicy, check)
	return nil
}

func (s *script) policy(name, text string) {
	fmt.Fprintf(s, "vault policy write %s - <<'%s'\n%s%s\n", shellQuote(name), heredocEnd, text, heredocEnd)
}

// loginRole is the usual name of the role or account that Stint logs in with.
const loginRole = "stint"

func (s *script) auth(a Auth, o SetupOptions) {
	switch {
	case a.JWT != nil:
		s.enable(a.JWT.Mount, "jwt")
		if o.DiscoveryURL == "" {
			s.line("# The keys of the trust domain: give --oidc-discovery-url, or write them yourself:")
			s.line("#   vault write auth/" + a.JWT.Mount + "/config oidc_discovery_url=https://oidc.example.org")
		} else {
			s.write("auth/"+a.JWT.Mount+"/config", "oidc_discovery_url="+o.DiscoveryURL)
		}
		s.write("auth/"+a.JWT.Mount+"/role/"+a.JWT.Role, append([]string{
			"role_type=jwt", "user_claim=sub", "bound_subject=" + o.Subject, "bound_audiences=" + a.JWT.Audience,
		}, loginSettings()...)...)
	case a.AppRole != nil:
		s.enable(a.AppRole.Mount, "approle")
		role := "auth/" + a.AppRole.Mount + "/role/" + loginRole
		s.write(role, loginSettings()...)
		s.write(role+"/role-id", "role_id="+a.AppRole.RoleID)
		s.line("# Its secret ID, into the file that secret_id names:")
		s.line("#   (umask 077; vault write -f -field=secret_id " + role + "/secret-id > FILE)")
	default:
		s.line("# With a token that somebody keeps alive, such as Vault Agent:")
		s.line("#   (umask 077; vault token create -orphan -no-default-policy -policy=" + StintPolicy + " -period=1h -field=token > " +
			shellQuote(a.Token.File) + ")")
	}
}

func loginSettings() []string {
	return []string{"token_policies=" + StintPolicy, "token_no_default_policy=true", "token_type=service", "token_ttl=1h"}
}

// enable mounts an auth method unless it is there.
func (s *script) enable(mount, kind string) {
	s.line("vault read " + shellQuote("sys/auth/"+mount+"/tune") + " >/dev/null 2>&1 || vault auth enable -path=" + shellQuote(mount) + " " + kind)
}

// shellWords writes words for a POSIX shell.
func shellWords(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = shellQuote(word)
	}
	return strings.Join(quoted, " ")
}

// shellQuote writes one word for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
