// Package recipe reads the vault section of a role: which path, with which data, under which policy. It does no I/O.
package recipe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/stint-dev/stint/plugins"
)

// Prefix begins the names of Vault roles and policies that are Stint's, so that Vault can hold Stint to them.
const Prefix = "stint-"

// Kind says how Vault can end what a role issues.
type Kind string

// The kinds of credential.
const (
	Lease  Kind = "lease"  // a lease, revocable
	Static Kind = "static" // a stored value without a lease (KV): it cannot be ended
)

// section is the JSON of a role's "vault" key.
type section struct {
	Path      string            `json:"path"`
	Method    string            `json:"method"`
	Data      map[string]any    `json:"data"`
	Policy    string            `json:"policy"`
	Fields    map[string]string `json:"fields"`
	Kind      Kind              `json:"kind"`
	PublicRef string            `json:"public_ref"`
}

// Recipe is a role's vault section, checked.
type Recipe struct {
	Kind   Kind
	Policy string
	// Fields maps the name of a secret field to the key in Vault's answer; nil means all, by Vault's names.
	Fields map[string]string
	// PublicRef is the key in Vault's answer that names the credential publicly; empty: chosen by what is there.
	PublicRef string

	method   string
	segments []template
	data     map[string]datum
}

// datum is one value of the request's data: a template, or a constant that is no string.
type datum struct {
	text     template
	constant any
}

// Parse checks a role's section. Its error wraps plugins.ErrInvalidRole and names the key to change.
func Parse(role plugins.Role) (Recipe, error) {
	r, err := parse(role)
	if err != nil {
		return Recipe{}, fmt.Errorf("%w: %s: %w", plugins.ErrInvalidRole, role.Name, err)
	}
	return r, nil
}

func parse(role plugins.Role) (Recipe, error) {
	var s section
	if err := decodeStrict(role.Config, &s); err != nil {
		return Recipe{}, err
	}
	r := Recipe{Kind: s.Kind, Policy: s.Policy, Fields: s.Fields, PublicRef: s.PublicRef, method: s.Method}
	if err := r.defaults(s, role); err != nil {
		return Recipe{}, err
	}
	if err := r.parsePath(s.Path); err != nil {
		return Recipe{}, err
	}
	if err := r.parseData(s.Data); err != nil {
		return Recipe{}, err
	}
	for to, from := range s.Fields {
		if to == "" || from == "" {
			return Recipe{}, errors.New("vault.fields: a name is empty")
		}
	}
	for _, name := range r.params() {
		if !slices.Contains(role.Parameters, name) {
			return Recipe{}, fmt.Errorf("vault uses {{ .params.%s }}, but the role declares no parameter %s", name, name)
		}
	}
	return r, nil
}

// decodeStrict refuses unknown keys, two documents, and what is missing.
func decodeStrict(config []byte, s *section) error {
	if len(bytes.TrimSpace(config)) == 0 {
		return errors.New("vault: the section is missing")
	}
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.DisallowUnknownFields()
	dec.UseNumber()
	if err := dec.Decode(s); err != nil {
		return fmt.Errorf("vault: %w (known keys: data, fields, kind, method, path, policy, public_ref)",
			errors.New(strings.TrimPrefix(err.Error(), "json: ")))
	}
	if dec.More() {
		return errors.New("vault: more than one object")
	}
	return nil
}

func (r *Recipe) defaults(s section, role plugins.Role) error {
	switch r.Kind {
	case "":
		r.Kind = Lease
	case Lease:
	case Static:
		if !role.AcceptPermanent {
			return errors.New("vault.kind is static: such a value cannot be ended; set accept_permanent: true to issue it anyway")
		}
	default:
		return fmt.Errorf("vault.kind is %q; known are lease, static", r.Kind)
	}
	switch {
	case r.method == "" && len(s.Data) > 0:
		r.method = "update"
	case r.method == "":
		r.method = "read"
	case r.method == "read" && len(s.Data) > 0:
		return errors.New("vault.method is read, which sends no vault.data; use update")
	case r.method != "read" && r.method != "update":
		return fmt.Errorf("vault.method is %q; known are read, update", r.method)
	}
	return checkPolicyName(r.Policy)
}

func checkPolicyName(name string) error {
	if !strings.HasPrefix(name, Prefix) || len(name) == len(Prefix) {
		return fmt.Errorf("vault.policy is %q; it names the credential's own Vault policy and begins with %s", name, Prefix)
	}
	for _, c := range name {
		// Vault keeps policy names in lower case.
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return fmt.Errorf("vault.policy holds %q; allowed are a-z, 0-9, '-', '_', '.'", c)
		}
	}
	return nil
}

// parsePath takes the path apart. A parameter fills one whole segment, or the rest of the last one after a literal
// beginning; the mount is literal. Vault scopes leases by path, so the last segment of a leased path begins with stint-.
func (r *Recipe) parsePath(path string) error {
	parts := strings.Split(path, "/")
	if len(parts) < 2 {
		return fmt.Errorf("vault.path is %q; it has a mount and a path, such as database/creds/stint-orders-ro", path)
	}
	for i, part := range parts {
		t, err := parseTemplate(part)
		if err != nil {
			return fmt.Errorf("vault.path: %w", err)
		}
		last := i == len(parts)-1
		if err := checkSegment(t, i == 0, last); err != nil {
			return fmt.Errorf("vault.path, segment %q: %w", part, err)
		}
		if last && r.Kind == Lease && !strings.HasPrefix(t.prefix(), Prefix) {
			return fmt.Errorf("vault.path ends in %q; the Vault roles that Stint may use begin with %s", part, Prefix)
		}
		r.segments = append(r.segments, t)
	}
	if first := r.segments[0].prefix(); slices.Contains([]string{"sys", "auth", "identity", "cubbyhole"}, first) {
		return fmt.Errorf("vault.path begins with %s, which issues no credentials", first)
	}
	if r.Kind == Lease && slices.ContainsFunc(r.segments[1:], func(t template) bool { return t.prefix() == "sts" }) {
		return errors.New("vault.path is of the STS kind: Vault gives a lease for it that it cannot revoke")
	}
	return nil
}

func checkSegment(t template, mount, last bool) error { //revive:disable-line:flag-parameter // two facts about one position
	if len(t) == 0 {
		return errors.New("is empty")
	}
	literal := t.prefix()
	switch {
	case literal == "." || strings.Contains(literal, ".."):
		return errors.New(`is "." or holds ".."`)
	case strings.ContainsAny(literal, `*+%?#\ `):
		return errors.New("holds one of * + % ? # \\ or a space")
	case slices.ContainsFunc(t, func(p piece) bool { return p.ttl }):
		return errors.New("a path takes no TTL")
	case t.constant():
		return nil
	case mount:
		return errors.New("the mount takes no parameter")
	case len(t) == 1, len(t) == 2 && literal != "" && last:
		return nil
	}
	return errors.New("a parameter fills a whole segment, or the rest of the last one")
}

func (r *Recipe) parseData(data map[string]any) error {
	r.data = make(map[string]datum, len(data))
	for key, value := range data {
		switch v := value.(type) {
		case string:
			t, err := parseTemplate(v)
			if err != nil {
				return fmt.Errorf("vault.data.%s: %w", key, err)
			}
			r.data[key] = datum{text: t}
		case bool, json.Number:
			r.data[key] = datum{constant: v}
		default:
			return fmt.Errorf("vault.data.%s: only strings, numbers and booleans", key)
		}
	}
	return nil
}

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

// Path returns the path where it takes no parameter.
func (r *Recipe) Path() (string, bool) {
	for _, t := range r.segments {
		if !t.constant() {
			return "", false
		}
	}
	_, path, _, err := (&Recipe{segments: r.segments, method: "read"}).Call(Values{})
	return path, err == nil
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

// Policy text for one recipe, for a Vault policy.
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
