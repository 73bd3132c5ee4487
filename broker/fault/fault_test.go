package fault_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// apiReasons are the reasons of the API, by their names without prefix, in the order of their numbers.
func apiReasons() []string {
	var names []string
	values := stintv1.Reason(0).Descriptor().Values()
	for i := range values.Len() {
		if v := values.Get(i); v.Number() != 0 {
			names = append(names, strings.TrimPrefix(string(v.Name()), "REASON_"))
		}
	}
	return names
}

// domainReasons are the constants of type Reason in fault.go.
func domainReasons(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, isIdent := spec.Type.(*ast.Ident); isIdent && kind.Name == "Reason" {
			name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value) //nolint:errcheck // a panic fails the test
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		return true
	})
	return names
}

// The domain, the API and the page for people know the same reasons.
func TestReasonsAgree(t *testing.T) {
	if diff := cmp.Diff(apiReasons(), domainReasons(t)); diff != "" {
		t.Errorf("reasons of the API and of the domain (-API +domain):\n%s", diff)
	}
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| [A-Z_]+ \\| .+ \\| .+ \\|$").FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, row[1])
	}
	if diff := cmp.Diff(apiReasons(), rows); diff != "" {
		t.Errorf("docs/errors.md (-API +page):\n%s", diff)
	}
}

// The page names the status code that the comment of the API promises.
func TestPageNamesCodes(t *testing.T) {
	proto, err := os.ReadFile("../../proto/stint/v1/errors.proto")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	promised := regexp.MustCompile(`// ([A-Z_]+): .*\n(?:  //.*\n)*  REASON_([A-Z_]+) =`).FindAllStringSubmatch(string(proto), -1)
	if len(promised) != len(apiReasons()) {
		t.Fatalf("%d of %d reasons promise a code", len(promised), len(apiReasons()))
	}
	for _, p := range promised {
		if row := fmt.Sprintf("| `%s` | %s |", p[2], p[1]); !strings.Contains(string(page), row) {
			t.Errorf("docs/errors.md lacks: %s", row)
		}
	}
}

func TestError(t *testing.T) {
	cause := errors.New("hvs.private")
	err := fault.Wrap(fault.BackendUnavailable, "vault/prod is sealed", cause).With("lease", "L").With("role", "r").Retry(time.Second)
	if got := err.Error(); got != "BACKEND_UNAVAILABLE: vault/prod is sealed" {
		t.Errorf("text %q", got)
	}
	if !errors.Is(err, cause) || err.RetryAfter != time.Second || len(err.Metadata) != 2 || err.Metadata["lease"] != "L" {
		t.Errorf("%+v", err)
	}
	for name, test := range map[string]struct {
		err  error
		want fault.Reason
	}{
		"nil":     {nil, ""},
		"foreign": {cause, fault.Internal},
		"direct":  {err, fault.BackendUnavailable},
		"wrapped": {fmt.Errorf("issue: %w", err), fault.BackendUnavailable},
	} {
		if got := fault.ReasonOf(test.err); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	if got := fault.As(fmt.Errorf("x: %w", err)); got != err {
		t.Errorf("As found %v", got)
	}
	if got := fault.As(cause); got.Reason != fault.Internal || !errors.Is(got, cause) || strings.Contains(got.Error(), "hvs") {
		t.Errorf("a foreign error became %v", got)
	}
	if fault.New(fault.NotFound, "m").Cause != nil || !slices.Contains(apiReasons(), string(fault.NotFound)) {
		t.Error("New")
	}
}
