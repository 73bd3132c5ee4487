package recipe

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// params are the names of the parameters that the recipe uses, sorted.
func (r *Recipe) params() []string {
	names := map[string]bool{}
	collect := func(t template) {
		for _, p := range t {
			if p.param != "" {
				names[p.param] = true
			}
		}
	}
	for _, t := range r.segments {
		collect(t)
	}
	for _, d := range r.data {
		collect(d.text)
	}
	return slices.Sorted(maps.Keys(names))
}

// Call fills the recipe: the HTTP method, the path and the body (nil for a read). Its error is a *plugins.RejectedError.
func (r *Recipe) Call(v Values) (method, path string, body map[string]any, err error) {
	parts := make([]string, len(r.segments))
	for i, t := range r.segments {
		if parts[i], err = t.fill(v); err != nil {
			return "", "", nil, err
		}
	}
	path = strings.Join(parts, "/")
	if r.method == "read" {
		return http.MethodGet, path, nil, nil
	}
	body = make(map[string]any, len(r.data))
	for key, d := range r.data {
		if d.constant != nil {
			body[key] = d.constant
			continue
		}
		if body[key], err = d.text.fill(v); err != nil {
			return "", "", nil, err
		}
	}
	return http.MethodPut, path, body, nil
}

// Mount is the first segment of the path: "database".
func (r *Recipe) Mount() string { return r.segments[0].prefix() }

// Segment is one segment of a path: all of it, or what a parameter's value comes after.
type Segment struct {
	Literal string
	Open    bool // a parameter follows
}

// Segments returns the segments of the path.
func (r *Recipe) Segments() []Segment {
	out := make([]Segment, len(r.segments))
	for i, t := range r.segments {
		out[i] = Segment{Literal: t.prefix(), Open: !t.constant()}
	}
	return out
}

// Fits reports whether a parameter's value can have made a name of this segment.
func (s Segment) Fits(name string) bool {
	value, ok := strings.CutPrefix(name, s.Literal)
	return ok && badValue(value) == ""
}

// Listings returns the folders of leases, as patterns of a Vault policy, that have to be listed to find what the recipe
// issued: one for each parameter, and that of the leases.
func (r *Recipe) Listings() []string {
	parts := strings.Split(r.Rule().Path, "/")
	var out []string
	for i, t := range r.segments {
		if !t.constant() {
			out = append(out, strings.Join(parts[:i], "/")+"/")
		}
	}
	leases := strings.Join(parts, "/")
	if !strings.HasSuffix(leases, "*") {
		leases += "/"
	}
	return append(out, leases)
}

// LeaseGlob is the narrowest pattern of Vault that covers this role's leases and those of its neighbours that begin
// with stint-: a role that was removed from the configuration still has leases to revoke.
func (r *Recipe) LeaseGlob() string {
	parts := make([]string, 0, len(r.segments))
	for _, t := range r.segments[:len(r.segments)-1] {
		if !t.constant() {
			return strings.Join(parts, "/") + "/*"
		}
		parts = append(parts, t.prefix())
	}
	return strings.Join(append(parts, Prefix), "/") + "*"
}

// Rule is what a Vault policy has to allow for one recipe.
type Rule struct {
	Path       string // with + for a parameter
	Capability string // "read" or "update"
	// Allowed are the values that each key of the data may have, each a glob of Vault; an empty list means any.
	Allowed map[string][]string
}

// Rule is what the credential's own policy has to allow, and nothing more.
func (r *Recipe) Rule() Rule {
	parts := make([]string, len(r.segments))
	for i, t := range r.segments {
		switch {
		case t.constant():
			parts[i] = t.prefix()
		case t.prefix() == "":
			parts[i] = "+"
		default:
			parts[i] = t.prefix() + "*"
		}
	}
	rule := Rule{Path: strings.Join(parts, "/"), Capability: r.method}
	if r.method == "update" {
		rule.Allowed = make(map[string][]string, len(r.data))
		for key, d := range r.data {
			rule.Allowed[key] = d.globs()
		}
	}
	return rule
}

func (d datum) globs() []string {
	switch {
	case d.constant != nil:
		if b, ok := d.constant.(bool); ok {
			return []string{strconv.FormatBool(b)}
		}
		return []string{}
	case d.text.constant():
		return []string{d.text.prefix()}
	case d.text.prefix() == "":
		return []string{}
	}
	return []string{d.text.prefix() + "*"}
}

// FieldNames are the names of the secret fields where the role states them, sorted; else nil.
func (r *Recipe) FieldNames() []string {
	if len(r.Fields) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(r.Fields))
}

// Certificate is true of a path of the pki engine: a service that checks no CRL accepts its leases until they expire.
func (r *Recipe) Certificate() bool {
	return len(r.segments) == 3 && slices.Contains([]string{"issue", "sign"}, r.segments[1].prefix())
}
