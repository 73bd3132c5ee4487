package policy

import (
	"iter"
	"maps"
	"slices"

	"github.com/cedar-policy/cedar-go"
	cedarast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// parametersAttr is the attribute of the context that a declaration may leave open.
const parametersAttr = "parameters"

// statement is one Cedar statement, ready to be evaluated.
type statement struct {
	id     cedar.PolicyID
	policy *cedar.Policy
	// open is the statement as it counts while parameters are still to be filled; nil where it does not count.
	open  *cedar.Policy
	reads facts
}

func newStatement(id cedar.PolicyID, p *cedar.Policy) statement {
	tree := (*ast.Policy)(p.AST())
	reads := newFacts()
	for _, c := range tree.Conditions {
		reads.add(c.Body)
	}
	return statement{id: id, policy: p, open: opened(p), reads: reads}
}

// opened returns what a statement means while parameters are open: a permit's conditions that read them are taken as
// met, and a forbid that reads them is left out. It is used for declarations only, which hand out nothing: issuing
// evaluates the statement itself, with every value in place.
func opened(p *cedar.Policy) *cedar.Policy {
	tree := *(*ast.Policy)(p.AST())
	kept := make([]ast.ConditionType, 0, len(tree.Conditions))
	for _, c := range tree.Conditions {
		reads := newFacts()
		reads.add(c.Body)
		if !reads.whole && !reads.context[parametersAttr] {
			kept = append(kept, c)
		}
	}
	switch {
	case len(kept) == len(tree.Conditions):
		return p
	case p.Effect() == cedar.Forbid:
		return nil
	}
	tree.Conditions = kept
	return cedar.NewPolicyFromAST((*cedarast.Policy)(&tree))
}

// facts are what conditions read.
type facts struct {
	attrs   map[string]bool // every attribute that is named anywhere, of whatever
	context map[string]bool // those of the context
	whole   bool            // the context as a whole
}

func newFacts() facts { return facts{attrs: map[string]bool{}, context: map[string]bool{}} }

// add collects what an expression reads. Cedar names every attribute literally, so what is not named is not read.
func (f *facts) add(body ast.IsNode) {
	ast.Inspect(ast.NewNode(body), func(n ast.IsNode) bool {
		var op ast.StrOpNode
		switch n := n.(type) {
		case ast.NodeTypeAccess:
			op = n.StrOpNode
		case ast.NodeTypeHas:
			op = n.StrOpNode
		case ast.NodeTypeVariable:
			f.whole = f.whole || n.Name == "context"
			return true
		default:
			return true
		}
		f.attrs[string(op.Value)] = true
		if v, ok := op.Arg.(ast.NodeTypeVariable); ok && v.Name == "context" {
			f.context[string(op.Value)] = true
			return false
		}
		return true
	})
}

// conditions returns the attributes of the context that are read, sorted.
func (f *facts) conditions() []string { return slices.Sorted(maps.Keys(f.context)) }

// merge adds what another statement reads.
func (f *facts) merge(g facts) {
	maps.Copy(f.attrs, g.attrs)
	maps.Copy(f.context, g.context)
	f.whole = f.whole || g.whole
}

// bucket says to which requests a statement can apply by its scope. Zero fields mean any.
type bucket struct {
	profile  cedar.EntityUID
	resource cedar.EntityUID // a role or a backend
}

// slices hold statements by bucket, so that a decision evaluates only those that can apply.
type sliced map[bucket][]statement

func (s sliced) add(st statement) {
	b := scopeOf((*ast.Policy)(st.policy.AST()))
	s[b] = append(s[b], st)
}

// scopeOf returns a statement's bucket. A scope that it does not know falls into the bucket of any.
func scopeOf(p *ast.Policy) bucket {
	var b bucket
	switch sc := p.Principal.(type) {
	case ast.ScopeTypeIn:
		b.profile = only(sc.Entity, typeProfile)
	case ast.ScopeTypeIsIn:
		b.profile = only(sc.Entity, typeProfile)
	}
	switch sc := p.Resource.(type) {
	case ast.ScopeTypeEq:
		b.resource = only(sc.Entity, typeRole)
	case ast.ScopeTypeIn:
		b.resource = only(sc.Entity, typeRole, typeBackend)
	case ast.ScopeTypeIsIn:
		b.resource = only(sc.Entity, typeRole, typeBackend)
	}
	return b
}

// only returns the entity if it is of one of the types, else the zero entity.
func only(uid cedar.EntityUID, types ...cedar.EntityType) cedar.EntityUID {
	if slices.Contains(types, uid.Type) {
		return uid
	}
	return cedar.EntityUID{}
}

// view is the slice of one request. It implements cedar.PolicyIterator.
type view struct {
	lists [6][]statement
	open  bool
}

// view returns the statements that can apply to a role of a backend for an agent of a profile. open leaves out what
// depends on parameters that are still to be filled.
func (s sliced) view(profile, role, backend cedar.EntityUID) view {
	var any cedar.EntityUID
	return view{lists: [6][]statement{
		s[bucket{profile, role}], s[bucket{profile, backend}], s[bucket{profile, any}],
		s[bucket{any, role}], s[bucket{any, backend}], s[bucket{any, any}],
	}}
}

// All yields the statements.
func (v view) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, list := range v.lists {
			for _, st := range list {
				p := st.policy
				if v.open {
					p = st.open
				}
				if p != nil && !yield(st.id, p) {
					return
				}
			}
		}
	}
}
