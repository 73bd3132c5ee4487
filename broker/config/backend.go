package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
)

// Backend is one backend block. Its body is for [DecodeBackend].
type Backend struct {
	Type  string // the plugin: "vault"
	Name  string // the instance: "prod"
	Body  hcl.Body
	Range hcl.Range
}

// ID returns the name by which roles choose the backend: "vault/prod".
func (b Backend) ID() string { return b.Type + "/" + b.Name }

// backend notes a backend block of a known type.
func (d *decoder) backend(backends *[]Backend, plugins []string) func(*hcl.Block) {
	return func(one *hcl.Block) {
		b := Backend{Type: one.Labels[0], Name: one.Labels[1], Body: one.Body, Range: one.DefRange}
		if !slices.Contains(plugins, b.Type) {
			d.add(one.DefRange, fmt.Sprintf("backend %q: unknown type %q; there are %s", b.ID(), b.Type, strings.Join(plugins, ", ")))
		}
		if err := CheckName(b.Name); err != nil {
			d.add(one.DefRange, fmt.Sprintf("backend %q: %v", b.ID(), err))
		}
		*backends = append(*backends, b)
	}
}

// CheckName accepts names of backends, and of what is in them, that can stand in resource names, metrics and URLs.
func CheckName(s string) error {
	ok := s != "" && len(s) <= 63 && !strings.HasPrefix(s, "-")
	for _, r := range s {
		ok = ok && (r == '-' || (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9'))
	}
	if !ok {
		return errors.New("a name has lower-case letters, digits and dashes, at most 63")
	}
	return nil
}

// Duration is a duration such as "90s" in a plugin's part of the configuration.
type Duration string

func (d Duration) check() error {
	if v, err := time.ParseDuration(string(d)); err != nil || v < 0 {
		return fmt.Errorf("duration %q: write a number with a unit, as in 90s, 10m or 1h30m", string(d))
	}
	return nil
}

// Value returns the duration; zero for "" and for what no Decode function accepted.
func (d Duration) Value() time.Duration {
	v, err := time.ParseDuration(string(d))
	if err != nil {
		return 0
	}
	return v
}

// DecodeBackend reads a backend's block into target, a pointer to a struct with gohcl tags, as strictly as the rest of
// the configuration was read. Keys of type [SecretRef] and [Duration] are checked. The error is an [*Error]; target is
// left alone then.
func DecodeBackend(b Backend, target any) error {
	return decodeBody("backend "+b.ID(), b.Body, target)
}

// DecodeBlock reads a body that a target of DecodeBackend kept (gohcl's "remain"), with the same rules. The name is
// that of the block, for faults.
func DecodeBlock(name string, body hcl.Body, target any) error {
	return decodeBody(name, body, target)
}

func decodeBody(name string, body hcl.Body, target any) error {
	rv := reflect.ValueOf(target)
	if rv.Kind() != reflect.Pointer || rv.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decode %s: target is a %T, not a pointer to a struct", name, target)
	}
	c := checker{name: name}
	c.walk(body, rv.Elem().Type())
	fresh := reflect.New(rv.Elem().Type())
	fresh.Elem().Set(rv.Elem()) // keeps the defaults that the caller filled in
	c.diagnose(gohcl.DecodeBody(body, nil, fresh.Interface()))
	if err := c.err(); err != nil {
		return err
	}
	rv.Elem().Set(fresh.Elem())
	return nil
}

// checked is a string in the configuration with a meaning of its own.
type checked interface {
	check() error
}

// checker looks at the keys of checked types before gohcl takes them as mere strings, so that a fault has their place.
type checker struct {
	faults

	name string
}

func (c *checker) walk(body hcl.Body, t reflect.Type) {
	schema, _ := gohcl.ImpliedBodySchema(reflect.New(t).Elem().Interface())
	content, _, _ := body.PartialContent(schema) // gohcl reports the same again
	for field := range t.Fields() {
		key, _, _ := strings.Cut(field.Tag.Get("hcl"), ",")
		if attr, ok := content.Attributes[key]; ok {
			c.attribute(attr, deref(field.Type))
		}
		for _, inner := range content.Blocks.OfType(key) {
			if kind := deref(field.Type); kind.Kind() == reflect.Struct {
				c.walk(inner.Body, kind)
			}
		}
	}
}

// attribute checks one key. What is no string is gohcl's to report.
func (c *checker) attribute(attr *hcl.Attribute, t reflect.Type) {
	if !t.Implements(reflect.TypeFor[checked]()) {
		return
	}
	value, diags := attr.Expr.Value(nil)
	if diags.HasErrors() {
		return
	}
	s, err := stringOf(value)
	if err == nil {
		err = checkString(t, s)
	}
	if err != nil {
		c.add(attr.Range, fmt.Sprintf("%s: %s: %v", c.name, attr.Name, err))
	}
}

// checkString checks s as a value of the checked type t.
func checkString(t reflect.Type, s string) error {
	v := reflect.New(t).Elem()
	v.SetString(s)
	if one, ok := reflect.TypeAssert[checked](v); ok {
		return one.check()
	}
	return nil
}

// deref returns what a pointer or slice holds.
func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t
}
