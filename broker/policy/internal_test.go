package policy

import (
	"errors"
	"testing"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/stint-dev/stint/broker/resource"
)

func TestABrokenSchemaCompilesNothing(t *testing.T) {
	for _, text := range []string{"namespace {", "entity A in [B];"} {
		if e, problems := compile(resource.Set{}, text); e != nil || len(problems) != 1 {
			t.Errorf("%q: engine %v, problems %v", text, e, problems)
		}
	}
}

func TestAnErrorOfAnotherTypeIsNotShown(t *testing.T) {
	if got := publicText(errors.New("secret")); got != "the SVID is not valid now" {
		t.Errorf("got %q", got)
	}
}

func TestAViewCanBeLeftEarly(t *testing.T) {
	st := newStatement("p", ceiling(resource.Profile{Name: "p"}))
	statements := sliced{}
	statements.add(st)
	statements.add(st)
	n := 0
	for range statements.view(profileUID("p"), roleUID("r"), backendUID("b")).All() {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d statements after one break", n)
	}
}

// TestCeilingsPassTheSchema holds the generated policies to what written ones must pass.
func TestCeilingsPassTheSchema(t *testing.T) {
	v, err := newValidator(Schema(resource.Set{}))
	if err != nil {
		t.Fatal(err)
	}
	p := resource.Profile{Name: "p", Roles: []resource.ProfileRole{{Name: "a"}, {Name: "b"}}}
	var parsed cedar.Policy
	if err := parsed.UnmarshalCedar(ceiling(p).MarshalCedar()); err != nil {
		t.Fatal(err)
	}
	if err := v.Policy("", (*ast.Policy)(parsed.AST())); err != nil {
		t.Error(err)
	}
}
