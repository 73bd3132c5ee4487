package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ryanuber/go-glob"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// issueTimeout is the time that a lease that cannot be cut may lose between the decision and Vault's answer.
const issueTimeout = 10 * time.Second

// Check logs in and looks at Stint's own token, the token role, and each role's policy and engine, as far as the token
// may read them: what it may not read is not reported. CheckPolicyText names what more there is to read.
func (b *Backend) Check(ctx context.Context, roles []plugins.Role) []plugins.Finding {
	if _, err := login.Health(ctx, b.rest); err != nil {
		return []plugins.Finding{b.unreachable(err)}
	}
	self, err := b.own(ctx, get("auth/token/lookup-self"))
	if err != nil {
		return []plugins.Finding{b.unreachable(err)}
	}
	c := checker{backend: b, ctx: ctx}
	c.ownToken(self)
	c.tokenRole(roles)
	c.ownPolicy(roles)
	mounts := map[string]mount{}
	for _, role := range roles {
		c.role(role, mounts)
	}
	return c.findings
}

func (b *Backend) unreachable(err error) plugins.Finding {
	return plugins.Finding{
		Severity: plugins.Breaks, Subject: b.cfg.Instance, Problem: err.Error(),
		Remedy: "address must lead to the active, unsealed node, and auth to a login with policy " + StintPolicy,
	}
}

// checker collects findings of one Check.
type checker struct {
	backend  *Backend
	ctx      context.Context //nolint:containedctx // a checker lives as long as one call of Check
	findings []plugins.Finding
}

func (c *checker) add(severity plugins.Severity, subject, problem, remedy string) {
	c.findings = append(c.findings, plugins.Finding{Severity: severity, Subject: subject, Problem: problem, Remedy: remedy})
}

// read returns nil for what is not there or may not be read, and whether it is known to be missing.
func (c *checker) read(path string) (reply *rest.Reply, missing bool) {
	reply, err := c.backend.own(c.ctx, get(path))
	if err == nil {
		return reply, false
	}
	failed, ok := errors.AsType[*rest.Error](err)
	return nil, ok && failed.Status == http.StatusNotFound
}

func (c *checker) ownToken(self *rest.Reply) {
	var policies []string
	if self.Decode("policies", &policies) && slices.Contains(policies, "root") {
		c.add(plugins.Weakens, "stint's own token", "it is a root token: whoever takes over stint takes over vault",
			"give it policy "+StintPolicy+" only; `stintd setup vault` prints it")
	}
}

// roleSettings are what auth/token/roles/NAME answers.
type roleSettings struct {
	orphan, noDefault           bool
	tokenType                   string
	allowed, globs              []string
	explicitMax, period, oldMax int64
	uses                        int64
}

func decodeRole(reply *rest.Reply) roleSettings {
	var s roleSettings
	for key, out := range map[string]any{
		"orphan": &s.orphan, "token_no_default_policy": &s.noDefault, "token_type": &s.tokenType,
		"allowed_policies": &s.allowed, "allowed_policies_glob": &s.globs, "token_explicit_max_ttl": &s.explicitMax,
		"token_period": &s.period, "explicit_max_ttl": &s.oldMax, "token_num_uses": &s.uses,
	} {
		reply.Decode(key, out) // what is missing stays zero
	}
	return s
}

func (c *checker) tokenRole(roles []plugins.Role) {
	name := c.backend.cfg.TokenRole
	subject, write := "token role "+name, "vault write auth/token/roles/"+name+" "
	reply, missing := c.read("auth/token/roles/" + name)
	if missing {
		c.add(plugins.Breaks, subject, "it does not exist", write+strings.Join(TokenRole(), " "))
	}
	if reply == nil {
		return
	}
	s := decodeRole(reply)
	for _, fault := range s.faults() {
		c.add(fault.severity, subject, fault.problem, write+fault.setting)
	}
	for _, role := range roles {
		if r, err := recipe.Parse(role); err == nil && !s.allows(r.Policy) {
			c.add(plugins.Breaks, subject, "it does not hand out "+r.Policy+" of role "+role.Name, write+allowedGlob)
		}
	}
}

const allowedGlob = "allowed_policies_glob=" + recipe.Prefix + "*"

// roleFault is a setting of the token role that is not as it should be.
type roleFault struct {
	severity         plugins.Severity
	problem, setting string
}

func (s roleSettings) faults() []roleFault {
	var faults []roleFault
	for _, check := range []struct {
		bad   bool
		fault roleFault
	}{
		{!s.orphan, roleFault{plugins.Breaks, "orphan is false: credentials end with stint's own token", "orphan=true"}},
		{
			s.tokenType != "service" && s.tokenType != "default-service",
			roleFault{plugins.Breaks, "token_type is " + s.tokenType + ": only service tokens can be revoked", "token_type=service"},
		},
		{
			s.explicitMax != 0 || s.oldMax != 0 || s.period != 0,
			roleFault{
				plugins.Breaks, "it sets a life of its own for tokens, and stint sets each one's",
				"token_explicit_max_ttl=0 token_period=0",
			},
		},
		{
			s.uses == 1,
			roleFault{plugins.Breaks, "token_num_uses is 1: vault takes back a lease that a token's last use makes", "token_num_uses=0"},
		},
		{!s.noDefault, roleFault{plugins.Weakens, "token_no_default_policy is false", "token_no_default_policy=true"}},
		{s.allows(StintPolicy), roleFault{plugins.Weakens, "it hands out more than the policies of roles", allowedGlob}},
	} {
		if check.bad {
			faults = append(faults, check.fault)
		}
	}
	return faults
}

// allows reports whether the token role hands out a policy. One without a list hands out any that its caller has.
func (s roleSettings) allows(policy string) bool {
	return len(s.allowed)+len(s.globs) == 0 || slices.Contains(s.allowed, policy) ||
		slices.ContainsFunc(s.globs, func(g string) bool { return glob.Glob(g, policy) })
}

// ownPolicy asks Vault what Stint's own token may do.
func (c *checker) ownPolicy(roles []plugins.Role) {
	needs := ownNeeds(c.backend.cfg)
	issuing := map[string]string{}
	for _, role := range roles {
		r, err := recipe.Parse(role)
		if err != nil {
			continue
		}
		if r.Kind == recipe.Lease && !slices.Contains(needs, need{"sys/leases/revoke", "update"}) {
			for _, n := range leaseNeeds() {
				needs = append(needs, need{n.path, "update"})
			}
		}
		if path, ok := r.Path(); ok {
			issuing[path] = role.Name
		}
	}
	paths := slices.Collect(maps.Keys(issuing))
	for _, n := range needs {
		paths = append(paths, n.path)
	}
	reply, err := c.backend.own(c.ctx, put("sys/capabilities-self", map[string]any{"paths": paths}))
	if err != nil {
		return
	}
	const subject = "stint's own token"
	for _, n := range needs {
		if !c.can(reply, n.path, n.capability) {
			c.add(plugins.Breaks, subject, "it may not "+n.capability+" "+n.path,
				fmt.Sprintf("add to its policy: path %q { capabilities = [%q] }", n.path, n.capability))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(issuing)) {
		if c.can(reply, path, "read") || c.can(reply, path, "update") {
			c.add(plugins.Weakens, subject, "it may issue by itself: "+path, "take the path out of its policy; only the tokens of role "+
				issuing[path]+" need it")
		}
	}
}

func (c *checker) can(reply *rest.Reply, path, capability string) bool {
	var has []string
	reply.Decode(path, &has)
	return slices.Contains(has, capability) || slices.Contains(has, "root")
}
