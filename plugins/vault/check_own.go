package vault

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

const ownSubject = "stint's own token"

// sample fills each parameter of a path that is only asked about.
const sample = "stint-check"

func asRestError(err error) (*rest.Error, bool) { return errors.AsType[*rest.Error](err) }

// ownToken holds what Stint's own token may do against what it needs.
func (c *checker) ownToken(self *rest.Reply, roles []plugins.Role) {
	var policies, more []string
	self.Decode("policies", &policies)
	self.Decode("identity_policies", &more)
	policies = append(policies, more...)
	if slices.Contains(policies, "root") {
		c.weakens("own-token-root", ownSubject, "it is a root token: whoever takes over stint takes over vault",
			"log in with policy "+StintPolicy+" only: "+rewrites(StintPolicy))
		return
	}
	o := ownRights{checker: c, issuing: map[string]string{}, mounts: map[string]bool{}}
	for _, role := range roles {
		o.learn(role)
	}
	if o.ask() {
		o.missing()
		reported := append(o.issues(), o.broad()...)
		reported = append(reported, o.leases()...)
		if roles != nil {
			o.policies(policies, roles, reported)
		}
	}
}

// ownRights is what is asked about Stint's own token.
type ownRights struct {
	*checker

	leased  bool              // some role makes leases
	issuing map[string]string // paths that issue, and whose
	mounts  map[string]bool
	acls    []string // the policies of roles
	reply   *rest.Reply
}

func (o *ownRights) learn(role plugins.Role) {
	r, err := recipe.Parse(role)
	if err != nil {
		return
	}
	o.leased = o.leased || r.Kind == recipe.Lease
	o.issuing[samplePath(role, r)] = role.Name
	o.mounts[r.Mount()] = true
	o.acls = append(o.acls, r.Policy)
}

// samplePath fills the parameters of a path with something.
func samplePath(role plugins.Role, r recipe.Recipe) string {
	params := map[string]string{}
	for _, name := range role.Parameters {
		params[name] = sample
	}
	_, path, _, err := r.Call(recipe.Values{Params: params, TTL: 1})
	if err != nil {
		return r.Mount() + "/" + sample
	}
	return path
}

func (o *ownRights) needs() []need {
	needs := ownNeeds(o.backend.cfg)
	if o.leased {
		for _, n := range leaseNeeds() {
			needs = append(needs, need{n.path, "update"})
		}
	}
	return needs
}

// never returns paths on which Stint's own token must have no right, but for the one that stands with it.
func (o *ownRights) never() []need {
	paths := []need{
		{"auth/token/create", ""},
		{"auth/token/create-orphan", ""},
		{"auth/token/create/" + sample, ""},
		{"auth/token/accessors/", ""},
		{"auth/token/roles/" + o.backend.cfg.TokenRole, "read"},
		{"auth/token/roles/" + sample, ""},
		{"sys/policies/acl/" + StintPolicy, ""},
		{"sys/policies/acl/" + sample, ""},
		{"sys/auth/" + sample, ""},
		{"sys/mounts/" + sample, ""},
		{"sys/leases/lookup/", "update"},
		{"sys/leases/revoke-prefix/" + sample, ""},
		{"sys/leases/revoke-force/" + sample, ""},
		{"sys/audit/" + sample, ""},
		{"sys/seal", ""},
		{"identity/entity", ""},
	}
	for _, name := range slices.Sorted(maps.Keys(o.mounts)) {
		paths = append(paths, need{"sys/leases/revoke-prefix/" + name + "/", ""}, need{"sys/leases/revoke-force/" + name + "/", ""},
			need{"sys/mounts/" + name, ""}, need{name + "/roles/" + sample, ""}, need{name + "/config/" + sample, ""})
	}
	for _, name := range o.acls {
		paths = append(paths, need{"sys/policies/acl/" + name, ""})
	}
	return paths
}

// ask asks Vault for the rights on every path at once.
func (o *ownRights) ask() bool {
	paths := slices.Collect(maps.Keys(o.issuing))
	for _, n := range slices.Concat(o.needs(), o.never()) {
		paths = append(paths, n.path)
	}
	var err error
	o.reply, err = o.backend.own(o.ctx, put("sys/capabilities-self", map[string]any{"paths": paths}))
	if err != nil {
		o.unread["sys/capabilities-self"] = true
	}
	return err == nil
}

func (o *ownRights) rights(path string) []string {
	var has []string
	o.reply.Decode(path, &has)
	return slices.DeleteFunc(has, func(right string) bool { return right == "deny" })
}

func (o *ownRights) missing() {
	for _, n := range o.needs() {
		if !slices.Contains(o.rights(n.path), n.capability) {
			o.breaks("own-token-right-missing", ownSubject, "it may not "+n.capability+" "+n.path,
				fmt.Sprintf("add to its policy: path %q { capabilities = [%q] }", n.path, n.capability))
		}
	}
}

// issues reports that Stint could take credentials by itself, and returns the paths.
func (o *ownRights) issues() []string {
	var reported []string
	for _, path := range slices.Sorted(maps.Keys(o.issuing)) {
		if has := o.rights(path); slices.Contains(has, "read") || slices.Contains(has, "update") || slices.Contains(has, "create") {
			o.weakens("own-token-issues", ownSubject, "it may issue by itself: "+path,
				"take the path out of its policy; only the tokens of role "+o.issuing[path]+" need it")
			reported = append(reported, path)
		}
	}
	return reported
}

// broad reports rights that serving never needs, and returns their paths.
func (o *ownRights) broad() []string {
	var reported, words []string
	for _, n := range o.never() {
		has := slices.DeleteFunc(o.rights(n.path), func(right string) bool { return right == n.capability })
		if len(has) > 0 {
			reported = append(reported, n.path)
			words = append(words, strings.Join(has, "+")+" "+n.path)
		}
	}
	if len(words) > 0 {
		o.weakens("own-token-broad", ownSubject, "it has rights that serving never needs: "+strings.Join(words, ", "),
			rewrites(StintPolicy))
	}
	return reported
}

// leases tries to look up and to revoke a lease that is nobody's and does not exist: a right that is limited to Stint's
// leases answers 403 to that, and sys/capabilities-self does not tell the two apart.
func (o *ownRights) leases() []string {
	token, err := o.backend.session.Token(o.ctx)
	if err != nil || !o.leased {
		return nil
	}
	var reported []string
	for _, path := range []string{"sys/leases/lookup", "sys/leases/revoke"} {
		call := put(path, map[string]any{"lease_id": sample + "/none"})
		call.Token = token
		if _, err := o.backend.rest.Do(o.ctx, call); err == nil || rest.InvalidLease(err) {
			reported = append(reported, path)
		}
	}
	if len(reported) > 0 {
		o.weakens("own-token-leases", ownSubject, "it may use any lease of this vault, not only stint's: "+strings.Join(reported, ", "),
			rewrites(StintPolicy)+", with allowed_parameters")
	}
	return reported
}

// policies compares the text of the token's policies with what they should be. Paths that were reported already are
// not reported again.
func (o *ownRights) policies(names []string, roles []plugins.Role, reported []string) {
	text, err := PolicyText(o.backend.cfg, roles)
	if err != nil {
		return
	}
	for _, name := range names {
		reply, missing := o.read("sys/policies/acl/" + name)
		var have string
		if missing || reply == nil || !reply.Decode("policy", &have) {
			continue
		}
		over, err := surplus(have, text)
		if err != nil {
			o.weakens("policy-unreadable", "policy "+name, err.Error(), rewrites(name))
			continue
		}
		over = slices.DeleteFunc(over, func(r aclRule) bool {
			return slices.ContainsFunc(reported, func(path string) bool { return covers(r.path, path) })
		})
		if len(over) > 0 {
			o.weakens("own-policy-broad", "policy "+name, "it allows more than stint needs: "+ruleTexts(over),
				rewrites(name))
		}
	}
}
