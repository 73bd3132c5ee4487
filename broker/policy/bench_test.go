package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
)

// BenchmarkIssue is one decision with policies that each name another role, as a grown installation has them.
func BenchmarkIssue(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			e := grown(b, n)
			in := policy.IssueInput{
				Identity: invoiceAgent(b), Task: declared(b, e), Role: "ledger-api", TTL: time.Minute, Now: now,
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Issue(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCompile is what applying 1,000 policies costs.
func BenchmarkCompile(b *testing.B) {
	set := grownSet(b, 1000)
	for b.Loop() {
		if _, problems := policy.Compile(set); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}

func grown(b *testing.B, n int) *policy.Engine {
	b.Helper()
	e, problems := policy.Compile(grownSet(b, n))
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	return e
}

// grownSet adds n roles to the fixture, each with a policy of its own, and two policies that concern every role.
func grownSet(b *testing.B, n int) resource.Set {
	b.Helper()
	set := fixture(b, resource.PermitCeiling, map[string]string{
		"purpose": `forbid (principal, action, resource) unless { context.purpose like "*-invoice*" };`,
		"x509":    `forbid (principal, action, resource in Stint::Backend::"memory/ca") unless { context.method == "x509-svid" };`,
	})
	var files []resource.File
	for i := range n - 3 { // the ceiling is one too
		name := fmt.Sprintf("role-%d", i)
		files = append(files,
			resource.File{Name: name, YAML: "apiVersion: stint.dev/v1\nkind: Role\nmetadata: {name: " + name +
				"}\nspec: {backend: memory/db, ttl: {max: 15m}}\n"},
			resource.File{Name: "p-" + name, YAML: policyDoc(name, `permit (principal in Stint::Profile::"other", action, resource == Stint::Role::"`+
				name+`") when { context.ttl <= duration("10m") && context.purpose == "anything" };`)})
	}
	set, problems := set.Update(files, backends())
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	return set
}
