package resource

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/plugins"
)

const maxParameters = 16 // as in the API

var (
	namePattern  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	paramPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	envPattern   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	filePattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
	fieldPattern = regexp.MustCompile(`\{\{\s*\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}`)
)

// roleReader reads the spec of one role.
type roleReader struct {
	*mapping
	role     Role
	backends Backends
	exposure time.Duration // the bound; zero for none
	section  *yaml.Node    // the plugin's; nil where the role has none
	exposed  *yaml.Node    // exposure.max
}

func readRole(h header, spec *mapping, backends Backends) Role {
	r := &roleReader{mapping: spec, backends: backends, role: Role{Name: h.name, Description: h.description, At: h.at}}
	r.readTTL()
	r.readExposure()
	r.readParameters()
	permanent := spec.flag("accept_permanent")
	if spec.flag("renewable") {
		spec.problem(spec.child("renewable"), "%s is not possible: a credential ends with its ttl; the agent is issued another", spec.join("renewable"))
	}
	var fields []string // not known unless the backend accepts the role
	if r.readBackend(permanent) {
		fields = deliverable(r.role.Info)
	}
	r.readDeliver(spec.sub("deliver"), fields)
	spec.done()
	return r.role
}

func (r *roleReader) readTTL() {
	ttl := r.sub("ttl")
	if ttl.node == nil {
		r.need("ttl")
		return
	}
	if ttl.need("max") != nil {
		r.role.MaxTTL = ttl.duration("max", 0)
	}
	r.role.DefaultTTL = ttl.duration("default", r.role.MaxTTL)
	if r.role.MaxTTL > 0 && r.role.DefaultTTL > r.role.MaxTTL {
		r.problem(ttl.child("default"), "%s is %s, longer than ttl.max, %s", ttl.join("default"),
			short(r.role.DefaultTTL), short(r.role.MaxTTL))
	}
	ttl.done()
}

func (r *roleReader) readExposure() {
	m := r.sub("exposure")
	if m.node == nil {
		return
	}
	r.exposed = m.need("max")
	r.exposure = m.duration("max", 0)
	m.done()
}

func (r *roleReader) readParameters() {
	nodes := r.list("parameters")
	if len(nodes) > maxParameters {
		r.problem(nodes[maxParameters], "a role has at most %d parameters", maxParameters)
	}
	for i, n := range nodes {
		m := r.mapping.mapping(n, n, fmt.Sprintf("%s[%d]", r.join("parameters"), i))
		p := Parameter{Name: m.text("name"), Description: m.line("description"), Required: m.flag("required")}
		m.need("name")
		p.Pattern = m.pattern(m.need("pattern"), m.join("pattern"))
		m.done()
		switch _, dup := r.role.Parameter(p.Name); {
		case m.child("name") == nil:
		case !paramPattern.MatchString(p.Name):
			m.problem(m.child("name"), "parameter %q must match %s", p.Name, paramPattern)
		case dup:
			m.problem(m.child("name"), "parameter %s is given twice", p.Name)
		default:
			r.role.Parameters = append(r.role.Parameters, p)
		}
	}
	slices.SortFunc(r.role.Parameters, func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
}

// pattern reads an RE2 expression.
func (m *mapping) pattern(n *yaml.Node, path string) Pattern {
	if n == nil {
		return Pattern{}
	}
	text := m.textOf(n, path)
	p, err := ParsePattern(text)
	if err != nil && n.ShortTag() == "!!str" {
		m.problem(n, "%s: %s", path, err)
	}
	return p
}

// readBackend finds the backend and its section, and lets it check the role. It reports whether the backend accepted
// the role, so that the names of its fields are known.
func (r *roleReader) readBackend(permanent bool) bool {
	n := r.need("backend")
	r.role.Backend = r.textOf(n, r.join("backend"))
	backend, ok := r.backends[r.role.Backend]
	if !ok {
		if n != nil {
			names := make([]string, 0, len(r.backends))
			for name := range r.backends {
				names = append(names, name)
			}
			r.problem(n, "backend %q is not configured%s", r.role.Backend, didYouMean(r.role.Backend, names))
		}
		r.forgetSections()
		return false
	}
	desc := backend.Descriptor()
	r.section = r.child(desc.Section)
	config, ok := r.rawJSON(r.section, r.join(desc.Section))
	if !ok || r.role.MaxTTL == 0 {
		return false
	}
	r.role.Plugin = plugins.Role{
		Name: r.role.Name, Backend: r.role.Backend, Config: config, MaxTTL: r.role.MaxTTL, AcceptPermanent: permanent,
	}
	for _, p := range r.role.Parameters {
		r.role.Plugin.Parameters = append(r.role.Plugin.Parameters, p.Name)
	}
	info, err := backend.CheckRole(r.role.Plugin)
	if err != nil {
		r.problem(r.sectionNode(), "%s refuses role %s: %s", r.role.Backend, r.role.Name, err)
		return false
	}
	r.role.Info = info
	r.checkInfo()
	return true
}

// forgetSections keeps sections from being called unknown keys where the backend that owns them is not known.
func (r *roleReader) forgetSections() {
	for _, b := range r.backends {
		r.known = append(r.known, b.Descriptor().Section)
	}
}

// sectionNode is where to report what the backend says.
func (r *roleReader) sectionNode() *yaml.Node {
	if r.section != nil {
		return r.section
	}
	return r.node
}

// checkInfo holds what the backend computed against what the operator demands.
func (r *roleReader) checkInfo() {
	info, at := r.role.Info, r.sectionNode()
	switch {
	case info.Ends < plugins.EndsRevocable || info.Ends > plugins.EndsNever:
		r.problem(at, "%s does not say how credentials of role %s end", r.role.Backend, r.role.Name)
	case info.Ends == plugins.EndsNever && !r.role.Plugin.AcceptPermanent:
		r.problem(at, "credentials of role %s cannot be ended at all (%s); accept_permanent: true accepts that", r.role.Name, info.Exposure.Reason)
	}
	if info.MaxTTL > 0 && r.role.MaxTTL > info.MaxTTL {
		r.problem(r.sub("ttl").child("max"), "spec.ttl.max is %s, longer than %s can bind for this role, %s",
			short(r.role.MaxTTL), r.role.Backend, short(info.MaxTTL))
	}
	switch exp := info.Exposure; {
	case r.exposure == 0:
	case !exp.Bounded:
		r.problem(r.exposed, "exposure of role %s has no bound (%s), and exposure.max is %s", r.role.Name, exp.Reason, short(r.exposure))
	case exp.Max > r.exposure:
		r.problem(r.exposed, "exposure of role %s is %s (%s), longer than exposure.max, %s",
			r.role.Name, short(exp.Max), exp.Reason, short(r.exposure))
	}
}

// rawJSON converts a plugin's section to JSON. A section that is missing is nil.
func (d *decoder) rawJSON(n *yaml.Node, path string) ([]byte, bool) {
	if n == nil {
		return nil, true
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n, "%s must be a mapping, not %s", path, describe(n))
		return nil, false
	}
	raw, err := toJSON(n)
	if err != nil {
		d.problem(n, "%s: %s", path, err)
		return nil, false
	}
	return raw, true
}

// toJSON returns a node as JSON with sorted keys.
func toJSON(n *yaml.Node) ([]byte, error) {
	v, err := value(n)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// value returns a node as what encoding/json would decode, and timestamps as text.
func value(n *yaml.Node) (any, error) {
	switch {
	case n.Kind == yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := value(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out[n.Content[i].Value] = v
		}
		return out, nil
	case n.Kind == yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := value(c)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case n.ShortTag() == "!!timestamp", n.ShortTag() == "!!str":
		return n.Value, nil
	}
	var v any
	if err := n.Load(&v); err != nil {
		return nil, fmt.Errorf("value %s: %w", describe(n), err)
	}
	return v, nil
}

// readDeliver reads the templates; fields nil means that they are not known.
func (r *roleReader) readDeliver(m *mapping, fields []string) {
	r.role.Deliver = Deliver{
		Env:   m.templates("env", envPattern, fields),
		With:  m.templates("with", envPattern, []string{}),
		Files: m.templates("files", filePattern, fields),
	}
	for name := range r.role.Deliver.With {
		if _, both := r.role.Deliver.Env[name]; both {
			m.problem(m.child("with"), "%s is in both env and with", name)
		}
	}
	m.done()
}

// deliverable returns the fields that templates can use: the credential's folder, and the secret's fields or the
// certificate's files. nil where they are not known beforehand.
func deliverable(info plugins.RoleInfo) []string {
	switch {
	case info.NeedsCSR:
		return []string{"dir", "cert_file", "key_file", "ca_file"}
	case len(info.Fields) == 0:
		return nil
	}
	return append([]string{"dir"}, info.Fields...)
}

// templates reads names and templates. Of the template language only {{ .field }} is accepted. fields nil means that
// they are not known; empty means that there are none.
func (m *mapping) templates(key string, names *regexp.Regexp, fields []string) map[string]string {
	sub := m.sub(key)
	if sub.node == nil {
		return nil
	}
	out := map[string]string{}
	for i := 0; i+1 < len(sub.node.Content); i += 2 {
		k, v := sub.node.Content[i], sub.node.Content[i+1]
		if !names.MatchString(k.Value) {
			m.problem(k, "%s: the name must match %s", sub.join(k.Value), names)
		}
		if v.Kind != yaml.ScalarNode {
			m.problem(v, "%s must be text, not %s", sub.join(k.Value), describe(v))
			continue
		}
		m.checkTemplate(v, sub.join(k.Value), fields)
		out[k.Value] = v.Value
	}
	return out
}

func (m *mapping) checkTemplate(n *yaml.Node, path string, fields []string) {
	for _, match := range fieldPattern.FindAllStringSubmatch(n.Value, -1) {
		if fields != nil && !slices.Contains(fields, match[1]) {
			m.problem(n, "%s: there is no field %s here%s", path, match[1], didYouMean(match[1], fields))
		}
	}
	if strings.Contains(fieldPattern.ReplaceAllString(n.Value, ""), "{{") {
		m.problem(n, "%s: only {{ .field }} is possible in a template", path)
	}
}

// short writes a duration for people: "1h", "13m40s".
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
