package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// block says what a block of the configuration may hold.
type block struct {
	fields map[string]field
	blocks map[string]section
}

// field takes the value of one key.
type field struct {
	set      func(cty.Value) error
	required bool
}

// section takes the blocks of one type.
type section struct {
	labels []string
	// many allows more than one; required wants at least one.
	many, required bool
	decode         func(*hcl.Block)
}

// decoder reads blocks and remembers where each key stood.
type decoder struct {
	faults

	at map[string]hcl.Range
}

// read reads a body into what b names. The name of the block, "" for the file, begins the keys of at.
func (d *decoder) read(name string, body hcl.Body, b block) {
	content, diags := body.Content(b.schema())
	d.diagnose(diags)
	for _, key := range slices.Sorted(maps.Keys(content.Attributes)) {
		attr := content.Attributes[key]
		d.at[join(name, key)] = attr.Range
		value, diags := attr.Expr.Value(nil)
		d.diagnose(diags)
		if diags.HasErrors() {
			continue
		}
		if err := b.fields[key].apply(value); err != nil {
			d.add(attr.Range, join(name, key)+": "+err.Error())
		}
	}
	d.sections(name, content, b.blocks)
}

// sections reads the blocks of a body.
func (d *decoder) sections(name string, content *hcl.BodyContent, sections map[string]section) {
	for _, kind := range slices.Sorted(maps.Keys(sections)) {
		s := sections[kind]
		found := content.Blocks.OfType(kind)
		if len(found) == 0 && s.required {
			d.add(content.MissingItemRange, fmt.Sprintf("the block %q is missing; not everything in it has a default", join(name, kind)))
		}
		for i, one := range found {
			key := join(name, strings.Join(append([]string{kind}, one.Labels...), "."))
			if first, twice := d.at[key]; twice || (i > 0 && !s.many) {
				d.add(one.DefRange, fmt.Sprintf("%s stands here a second time; the first is in line %d", key, first.Start.Line))
				continue
			}
			d.at[key] = one.DefRange
			s.decode(one)
		}
	}
}

// where returns the place of a key, else that of its block, else the zero range.
func (d *decoder) where(keys ...string) hcl.Range {
	for _, key := range keys {
		if at, ok := d.at[key]; ok {
			return at
		}
	}
	return d.at[""]
}

// schema returns what HCL has to know of the block.
func (b block) schema() *hcl.BodySchema {
	schema := new(hcl.BodySchema)
	for _, name := range slices.Sorted(maps.Keys(b.fields)) {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: name, Required: b.fields[name].required})
	}
	for _, kind := range slices.Sorted(maps.Keys(b.blocks)) {
		schema.Blocks = append(schema.Blocks, hcl.BlockHeaderSchema{Type: kind, LabelNames: b.blocks[kind].labels})
	}
	return schema
}

// apply takes a value. Null is no way to leave a key out.
func (f field) apply(value cty.Value) error {
	if value.IsNull() {
		return errors.New("null; leave the key out instead")
	}
	return f.set(value)
}

func join(name, key string) string {
	if name == "" {
		return key
	}
	return name + "." + key
}
