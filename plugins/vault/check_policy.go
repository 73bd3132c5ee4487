package vault

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/ryanuber/go-glob"
)

// errPolicy stands for what Vault's own parser would refuse too, or Stint does not know.
var errPolicy = errors.New("the policy cannot be read")

// aclRule is one path of a Vault policy.
type aclRule struct {
	path         string
	capabilities []string
	// allowed are the values of each parameter, as globs; nil where parameters are not limited, an empty list: any.
	allowed map[string][]string
}

// aclBody is what stands in path "…" { … }, as far as it gives rights.
type aclBody struct {
	Policy       string           `hcl:"policy"` // of old: read, write, sudo, deny
	Capabilities []string         `hcl:"capabilities"`
	Allowed      map[string][]any `hcl:"allowed_parameters"`
}

// parseACL reads a policy with the parser that Vault has, HCL 1 or JSON.
func parseACL(text string) ([]aclRule, error) {
	root, err := hcl.Parse(text)
	if err != nil {
		return nil, errPolicy
	}
	list, ok := root.Node.(*ast.ObjectList)
	if !ok {
		return nil, errPolicy
	}
	var rules []aclRule
	for _, item := range list.Filter("path").Items {
		var body aclBody
		if len(item.Keys) != 1 || hcl.DecodeObject(&body, item.Val) != nil {
			return nil, errPolicy
		}
		path, ok := item.Keys[0].Token.Value().(string)
		if !ok {
			return nil, errPolicy
		}
		rules = append(rules, body.rule(path))
	}
	return rules, nil
}

func (b aclBody) rule(path string) aclRule {
	r := aclRule{path: strings.TrimPrefix(path, "/"), capabilities: b.Capabilities}
	switch b.Policy {
	case "read":
		r.capabilities = append(r.capabilities, "read", "list")
	case "write":
		r.capabilities = append(r.capabilities, "create", "read", "update", "delete", "list")
	case "sudo":
		r.capabilities = append(r.capabilities, "create", "read", "update", "delete", "list", "sudo")
	case "deny":
		r.capabilities = []string{"deny"}
	}
	if len(b.Allowed) > 0 {
		r.allowed = map[string][]string{}
		for key, values := range b.Allowed {
			r.allowed[strings.ToLower(key)] = texts(values)
		}
	}
	return r
}

func texts(values []any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = fmt.Sprint(v)
	}
	return out
}

// surplus returns the rules of a policy that allow what no rule of the wanted policy allows.
func surplus(have, want string) ([]aclRule, error) {
	wanted, err := parseACL(want)
	if err != nil {
		return nil, err
	}
	rules, err := parseACL(have)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rules, func(r aclRule) bool {
		return slices.Contains(r.capabilities, "deny") || slices.ContainsFunc(wanted, func(w aclRule) bool { return w.includes(r) })
	}), nil
}

// includes reports whether r allows nothing that w does not. For Vault, create and update are one for paths that do not
// know whether something exists.
func (w aclRule) includes(r aclRule) bool {
	if !covers(w.path, r.path) {
		return false
	}
	for _, right := range r.capabilities {
		if !slices.Contains(w.capabilities, right) && (right != "create" || !slices.Contains(w.capabilities, "update")) {
			return false
		}
	}
	if w.allowed == nil {
		return true
	}
	for key, values := range r.allowed {
		if limits, known := w.allowed[key]; !known || !within(limits, values) {
			return false
		}
	}
	return r.allowed != nil
}

// within reports whether each value is within one of the limits. No limits mean any value, and so do no values.
func within(limits, values []string) bool {
	if len(limits) == 0 {
		return true
	}
	return len(values) > 0 && !slices.ContainsFunc(values, func(value string) bool {
		return !slices.ContainsFunc(limits, func(limit string) bool { return glob.Glob(limit, value) })
	})
}

// covers reports whether Vault's path pattern, with + for one segment and a * at the end, matches all that path does.
func covers(pattern, path string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	want, got := strings.Split(prefix, "/"), strings.Split(path, "/")
	if len(got) < len(want) || (!open && (len(got) != len(want) || strings.HasSuffix(path, "*") && pattern != path)) {
		return false
	}
	for i, segment := range want {
		switch {
		case segment == "+":
		case open && i == len(want)-1:
			if !strings.HasPrefix(got[i], segment) {
				return false
			}
		case segment != got[i]:
			return false
		}
	}
	return true
}

func ruleTexts(rules []aclRule) string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = strings.Join(r.capabilities, "+") + " " + r.path
		if r.allowed == nil {
			continue
		}
		out[i] += " (parameters wider)"
	}
	return strings.Join(out, ", ")
}

// grants reports whether a policy lets a token call a path with these parameters. Of the rules that match, Vault takes
// the one whose pattern is longest before its first wildcard.
func grants(rules []aclRule, path, capability string, params []string) bool {
	best, length := aclRule{}, -1
	for _, r := range rules {
		literal := len(strings.TrimRight(r.path, "*"))
		if plus := strings.Index(r.path, "+"); plus >= 0 {
			literal = plus
		}
		if covers(r.path, path) && literal > length {
			best, length = r, literal
		}
	}
	has := slices.Contains(best.capabilities, capability) && !slices.Contains(best.capabilities, "deny")
	if _, all := best.allowed["*"]; best.allowed == nil || all {
		return has
	}
	return has && !slices.ContainsFunc(params, func(p string) bool { _, ok := best.allowed[strings.ToLower(p)]; return !ok })
}
