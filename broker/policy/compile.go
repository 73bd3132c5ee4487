package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	cedarast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/broker/resource"
)

// Compile makes an Engine. Either there are no problems, or no engine: a policy that does not parse, does not pass the
// schema, or names a role or profile that there is not.
func Compile(set resource.Set) (*Engine, []resource.Problem) { return compile(set, Schema(set)) }

func compile(set resource.Set, schema string) (*Engine, []resource.Problem) {
	validator, err := newValidator(schema)
	if err != nil {
		return nil, []resource.Problem{{Message: "internal error: " + err.Error()}}
	}
	c := &compiler{set: set, validator: validator, entities: entities(set)}
	for _, p := range set.Profiles() {
		if p.Permit == resource.PermitCeiling {
			c.keep(newStatement(cedar.PolicyID("profile/"+p.Name), ceiling(p)))
		}
	}
	for _, p := range set.Policies() {
		c.compile(p)
	}
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	e := &Engine{
		set: set, hash: set.Hash(), entities: c.entities, profiles: newProfiles(set.Profiles()),
		statements: sliced{}, byID: map[string]statement{}, reads: newFacts(),
		parents: map[string]cedar.EntityUIDSet{},
	}
	for _, st := range c.statements {
		e.statements.add(st)
		e.byID[string(st.id)] = st
		e.reads.merge(st.reads)
	}
	e.readsAgent = slices.ContainsFunc(agentAttrs(), func(name string) bool { return e.reads.attrs[name] })
	for _, p := range set.Profiles() {
		e.parents[p.Name] = cedar.NewEntityUIDSet(profileUID(p.Name))
	}
	e.warnings = slices.Concat(c.warnings, unreachable(set, e.statements, c.entities))
	return e, nil
}

// ceiling is the policy that grants what a profile lists.
func ceiling(p resource.Profile) *cedar.Policy {
	roles := make([]cedar.Value, 0, len(p.Roles))
	for _, r := range p.Roles {
		roles = append(roles, roleUID(r.Name))
	}
	return cedar.NewPolicyFromAST(cedarast.Permit().
		PrincipalIn(profileUID(p.Name)).ActionEq(actionUID()).
		When(cedarast.Value(cedar.NewSet(roles...)).Contains(cedarast.Resource())))
}

// compiler turns policies into statements.
type compiler struct {
	set        resource.Set
	validator  *validate.Validator
	entities   cedar.EntityMap
	statements []statement
	problems   []resource.Problem
	warnings   []Warning
}

func (c *compiler) keep(st statement) { c.statements = append(c.statements, st) }

func (c *compiler) problem(at resource.Position, format string, args ...any) {
	c.problems = append(c.problems, resource.Problem{At: at, Message: fmt.Sprintf(format, args...)})
}

func (c *compiler) compile(p resource.Policy) {
	list, err := cedar.NewPolicyListFromBytes(p.Name, []byte(p.Cedar))
	if err != nil {
		line, msg := parseError(err)
		c.problem(below(p.At, line), "policy %s: %s", p.Name, msg)
		return
	}
	if len(list) == 0 {
		c.problem(p.At, "policy %s holds no statement", p.Name)
	}
	for i, statement := range list {
		id := "policy/" + p.Name
		if len(list) > 1 {
			id += "/" + strconv.Itoa(i+1)
		}
		at := below(p.At, statement.Position().Line)
		tree := (*ast.Policy)(statement.AST())
		if err := c.validator.Policy("", tree); err != nil {
			c.problem(at, "%s: %s", id, oneLine(err))
			continue
		}
		c.checkNames(at, id, tree)
		c.keep(newStatement(cedar.PolicyID(id), statement))
	}
}

// checkNames refuses a statement that names what there is not: a forbid of a misspelt role would forbid nothing.
func (c *compiler) checkNames(at resource.Position, id string, tree *ast.Policy) {
	for _, uid := range named(tree) {
		_, known := c.entities[uid]
		switch {
		case known:
		case uid.Type == typeAgent:
			if _, err := spiffeid.FromString(string(uid.ID)); err != nil {
				c.problem(at, "%s: %s is not a SPIFFE ID: %s", id, uid, err)
			}
		case uid.Type == typeBackend:
			c.warnings = append(c.warnings, Warning{
				Problem: resource.Problem{At: at, Message: fmt.Sprintf("%s: no role uses backend %s", id, uid.ID)}, Kind: UnusedBackend,
			})
		case uid.Type == typeRole, uid.Type == typeProfile:
			c.problem(at, "%s: there is no %s %q", id, strings.ToLower(strings.TrimPrefix(string(uid.Type), "Stint::")), uid.ID)
		}
	}
}

// named returns the entities that a statement names.
func named(p *ast.Policy) []cedar.EntityUID {
	var out []cedar.EntityUID
	for _, scope := range []ast.IsScopeNode{p.Principal, p.Resource} {
		switch sc := scope.(type) {
		case ast.ScopeTypeEq:
			out = append(out, sc.Entity)
		case ast.ScopeTypeIn:
			out = append(out, sc.Entity)
		case ast.ScopeTypeIsIn:
			out = append(out, sc.Entity)
		}
	}
	for _, c := range p.Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			if v, ok := n.(ast.NodeValue); ok {
				if uid, ok := v.Value.(cedar.EntityUID); ok {
					out = append(out, uid)
				}
			}
			return true
		})
	}
	return out
}

var parsePosition = regexp.MustCompile(`<input>:(\d+):\d+ ?`)

// parseError returns the line and the text of an error of Cedar's parser.
func parseError(err error) (int, string) {
	line := 1
	if m := parsePosition.FindStringSubmatch(err.Error()); m != nil {
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			line = n
		}
	}
	return line, parsePosition.ReplaceAllString(oneLine(err), "")
}

// oneLine returns an error's text, its parts separated by semicolons.
func oneLine(err error) string {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return err.Error()
	}
	parts := make([]string, 0, 1)
	for _, e := range joined.Unwrap() {
		parts = append(parts, e.Error())
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), "; ")
}

// below returns the position of a line of the text that begins at a position.
func below(at resource.Position, line int) resource.Position {
	at.Line += max(line, 1) - 1
	return at
}
