package server

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// reasons are the constants of package fault, read from its source so that none can be left out.
func reasons(t *testing.T) map[fault.Reason]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../fault/fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[fault.Reason]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || fmt.Sprint(spec.Type) != "Reason" {
			return true
		}
		literal, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			t.Fatalf("constant %s is no literal", spec.Names[0])
		}
		value, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		found[fault.Reason(value)] = true
		return true
	})
	if len(found) < 30 {
		t.Fatalf("found only %d reasons", len(found))
	}
	return found
}

// documented are the codes that errors.proto states above each reason.
func documented(t *testing.T) map[fault.Reason]string {
	t.Helper()
	text, err := os.ReadFile("../../proto/stint/v1/errors.proto")
	if err != nil {
		t.Fatal(err)
	}
	found := map[fault.Reason]string{}
	for _, m := range regexp.MustCompile(`// ([A-Z_]+): .*\n\s*REASON_([A-Z_]+) = \d+;`).FindAllStringSubmatch(string(text), -1) {
		found[fault.Reason(m[2])] = m[1]
	}
	return found
}

// Domain, API and table know the same reasons, and the table says what the API documents.
func TestEveryReasonHasItsCode(t *testing.T) {
	t.Parallel()
	domain, documentation := reasons(t), documented(t)
	for number, name := range stintv1.Reason_name {
		reason := fault.Reason(strings.TrimPrefix(name, "REASON_"))
		if number == 0 {
			continue
		}
		if !domain[reason] {
			t.Errorf("the API has %s, the domain does not", reason)
		}
		var want codes.Code
		if err := want.UnmarshalJSON([]byte(strconv.Quote(documentation[reason]))); err != nil {
			t.Errorf("errors.proto does not say which code %s has", reason)
		}
		if got := codeOf(reason); got != want || got == codes.Unknown {
			t.Errorf("%s is %s, documented as %s", reason, got, want)
		}
	}
	for reason := range domain {
		if _, ok := stintv1.Reason_value["REASON_"+string(reason)]; !ok {
			t.Errorf("the domain has %s, the API does not", reason)
		}
	}
	if got := codeOf("NEVER_HEARD_OF"); got != codes.Unknown {
		t.Errorf("an unknown reason is %s", got)
	}
}

func TestStatusOf(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp: password hunter2 refused")
	for _, c := range []struct {
		name   string
		err    error
		code   codes.Code
		reason string
	}{
		{"fault", fault.Wrap(fault.NotFound, "no such thing", secret), codes.NotFound, "NOT_FOUND"},
		{"wrapped fault", fmt.Errorf("serve: %w", fault.New(fault.TaskClosed, "closed")), codes.FailedPrecondition, "TASK_CLOSED"},
		{"any error", secret, codes.Internal, "INTERNAL"},
		{"cancelled", fmt.Errorf("watch: %w", context.Canceled), codes.Canceled, ""},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded, ""},
		{"fault because of a deadline", fault.Wrap(fault.BackendUnavailable, "no answer", context.DeadlineExceeded), codes.Unavailable, "BACKEND_UNAVAILABLE"},
		{"status of grpc", status.Error(codes.Unimplemented, "no"), codes.Unimplemented, ""},
	} {
		st, f := statusOf(c.err, "the-request")
		text := fmt.Sprint(st.Proto())
		if st.Code() != c.code || (f != nil) != (c.reason != "") || !strings.Contains(text, c.reason) {
			t.Errorf("%s: %v, fault %v", c.name, text, f)
		}
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "the-request") {
			t.Errorf("%s: the status leaks its cause or lacks the request ID: %s", c.name, text)
		}
	}
}

func TestDetails(t *testing.T) {
	t.Parallel()
	f := fault.New(fault.InvalidArgument, "two faults\xff").With("policies", "a,b").Retry(3 * time.Second)
	for i := range maxFields + 10 {
		f.Fields = append(f.Fields, fault.Field{Name: fmt.Sprintf("roles[%d]", i), Problem: strings.Repeat("ü", maxText)})
	}
	st, _ := statusOf(f, "r")
	var fields, retry, policies bool
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			v := d.GetFieldViolations()
			fields = len(v) == maxFields && v[1].GetField() == "roles[1]" &&
				len(v[1].GetDescription()) < maxText+8 && utf8.ValidString(v[1].GetDescription())
		case *errdetails.RetryInfo:
			retry = d.GetRetryDelay().AsDuration() == 3*time.Second
		case *errdetails.ErrorInfo:
			policies = d.GetMetadata()["policies"] == "a,b" && d.GetDomain() == ErrorDomain
		}
	}
	if !fields || !retry || !policies || !utf8.ValidString(st.Message()) {
		t.Errorf("fields %v, retry %v, metadata %v, message %q", fields, retry, policies, st.Message())
	}
}

func FuzzClip(f *testing.F) {
	f.Add("plain")
	f.Add(strings.Repeat("ü", maxText))
	f.Add("\xff\xfe" + strings.Repeat("a", maxText))
	f.Fuzz(func(t *testing.T, text string) {
		got := clip(text)
		if !utf8.ValidString(got) || len(got) > maxText+len(" …") {
			t.Errorf("%d bytes from %d, valid %v", len(got), len(text), utf8.ValidString(got))
		}
		if len(text) <= maxText && utf8.ValidString(text) && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}
