package vault

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ryanuber/go-glob"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// roleSettings are what auth/token/roles/NAME answers. Durations are in seconds.
type roleSettings struct {
	orphan, noDefault           bool
	tokenType                   string
	allowed, globs              []string
	disallowed, disallowedGlobs []string
	explicitMax, period         int64
	oldExplicitMax, oldPeriod   int64
	uses                        int64
}

func decodeRole(reply *rest.Reply) roleSettings {
	var s roleSettings
	for key, out := range map[string]any{
		"orphan": &s.orphan, "token_no_default_policy": &s.noDefault, "token_type": &s.tokenType,
		"allowed_policies": &s.allowed, "allowed_policies_glob": &s.globs,
		"disallowed_policies": &s.disallowed, "disallowed_policies_glob": &s.disallowedGlobs,
		"token_explicit_max_ttl": &s.explicitMax, "explicit_max_ttl": &s.oldExplicitMax,
		"token_period": &s.period, "period": &s.oldPeriod, "token_num_uses": &s.uses,
	} {
		reply.Decode(key, out) // what is missing stays zero
	}
	s.explicitMax = max(s.explicitMax, s.oldExplicitMax)
	s.period = max(s.period, s.oldPeriod)
	return s
}

// tokenRole is read with Stint's own token, which may.
func (c *checker) tokenRole(roles []plugins.Role) {
	name := c.backend.cfg.TokenRole
	subject, write := "token role "+name, "vault write auth/token/roles/"+name+" "
	reply, err := c.backend.own(c.ctx, get("auth/token/roles/"+name))
	switch {
	case isMissing(err):
		c.breaks("token-role-missing", subject, "it does not exist", write+shellWords(TokenRole()))
		return
	case err != nil: // ownToken says that the right to read it is missing
		return
	}
	s := decodeRole(reply)
	need, longest := c.longest(roles)
	for _, f := range s.faults(need, longest) {
		f.Subject, f.Remedy = subject, write+f.Remedy
		c.add(f)
	}
	used := map[string]bool{}
	for _, role := range roles {
		r, err := recipe.Parse(role)
		if err != nil {
			continue
		}
		used[r.Policy] = true
		if !s.allows(r.Policy) {
			c.breaks("token-role-policy-missing", subject, "it does not hand out "+r.Policy+" of role "+role.Name,
				write+allowedGlob+" disallowed_policies=root disallowed_policies_glob=")
		}
	}
	if roles != nil {
		c.handsOut(s, used)
	}
}

// allowedGlob is a setting as a shell takes it.
const allowedGlob = "'allowed_policies_glob=" + recipe.Prefix + "*'"

// faults returns findings whose remedy is a setting only.
func (s roleSettings) faults(need time.Duration, longest string) []plugins.Finding {
	explicit, period := seconds(s.explicitMax), seconds(s.period)
	var faults []plugins.Finding
	for _, check := range []struct {
		bad   bool
		fault plugins.Finding
	}{
		{!s.orphan, plugins.Finding{
			Severity: plugins.Breaks, Code: "token-role-not-orphan",
			Problem: "orphan is false: credentials end with stint's own token", Remedy: "orphan=true",
		}},
		{s.tokenType != "service" && s.tokenType != "default-service", plugins.Finding{
			Severity: plugins.Breaks, Code: "token-role-type",
			Problem: "token_type is " + s.tokenType + ": only service tokens can be revoked", Remedy: "token_type=service",
		}},
		{period > 0, plugins.Finding{
			Severity: plugins.Breaks, Code: "token-role-ttl",
			Problem: fmt.Sprintf("token_period is %s: a life of its own for tokens, and stint sets each one's", period), Remedy: "token_period=0",
		}},
		{explicit > 0 && explicit < need, plugins.Finding{
			Severity: plugins.Breaks, Code: "token-role-ttl", Remedy: "token_explicit_max_ttl=0",
			Problem: fmt.Sprintf("token_explicit_max_ttl is %s, and role %s needs tokens of %s: stint refuses a token that was capped", explicit, longest, need),
		}},
		{s.uses == 1, plugins.Finding{
			Severity: plugins.Breaks, Code: "token-role-uses",
			Problem: "token_num_uses is 1: vault takes back a lease that a token's last use makes", Remedy: "token_num_uses=0",
		}},
		{!s.noDefault, plugins.Finding{
			Severity: plugins.Weakens, Code: "token-role-default-policy",
			Problem: "token_no_default_policy is false", Remedy: "token_no_default_policy=true",
		}},
		{len(s.beyond()) > 0, plugins.Finding{
			Severity: plugins.Weakens, Code: "token-role-policies",
			Problem: "it hands out more than the policies of roles: " + strings.Join(s.beyond(), ", "), Remedy: "allowed_policies= " + allowedGlob,
		}},
	} {
		if check.bad {
			faults = append(faults, check.fault)
		}
	}
	return faults
}

// allows reports whether the token role hands out a policy. One without a list hands out any that its caller has.
func (s roleSettings) allows(policy string) bool {
	matches := func(g string) bool { return glob.Glob(g, policy) }
	if slices.Contains(s.disallowed, policy) || slices.ContainsFunc(s.disallowedGlobs, matches) {
		return false
	}
	return len(s.allowed)+len(s.globs) == 0 || slices.Contains(s.allowed, policy) || slices.ContainsFunc(s.globs, matches)
}

// beyond returns what the token role allows that no role's policy can be named.
func (s roleSettings) beyond() []string {
	var out []string
	for _, allowed := range slices.Concat(s.allowed, s.globs) {
		if !strings.HasPrefix(allowed, recipe.Prefix) {
			out = append(out, allowed)
		}
	}
	if len(s.allowed)+len(s.globs) == 0 {
		out = append(out, "whatever stint's own token has")
	}
	return out
}

// handsOut reports policies that exist, begin like those of roles, and belong to none.
func (c *checker) handsOut(s roleSettings, used map[string]bool) {
	reply, _ := c.ask(rest.Call{Method: "LIST", Path: "sys/policies/acl"})
	var names []string
	if reply == nil || !reply.Decode("keys", &names) {
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, recipe.Prefix) && s.allows(name) && !used[name] {
			c.weakens("policy-unused", "policy "+name, "the token role "+c.backend.cfg.TokenRole+" hands it out, and no role has it",
				"vault policy delete "+name)
		}
	}
}

// tokenMount is about the longest life that Vault gives any token.
func (c *checker) tokenMount(roles []plugins.Role) {
	need, longest := c.longest(roles)
	reply, _ := c.read("sys/mounts/auth/token/tune")
	if reply == nil {
		return
	}
	var limit int64
	if reply.Decode("max_lease_ttl", &limit) && seconds(limit) < need {
		c.breaks("token-mount-ttl", "auth/token/", fmt.Sprintf("max_lease_ttl is %s, and role %s needs tokens of %s", seconds(limit), longest, need),
			fmt.Sprintf("vault auth tune -max-lease-ttl=%s token/", need))
	}
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

func isMissing(err error) bool {
	failed, ok := asRestError(err)
	return ok && failed.Status == http.StatusNotFound
}
