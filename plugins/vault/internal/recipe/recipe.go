// Package recipe reads the vault section of a role: which path, with which data, under which policy. It does no I/O.
package recipe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

// EngineEnd says what ends a credential where it is used, if Vault never does.
type EngineEnd string

// The engine's own ends. An empty one is not stated.
const (
	WithLease EngineEnd = "lease"   // it moves with the lease, as PostgreSQL's VALID UNTIL does
	AtMaximum EngineEnd = "maximum" // it stays where it was when Vault made it, as MySQL's event does
	NoEnd     EngineEnd = "none"    // there is none
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
	EngineEnd EngineEnd         `json:"engine_end"`
}

// Recipe is a role's vault section, checked.
type Recipe struct {
	Kind   Kind
	Policy string
	// Fields maps the name of a secret field to the key in Vault's answer; nil means all, by Vault's names.
	Fields map[string]string
	// PublicRef is the key in Vault's answer that names the credential publicly; empty: chosen by what is there.
	PublicRef string
	// EngineEnd is what the operator says of the engine.
	EngineEnd EngineEnd

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
	r := Recipe{Kind: s.Kind, Policy: s.Policy, Fields: s.Fields, PublicRef: s.PublicRef, EngineEnd: s.EngineEnd, method: s.Method}
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
		return fmt.Errorf("vault: %w (known keys: data, engine_end, fields, kind, method, path, policy, public_ref)",
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
	if err := r.checkEngineEnd(); err != nil {
		return err
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

func (r *Recipe) checkEngineEnd() error {
	switch {
	case !slices.Contains([]EngineEnd{"", WithLease, AtMaximum, NoEnd}, r.EngineEnd):
		return fmt.Errorf("vault.engine_end is %q; known are lease, maximum, none", r.EngineEnd)
	case r.EngineEnd != "" && r.Kind == Static:
		return errors.New("vault.engine_end is about leases, and vault.kind is static")
	}
	return nil
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
	case strings.ContainsFunc(literal, refused):
		return errors.New("holds a space, a control character, or one of " + refusedRunes)
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
