package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/login"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// issueTimeout is the time that a lease that cannot be cut may lose between the decision and Vault's answer.
const issueTimeout = 10 * time.Second

// How far this machine's clock may be from Vault's. Certificates of pki end by Vault's clock and are recorded by ours;
// beyond clockLeeway Vault refuses a JWT-SVID as expired or not yet valid.
const (
	ClockBound  = 5 * time.Second
	clockLeeway = time.Minute
)

// Check is CheckWith without a token of its own: it reads with Stint's own token, which may read little.
func (b *Backend) Check(ctx context.Context, roles []plugins.Role) []plugins.Finding {
	return b.CheckWith(ctx, secret.Value{}, roles)
}

// CheckWith logs in as serving does and looks at Stint's own token, the token role, and each role's policy and engine.
// What serving need not read it reads with the token, which has the policy of CheckPolicyText; what that may not read
// either is one finding of code "not-readable". Of roles that are nil nothing is said that takes all of them to know. It
// changes nothing. docs/check.md explains each code.
func (b *Backend) CheckWith(ctx context.Context, token secret.Value, roles []plugins.Role) []plugins.Finding {
	asked := time.Now()
	health, err := login.Health(ctx, b.rest)
	if err != nil {
		return []plugins.Finding{b.unreachable("vault-unreachable", err)}
	}
	c := &checker{backend: b, ctx: ctx, token: token, unread: map[string]bool{}}
	if health.ServerTime != 0 {
		c.clock("Vault", health.ServerTime, asked, time.Now())
	}
	self, err := b.own(ctx, get("auth/token/lookup-self"))
	if err != nil {
		return append(c.findings, b.unreachable("vault-login", err))
	}
	c.tokenRole(roles)
	c.tokenMount(roles)
	c.ownToken(self, roles)
	mounts := map[string]mount{}
	for _, role := range roles {
		c.role(role, mounts)
	}
	c.databases(roles)
	c.notReadable()
	return c.findings
}

func (b *Backend) unreachable(code string, err error) plugins.Finding {
	return plugins.Finding{
		Severity: plugins.Breaks, Code: code, Subject: b.cfg.Instance, Problem: err.Error(),
		Remedy: "address must lead to the active, unsealed node, and auth to a login with policy " + StintPolicy,
	}
}

// rewrites is the remedy for a policy that is not as it should be.
func rewrites(policy string) string {
	return "stintd setup vault | sh, as an administrator of vault: it writes policy " + policy
}

// checker collects findings of one CheckWith.
type checker struct {
	backend  *Backend
	ctx      context.Context //nolint:containedctx // a checker lives as long as one call of CheckWith
	token    secret.Value    // zero: Stint's own
	findings []plugins.Finding
	unread   map[string]bool // paths that the token may not read
}

func (c *checker) add(f plugins.Finding) { c.findings = append(c.findings, f) }

func (c *checker) breaks(code, subject, problem, remedy string) {
	c.add(plugins.Finding{Severity: plugins.Breaks, Code: code, Subject: subject, Problem: problem, Remedy: remedy})
}

func (c *checker) weakens(code, subject, problem, remedy string) {
	c.add(plugins.Finding{Severity: plugins.Weakens, Code: code, Subject: subject, Problem: problem, Remedy: remedy})
}

// read returns nil for what is not there or may not be read, and whether it is known to be missing.
func (c *checker) read(path string) (reply *rest.Reply, missing bool) {
	return c.ask(get(path))
}

func (c *checker) ask(call rest.Call) (reply *rest.Reply, missing bool) {
	var err error
	if c.token.IsZero() {
		reply, err = c.backend.own(c.ctx, call)
	} else {
		call.Token = c.token
		reply, err = c.backend.rest.Do(c.ctx, call)
	}
	if err == nil {
		return reply, false
	}
	failed, ok := errors.AsType[*rest.Error](err)
	missing = ok && failed.Status == http.StatusNotFound || rest.NoMount(err)
	if !missing {
		c.unread[call.Path] = true
	}
	return nil, missing
}

// notReadable says what was not looked at, so that silence means that all is well.
func (c *checker) notReadable() {
	if len(c.unread) == 0 {
		return
	}
	c.weakens("not-readable", "check", "not looked at, because the token may not read it: "+strings.Join(slices.Sorted(maps.Keys(c.unread)), ", "),
		"(umask 077; vault token create -orphan -no-default-policy -policy="+CheckPolicy+" -ttl=1h -field=token > TOKEN), "+
			"and --vault-token-file TOKEN; `stintd setup vault` prints the policy")
}

// clock compares Vault's second with the time between which it was asked for and answered.
func (c *checker) clock(whose string, server int64, asked, answered time.Time) {
	first := time.Unix(server, 0)
	apart := max(asked.Sub(first.Add(time.Second)), first.Sub(answered))
	if apart <= ClockBound {
		return
	}
	finding := plugins.Finding{
		Severity: plugins.Weakens, Code: "clock", Subject: "clock", Remedy: "timedatectl set-ntp true, on the machine whose clock is wrong",
		Problem: fmt.Sprintf("%s's clock and this machine's are %s apart; at most %s is well", whose, apart.Round(time.Second), ClockBound),
	}
	if apart > clockLeeway {
		finding.Severity = plugins.Breaks
	}
	c.add(finding)
}

// longest is the longest life that a role's token needs; zero for a role without bound.
func (c *checker) longest(roles []plugins.Role) (time.Duration, string) {
	if len(roles) == 0 {
		return 0, ""
	}
	role := slices.MaxFunc(roles, func(a, b plugins.Role) int { return cmp.Compare(a.MaxTTL, b.MaxTTL) })
	return role.MaxTTL + c.backend.cfg.MaxRequestDuration, role.Name
}
