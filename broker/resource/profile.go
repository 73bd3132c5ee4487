package resource

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/attestor"
)

// What a profile allows where it says nothing.
const (
	defaultMaxTask       = time.Hour
	defaultTask          = 15 * time.Minute
	defaultMaxLive       = 10
	defaultMaxLiveLeases = 50
	mostLive             = 1_000_000
)

func readProfile(h header, spec *mapping) Profile {
	p := Profile{Name: h.name, Description: h.description, At: h.at}
	p.Agents = spec.agents()
	p.Owner, p.Sponsor = spec.line("owner"), spec.line("sponsor")
	checkPeople(spec, p.Owner, p.Sponsor)
	p.Purposes = spec.names("purposes")
	p.Roles = spec.profileRoles()
	p.Permit = spec.permit()
	readTaskLimits(&p, spec.sub("task"))
	spec.done()
	return p
}

// agents reads the patterns of SPIFFE IDs.
func (m *mapping) agents() []attestor.Pattern {
	if n := m.need("agents"); n != nil && len(n.Content) == 0 {
		m.problem(n, "%s must name at least one pattern such as spiffe://example.org/agent/*", m.join("agents"))
	}
	var out []attestor.Pattern
	for i, n := range m.list("agents") {
		p, err := attestor.ParsePattern(m.textOf(n, fmt.Sprintf("%s[%d]", m.join("agents"), i)))
		if err != nil {
			m.problem(n, "%s[%d]: %s", m.join("agents"), i, err)
			continue
		}
		out = append(out, p)
	}
	return out
}

// checkPeople sees to it that somebody is accountable who is not the one that operates.
func checkPeople(m *mapping, owner, sponsor string) {
	ownerNode, sponsorNode := m.need("owner"), m.need("sponsor")
	if ownerNode == nil || sponsorNode == nil {
		return
	}
	for _, n := range []*yaml.Node{ownerNode, sponsorNode} {
		if strings.TrimSpace(n.Value) == "" {
			m.problem(n, "owner and sponsor must name somebody")
			return
		}
	}
	if strings.EqualFold(strings.TrimSpace(owner), strings.TrimSpace(sponsor)) {
		m.problem(sponsorNode, "sponsor must not be the owner: one answers for the agent's purpose, the other for its operation")
	}
}

// names reads a list of at least one name, and returns it sorted.
func (m *mapping) names(key string) []string {
	if n := m.need(key); n != nil && len(n.Content) == 0 {
		m.problem(n, "%s must hold at least one name", m.join(key))
	}
	var out []string
	for _, n := range m.list(key) {
		name := m.textOf(n, m.join(key))
		switch {
		case !namePattern.MatchString(name):
			m.problem(n, "%s: %q must match %s", m.join(key), name, namePattern)
		case slices.Contains(out, name):
			m.problem(n, "%s: %s is given twice", m.join(key), name)
		default:
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (m *mapping) profileRoles() []ProfileRole {
	if n := m.need("roles"); n != nil && len(n.Content) == 0 {
		m.problem(n, "%s must hold at least one role", m.join("roles"))
	}
	var out []ProfileRole
	for i, n := range m.list("roles") {
		sub := m.mapping(n, n, fmt.Sprintf("%s[%d]", m.join("roles"), i))
		r := ProfileRole{Name: sub.text("name"), MaxTTL: sub.duration("max_ttl", 0), At: m.at(n)}
		sub.need("name")
		r.Parameters = sub.narrower(sub.sub("parameters"))
		sub.done()
		if r.Name == "" {
			continue
		}
		if slices.ContainsFunc(out, func(o ProfileRole) bool { return o.Name == r.Name }) {
			m.problem(n, "%s: role %s is given twice", m.join("roles"), r.Name)
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b ProfileRole) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// narrower reads patterns by parameter name.
func (m *mapping) narrower(params *mapping) map[string]Pattern {
	if params.node == nil {
		return nil
	}
	out := map[string]Pattern{}
	for i := 0; i+1 < len(params.node.Content); i += 2 {
		name, n := params.node.Content[i].Value, params.node.Content[i+1]
		out[name] = m.pattern(n, params.join(name))
	}
	return out
}

func (m *mapping) permit() Permit {
	n := m.need("permit")
	if n == nil {
		return PermitNone
	}
	switch p := Permit(n.Value); p {
	case PermitCeiling, PermitNone:
		return p
	}
	m.problem(n, "%s must be ceiling (grants all of it) or none (only policies grant), not %s", m.join("permit"), describe(n))
	return PermitNone
}

func readTaskLimits(p *Profile, m *mapping) {
	p.MaxTTL = m.duration("max_ttl", defaultMaxTask)
	p.DefaultTTL = m.duration("default_ttl", min(defaultTask, p.MaxTTL))
	p.IdleTimeout = m.duration("idle_timeout", 0)
	p.MaxLive = m.count("max_live", defaultMaxLive, mostLive)
	p.MaxLiveLeases = m.count("max_live_leases", defaultMaxLiveLeases, mostLive)
	if p.DefaultTTL > p.MaxTTL {
		m.problem(m.child("default_ttl"), "%s is %s, longer than the longest task, %s", m.join("default_ttl"), short(p.DefaultTTL), short(p.MaxTTL))
	}
	m.done()
}
