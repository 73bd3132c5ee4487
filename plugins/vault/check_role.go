package vault

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// mount is what is known of an engine.
type mount struct {
	kind    string        // "database", "ssh", "pki"; empty: not there, or may not be read
	ttl     time.Duration // default_lease_ttl as set; 0: the system's
	longest time.Duration // max_lease_ttl in effect; 0: not known
}

// roleChecker looks at one role.
type roleChecker struct {
	*checker

	role    plugins.Role
	recipe  recipe.Recipe
	mount   mount
	subject string
}

func (c *checker) role(role plugins.Role, mounts map[string]mount) {
	subject := "role " + role.Name
	r, err := recipe.Parse(role)
	if err != nil {
		c.breaks("role-invalid", subject, err.Error(), "change the role's vault section")
		return
	}
	rc := roleChecker{checker: c, role: role, recipe: r, subject: subject}
	rc.policy()
	if r.Kind != recipe.Lease {
		return
	}
	m, known := mounts[r.Mount()]
	if !known {
		m = c.engine(r.Mount(), subject)
		mounts[r.Mount()] = m
	}
	rc.mount = m
	rc.engineRole()
	if m.longest > 0 && m.longest < role.MaxTTL {
		c.weakens("engine-max-ttl", subject, fmt.Sprintf("ttl.max is %s, and the engine %s/ ends every lease after %s", role.MaxTTL, r.Mount(), m.longest),
			fmt.Sprintf("vault secrets tune -max-lease-ttl=%s %s/", role.MaxTTL, r.Mount()))
	}
}

// policy holds the policy of the role's tokens against what it should be.
func (c *roleChecker) policy() {
	name := c.recipe.Policy
	write := rewrites(name)
	reply, missing := c.read("sys/policies/acl/" + name)
	if missing {
		c.breaks("role-policy-missing", c.subject, "policy "+name+" does not exist", write)
		return
	}
	var have string
	if reply == nil || !reply.Decode("policy", &have) {
		return
	}
	_, want, err := RolePolicyText(c.role)
	if err != nil {
		return
	}
	rules, err := parseACL(have)
	if err != nil {
		c.weakens("policy-unreadable", "policy "+name, err.Error(), write)
		return
	}
	rule := c.recipe.Rule()
	if !grants(rules, samplePath(c.role, c.recipe), rule.Capability, slices.Sorted(maps.Keys(rule.Allowed))) {
		c.breaks("role-policy-denies", c.subject, "policy "+name+" does not allow "+rule.Capability+" "+rule.Path, write)
	}
	if over, err := surplus(have, want); err == nil && len(over) > 0 {
		c.weakens("role-policy-broad", c.subject, "policy "+name+" allows more than its path: "+ruleTexts(over), write)
	}
}

func (c *checker) engine(name, subject string) mount {
	reply, missing := c.read("sys/mounts/" + name)
	if missing {
		c.breaks("engine-missing", subject, "no engine is mounted at "+name+"/", "vault secrets enable -path="+name+" TYPE")
	}
	if reply == nil {
		return mount{}
	}
	var m mount
	var config struct {
		TTL int64 `json:"default_lease_ttl"` // seconds; 0: the system's
	}
	reply.Decode("type", &m.kind)
	reply.Decode("config", &config)
	m.ttl = seconds(config.TTL)
	if tuned, _ := c.read("sys/mounts/" + name + "/tune"); tuned != nil {
		var longest int64
		tuned.Decode("max_lease_ttl", &longest)
		m.longest = seconds(longest)
	}
	return m
}

// engineRole turns database/creds/stint-x and pki/issue/stint-x into database/roles/stint-x and pki/roles/stint-x.
func engineRole(r recipe.Recipe) (string, bool) {
	parts := r.Segments()
	if len(parts) != 3 || slices.ContainsFunc(parts, func(s recipe.Segment) bool { return s.Open }) {
		return "", false
	}
	return parts[0].Literal + "/roles/" + parts[2].Literal, true
}

// engineRole looks at the engine's own role, in the ways of the engines that are known.
func (c *roleChecker) engineRole() {
	path, known := engineRole(c.recipe)
	looks := map[string]func(path string){"ssh": c.ssh, "pki": c.pki, "database": c.database, "aws": c.aws}
	if look := looks[c.mount.kind]; known && look != nil {
		look(path)
	}
	switch {
	case c.mount.kind == "ssh":
		c.uncuttable()
	case slices.Contains(endless(), c.mount.kind):
		c.endless()
	case c.mount.kind != "" && c.mount.kind != "database" && !slices.Contains(own(), c.mount.kind):
		c.unstated(c.mount.kind)
	}
}

// endless is about systems whose credentials have no end of their own. What vault makes there and forgets, as when the answer is
// lost, nobody was told; but nothing ends it.
func (c *roleChecker) endless() {
	c.weakens("engine-no-end", c.subject,
		"what vault makes at "+c.mount.kind+" has no end of its own there: while vault is down it works on, and of what vault forgets only an administrator of it knows",
		"compare what "+c.mount.kind+" has with `vault list sys/leases/lookup/"+c.recipe.Rule().Path+"` after a failure of either")
	if c.recipe.EngineEnd != recipe.NoEnd {
		c.wrongEnd(c.mount.kind+" ends nothing by itself", recipe.NoEnd)
	}
}

// unstated is about engines of which nobody but the operator knows what ends what they make.
func (c *roleChecker) unstated(engine string) {
	if c.recipe.EngineEnd == "" {
		c.wrongEnd("what ends what "+engine+" makes, if vault does not, is not known", recipe.NoEnd)
	}
}

// wrongEnd is about a role by which the record would say too early until when something could work at worst.
func (c *roleChecker) wrongEnd(because string, remedy recipe.EngineEnd) {
	states := "the role does not state vault.engine_end"
	if c.recipe.EngineEnd != "" {
		states = "the role states vault.engine_end: " + string(c.recipe.EngineEnd)
	}
	c.breaks("engine-end", c.subject, because+", and "+states+": what the record says of it at worst may be too early",
		fmt.Sprintf("vault: {engine_end: %s} in the role", remedy))
}

// uncuttable is about engines that take the mount's TTL and whose leases cannot be renewed, so not cut either.
func (c *roleChecker) uncuttable() {
	ttl := c.mount.ttl
	if ttl > 0 && (c.role.MaxTTL == 0 || ttl+issueTimeout <= c.role.MaxTTL) {
		return
	}
	c.breaks("engine-ttl", c.subject,
		fmt.Sprintf("leases of %s/ live %s and cannot be cut; every request for less is refused, and the role's maximum is %s",
			c.recipe.Mount(), ttlText(ttl), c.role.MaxTTL),
		"vault secrets tune -default-lease-ttl=30s "+c.recipe.Mount()+"/")
}

func ttlText(d time.Duration) string {
	if d == 0 {
		return "as long as the server's default_lease_ttl (32 days unless set)"
	}
	return d.String()
}
