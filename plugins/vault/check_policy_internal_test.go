package vault

import (
	"slices"
	"testing"
)

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		pattern, path string
		want          bool
	}{
		{"a/b", "a/b", true},
		{"a/b", "a/b/c", false},
		{"a/b", "a", false},
		{"a/*", "a/b/c", true},
		{"a/*", "a", false},
		{"a*", "ab", true},
		{"a/stint-*", "a/stint-x", true},
		{"a/stint-*", "a/other", false},
		{"+/b", "a/b", true},
		{"a/+", "a/b/c", false},
		{"a/+/c", "a/b/c", true},
		{"*", "a/b", true},
		{"a/+", "a/*", false},
		{"a/b", "a/*", false},
		{"a/*", "a/b*", true},
	} {
		if got := covers(tt.pattern, tt.path); got != tt.want {
			t.Errorf("%s covers %s: %t", tt.pattern, tt.path, got)
		}
	}
}

// TestGrants holds the choice among rules that all match against what Vault does: the longest before a wildcard counts.
func TestGrants(t *testing.T) {
	const policy = `
path "db/creds/*" { capabilities = ["deny"] }
path "db/creds/stint-x" { capabilities = ["read"] }
path "ssh/creds/stint-*" { capabilities = ["update"] allowed_parameters = { "IP" = ["10.*"] } }
path "any/creds/+" { capabilities = ["update"] allowed_parameters = { "*" = [] } }
path "old/x" { policy = "write" }`
	rules, err := parseACL(policy)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, capability string
		params           []string
		want             bool
	}{
		{"db/creds/stint-x", "read", nil, true},
		{"db/creds/stint-x", "update", nil, false},
		{"db/creds/stint-y", "read", nil, false},
		{"ssh/creds/stint-a", "update", []string{"ip"}, true},
		{"ssh/creds/stint-a", "update", []string{"ip", "user"}, false},
		{"any/creds/x", "update", []string{"what"}, true},
		{"old/x", "update", nil, true},
		{"nowhere", "read", nil, false},
	} {
		if got := grants(rules, tt.path, tt.capability, tt.params); got != tt.want {
			t.Errorf("%s %s %v: %t", tt.capability, tt.path, tt.params, got)
		}
	}
}

func TestSurplus(t *testing.T) {
	const want = `path "ssh/creds/stint-*" { capabilities = ["update"] allowed_parameters = { "ip" = ["10.*", "192.168.*"] "ttl" = [] } }
path "a/+" { capabilities = ["read", "list"] }`
	for have, over := range map[string]int{
		want: 0,
		`path "ssh/creds/stint-x" { capabilities = ["create", "update"] allowed_parameters = { "ip" = ["10.1.*"] } }`: 0,
		`path "a/b" { capabilities = ["read"] }`:                                                                 0,
		`path "a/b" { capabilities = ["deny"] } path "z" { capabilities = ["deny"] }`:                            0,
		`{"path": {"a/b": {"capabilities": ["read"]}, "c": {"capabilities": ["read"]}}}`:                         1,
		`path "ssh/creds/stint-x" { capabilities = ["update"] }`:                                                 1,
		`path "ssh/creds/stint-x" { capabilities = ["update"] allowed_parameters = { "ip" = ["10.*", "8.*"] } }`: 1,
		`path "ssh/creds/stint-x" { capabilities = ["update"] allowed_parameters = { "ip" = [] } }`:              1,
		`path "ssh/creds/stint-x" { capabilities = ["update"] allowed_parameters = { "user" = ["a"] } }`:         1,
		`path "a/+" { capabilities = ["read", "sudo"] }`:                                                         1,
		`path "a/*" { policy = "read" }`:                                                                         1,
	} {
		got, err := surplus(have, want)
		if err != nil || len(got) != over {
			t.Errorf("%s: %v, %v, want %d", have, got, err, over)
		}
	}
	for _, bad := range []string{`path "a" {`, `path { capabilities = ["read"] }`, `path "a" { capabilities = "x" `} {
		if _, err := surplus(bad, want); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
}

// FuzzParseACL expects that a policy never allows more than itself, whatever it is.
func FuzzParseACL(f *testing.F) {
	for _, seed := range []string{
		`path "a/+/b*" { capabilities = ["read"] }`, `path "a" { policy = "sudo" }`, `{"path":{"a":{"capabilities":["deny"]}}}`,
		`path "a" { capabilities = ["update"] allowed_parameters = { "x" = ["1", 2, true] "*" = [] } }`, `path`, ``,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := parseACL(text)
		if err != nil {
			return
		}
		over, err := surplus(text, text)
		if err != nil {
			t.Fatal(err)
		}
		// Values with a star in the middle are globs to one reading and text to the other.
		if slices.ContainsFunc(over, func(r aclRule) bool { return r.allowed == nil && covers(r.path, r.path) }) {
			t.Errorf("%d rules, of which %v are more than themselves", len(rules), over)
		}
	})
}
