// Package admin says which identities administer the broker, and as what.
package admin

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/stint-dev/stint/attestor"
)

// Rule gives a role to the SPIFFE IDs that a pattern matches.
type Rule struct {
	Pattern attestor.Pattern
	Role    attestor.AdminRole
}

// Roles maps identities to administration roles. It is immutable. Where several rules match, the most specific
// pattern alone decides (see [attestor.Pattern.Compare]), so that ops/oncall can be less than ops/*.
type Roles struct {
	rules []Rule // the most specific first
}

// New returns the roles of the rules. All faults are named at once: unknown roles, patterns given twice.
func New(rules ...Rule) (*Roles, error) {
	var errs []error
	seen := make(map[string]bool, len(rules))
	for _, r := range rules {
		text := r.Pattern.String()
		if !slices.Contains(attestor.AdminRoles(), r.Role) {
			errs = append(errs, fmt.Errorf("admins %q: unknown role %q; there are %v", text, r.Role, attestor.AdminRoles()))
		}
		if text == "" || seen[text] {
			errs = append(errs, fmt.Errorf("admins %q: pattern is empty or given twice", text))
		}
		seen[text] = true
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	sorted := slices.Clone(rules)
	slices.SortStableFunc(sorted, func(a, b Rule) int {
		return cmp.Or(a.Pattern.Compare(b.Pattern), cmp.Compare(a.Pattern.String(), b.Pattern.String()))
	})
	return &Roles{rules: sorted}, nil
}

// Of returns the role of an identity; false if it has none. A local peer is an admin: the socket's mode says who that
// can be. A JWT-SVID has no role whatever its ID.
func (r *Roles) Of(id attestor.Identity) (attestor.AdminRole, bool) {
	switch id.Method {
	case attestor.MethodLocal:
		return attestor.RoleAdmin, true
	case attestor.MethodX509:
		for _, rule := range r.rules {
			if rule.Pattern.Match(id.ID) {
				return rule.Role, true
			}
		}
	case attestor.MethodJWT:
	}
	return "", false
}

// Overlapping returns the patterns of administrators that share an ID with p, a profile's pattern. An ID must not be
// both, so any is a start-up error.
func (r *Roles) Overlapping(p attestor.Pattern) []attestor.Pattern {
	var shared []attestor.Pattern
	for _, rule := range r.rules {
		if rule.Pattern.Overlaps(p) {
			shared = append(shared, rule.Pattern)
		}
	}
	return shared
}
