package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/resource"
)

// paramCheck is a role's parameters and what a caller gave for them.
type paramCheck struct {
	role   resource.Role
	narrow resource.ProfileRole
	fixed  map[string]string // by the declaration
	given  map[string]string
	field  string // "parameters", "roles[1].parameters"
	// complete says that every required parameter must have a value now.
	complete bool
}

// check returns the values of all parameters, and refuses what is unknown, missing, changed or does not match. Values
// that were fixed are checked again: the role may have changed since.
func (c paramCheck) check(r *refusals) map[string]string {
	out := maps.Clone(c.fixed)
	if out == nil {
		out = map[string]string{}
	}
	for _, name := range slices.Sorted(maps.Keys(c.given)) {
		if fixed, ok := c.fixed[name]; ok && fixed != c.given[name] {
			c.refuse(r, name, "was fixed by the declaration")
		}
		out[name] = c.given[name]
	}
	for _, name := range slices.Sorted(maps.Keys(out)) {
		c.checkValue(r, name, out[name])
	}
	for _, p := range c.role.Parameters {
		if _, ok := out[p.Name]; c.complete && p.Required && !ok {
			c.refuse(r, p.Name, "is required, and must match "+p.Pattern.String())
		}
	}
	return out
}

func (c paramCheck) checkValue(r *refusals, name, value string) {
	p, ok := c.role.Parameter(name)
	if !ok {
		c.refuse(r, name, fmt.Sprintf("is not a parameter of role %s%s", c.role.Name, c.known()))
		return
	}
	if err := p.CheckValue(value); err != nil {
		c.refuse(r, name, err.Error())
		return
	}
	if narrow, ok := c.narrow.Parameters[name]; ok && !narrow.Match(value) {
		c.refuse(r, name, fmt.Sprintf("must match %s, says the profile", narrow))
	}
}

func (c paramCheck) refuse(r *refusals, name, problem string) {
	r.add(refusal{reason: fault.ParameterInvalid, field: c.field + "." + shown(name), problem: problem})
}

// known lists the parameters that there are.
func (c paramCheck) known() string {
	if len(c.role.Parameters) == 0 {
		return ", which has none"
	}
	names := make([]string, 0, len(c.role.Parameters))
	for _, p := range c.role.Parameters {
		names = append(names, p.Name)
	}
	return "; known are " + strings.Join(names, ", ")
}
