package resource

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stint-dev/stint/plugins"
)

// Parse reads a complete set. Either there are no problems, or the set is empty and every fault is named.
func Parse(files []File, backends Backends) (Set, []Problem) {
	return parse(nil, files, backends)
}

// Update reads files over a set: their resources are added or replace those of the same name, the others stay. The
// result is checked as a whole.
func (s Set) Update(files []File, backends Backends) (Set, []Problem) {
	return parse(s.docs, files, backends)
}

// Without takes one resource away, such as "roles/orders-db-read", and checks the rest as a whole: a role that a profile
// names cannot go.
func (s Set) Without(id string, backends Backends) (Set, []Problem) {
	rest := slices.DeleteFunc(slices.Clone(s.docs), func(d Document) bool { return d.ID() == id })
	return parse(rest, nil, backends)
}

// maxCedar bounds a policy's text: the parser recurses, and a stack is not for an operator's slip to fill.
const maxCedar = 64 << 10

// header is what every document begins with.
type header struct {
	kind        Kind
	name        string
	description string
	at          Position
}

// reader reads documents into a set.
type reader struct {
	backends Backends
	set      Set
	seen     map[string]Position // by ID
	faulty   map[string]bool     // by ID; "" for a document that could not be read at all
	problems []Problem
}

// parse reads files, and of the kept documents those that no file replaces.
func parse(kept []Document, files []File, backends Backends) (Set, []Problem) {
	r := &reader{backends: backends, seen: map[string]Position{}, faulty: map[string]bool{}}
	for _, f := range files {
		source := f.Source
		if source == "" {
			source = f.Name
		}
		for _, p := range split(f.YAML) {
			r.read(f.Name, source, p)
		}
	}
	replaced := r.seen
	r.seen = map[string]Position{}
	for _, d := range kept {
		if _, ok := replaced[d.ID()]; !ok {
			r.read(d.At.File, d.Source, piece{text: d.YAML, line: max(d.At.Line, 1)})
		}
	}
	r.sort()
	r.cross()
	if len(r.problems) > 0 {
		r.sort()
		return Set{}, r.problems
	}
	r.set.warnings = slices.Clip(r.set.warnings) // callers append to it
	return r.set, nil
}

// read adds one document to the set.
func (r *reader) read(file, source string, p piece) {
	d := &decoder{file: file}
	defer func() { r.problems = append(r.problems, d.problems...) }()
	root := d.load(p)
	if root == nil {
		r.faulty[""] = true
		return
	}
	top := d.mapping(root, root, "")
	h := readHeader(top)
	spec := top.sub("spec")
	if top.need("spec"); spec.node != nil {
		r.readSpec(h, spec)
	}
	top.done()
	doc := Document{Kind: h.kind, Name: h.name, YAML: p.text, Source: source, At: h.at}
	if h.kind.Collection() == "" || h.name == "" {
		r.faulty[""] = true
		return
	}
	if first, dup := r.seen[doc.ID()]; dup {
		d.problem(root, "%s %s is given twice; first in %s", h.kind, h.name, first)
		return
	}
	r.seen[doc.ID()] = h.at
	if len(d.problems) > 0 {
		r.faulty[doc.ID()] = true
		return
	}
	canonical, err := toJSON(root)
	if err != nil {
		d.problem(root, "%s %s: %s", h.kind, h.name, err)
		return
	}
	doc.Canonical = canonical
	r.set.docs = append(r.set.docs, doc)
}

func readHeader(top *mapping) header {
	h := header{at: top.at(top.node)}
	if v := top.need("apiVersion"); v != nil && v.Value != APIVersion {
		top.problem(v, "apiVersion must be %s, not %s", APIVersion, describe(v))
	}
	if k := top.need("kind"); k != nil {
		h.kind = Kind(k.Value)
		if h.kind.Collection() == "" {
			kinds := []string{string(KindRole), string(KindProfile), string(KindPolicy)}
			top.problem(k, "unknown kind %s%s", describe(k), didYouMean(k.Value, kinds))
		}
	}
	meta := top.sub("metadata")
	if top.need("metadata"); meta.node == nil {
		return h
	}
	h.description = meta.line("description")
	if n := meta.need("name"); n != nil {
		h.name = meta.text("name")
		if !namePattern.MatchString(h.name) {
			meta.problem(n, "metadata.name must match %s, not be %s", namePattern, describe(n))
			h.name = ""
		}
	}
	meta.done()
	return h
}

func (r *reader) readSpec(h header, spec *mapping) {
	switch h.kind {
	case KindRole:
		r.set.roles = append(r.set.roles, readRole(h, spec, r.backends))
	case KindProfile:
		r.set.profiles = append(r.set.profiles, readProfile(h, spec))
	case KindPolicy:
		r.set.policies = append(r.set.policies, readPolicy(h, spec))
	}
}

func readPolicy(h header, spec *mapping) Policy {
	p := Policy{Name: h.name, Description: h.description, At: h.at}
	if n := spec.need("cedar"); n != nil {
		p.Cedar = spec.text("cedar")
		p.At = spec.at(n)
		if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			p.At.Line++ // the text begins below the indicator
		}
		switch {
		case strings.TrimSpace(p.Cedar) == "" && n.ShortTag() == "!!str":
			spec.problem(n, "%s is empty", spec.join("cedar"))
		case len(p.Cedar) > maxCedar:
			spec.problem(n, "%s has %d bytes, more than %d; split it", spec.join("cedar"), len(p.Cedar), maxCedar)
		}
	}
	spec.done()
	return p
}

// cross checks what documents say about each other.
func (r *reader) cross() {
	for i, p := range r.set.profiles {
		for _, pr := range p.Roles {
			r.crossRole(p, pr)
		}
		for _, q := range r.set.profiles[:i] {
			if q.Name != p.Name { // given twice is a problem of its own
				r.crossAgents(p, q)
			}
		}
	}
	for _, role := range r.set.roles {
		if role.Plugin.AcceptPermanent && role.Info.Ends != plugins.EndsNever {
			r.warn(role.At, "role %s says accept_permanent, but its credentials do end", role.Name)
		}
	}
}

func (r *reader) crossRole(p Profile, pr ProfileRole) {
	role, ok := r.set.Role(pr.Name)
	if !ok {
		if !r.faulty[""] {
			r.problem(pr.At, "profile %s names role %s, which there is not%s", p.Name, pr.Name, didYouMean(pr.Name, r.roleNames()))
		}
		return
	}
	if pr.MaxTTL > role.MaxTTL && role.MaxTTL > 0 {
		r.warn(pr.At, "profile %s allows role %s for %s, the role itself only %s", p.Name, pr.Name, short(pr.MaxTTL), short(role.MaxTTL))
	}
	for _, name := range slices.Sorted(maps.Keys(pr.Parameters)) {
		if _, ok := role.Parameter(name); !ok && !r.faulty[KindRole.Collection()+"/"+role.Name] {
			r.problem(pr.At, "profile %s narrows parameter %s, which role %s does not have", p.Name, name, pr.Name)
		}
	}
}

// crossAgents refuses two profiles that match the same agent: which of them holds must never be in doubt.
func (r *reader) crossAgents(p, q Profile) {
	for _, a := range p.Agents {
		for _, b := range q.Agents {
			if a.Overlaps(b) {
				r.problem(p.At, "profiles %s and %s match the same agents: %s and %s overlap", q.Name, p.Name, b, a)
				return
			}
		}
	}
}

func (r *reader) problem(at Position, format string, args ...any) {
	r.problems = append(r.problems, Problem{at, fmt.Sprintf(format, args...)})
}

func (r *reader) warn(at Position, format string, args ...any) {
	r.set.warnings = append(r.set.warnings, Problem{at, fmt.Sprintf(format, args...)}.String())
}

func (r *reader) roleNames() []string {
	names := make([]string, 0, len(r.set.roles))
	for _, role := range r.set.roles {
		names = append(names, role.Name)
	}
	return names
}

// sort puts everything into the order that Set promises.
func (r *reader) sort() {
	slices.SortFunc(r.set.docs, func(a, b Document) int { return strings.Compare(a.ID(), b.ID()) })
	slices.SortStableFunc(r.set.roles, func(a, b Role) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(r.set.profiles, func(a, b Profile) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(r.set.policies, func(a, b Policy) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.At.File, b.At.File), cmp.Compare(a.At.Line, b.At.Line))
	})
}
