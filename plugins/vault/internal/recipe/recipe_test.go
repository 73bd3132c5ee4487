package recipe_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

func role(section string, params ...string) plugins.Role {
	return plugins.Role{Name: "r", Config: []byte(section), Parameters: params}
}

func TestParseRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ section, says string }{
		"nothing":                  {``, "section is missing"},
		"unknown key":              {`{"path":"database/creds/stint-x","policy":"stint-x","pathh":1}`, `unknown field "pathh"`},
		"two objects":              {`{"path":"database/creds/stint-x","policy":"stint-x"}{}`, "more than one"},
		"no path":                  {`{"policy":"stint-x"}`, "vault.path"},
		"a mount only":             {`{"path":"database","policy":"stint-x"}`, "vault.path"},
		"an empty segment":         {`{"path":"database//stint-x","policy":"stint-x"}`, "is empty"},
		"a path that climbs":       {`{"path":"database/../stint-x","policy":"stint-x"}`, ".."},
		"a glob":                   {`{"path":"database/*/stint-x","policy":"stint-x"}`, "one of"},
		"a role of somebody else":  {`{"path":"database/creds/orders","policy":"stint-x"}`, "stint-"},
		"stint's own rights":       {`{"path":"sys/leases/stint-x","policy":"stint-x"}`, "issues no credentials"},
		"sts":                      {`{"path":"aws/sts/stint-x","policy":"stint-x"}`, "cannot revoke"},
		"a parameter as mount":     {`{"path":"{{ .params.a }}/creds/stint-x","policy":"stint-x"}`, "mount"},
		"a parameter in a segment": {`{"path":"db/x-{{ .params.a }}/stint-x","policy":"stint-x"}`, "whole segment"},
		"two in a segment":         {`{"path":"db/creds/stint-{{ .params.a }}{{ .params.a }}","policy":"stint-x"}`, "whole segment"},
		"a bare last parameter":    {`{"path":"db/creds/{{ .params.a }}","policy":"stint-x"}`, "begin with stint-"},
		"a TTL in the path":        {`{"path":"db/creds/stint-{{ .ttl }}","policy":"stint-x"}`, "no TTL"},
		"a stray brace":            {`{"path":"db/creds/stint-x","policy":"stint-x","data":{"k":"{{ .agent }}"}}`, "vault.data.k"},
		"an undeclared parameter":  {`{"path":"db/creds/stint-{{ .params.b }}","policy":"stint-x"}`, "no parameter b"},
		"data of a read":           {`{"path":"db/creds/stint-x","policy":"stint-x","method":"read","data":{"a":"b"}}`, "vault.method"},
		"an unknown method":        {`{"path":"db/creds/stint-x","policy":"stint-x","method":"delete"}`, "vault.method"},
		"an unknown end":           {`{"path":"db/creds/stint-x","policy":"stint-x","engine_end":"soon"}`, "vault.engine_end"},
		"an unknown kind":          {`{"path":"db/creds/stint-x","policy":"stint-x","kind":"x"}`, "vault.kind"},
		"nested data":              {`{"path":"db/creds/stint-x","policy":"stint-x","data":{"a":{}}}`, "vault.data.a"},
		"no policy":                {`{"path":"db/creds/stint-x"}`, "vault.policy"},
		"root":                     {`{"path":"db/creds/stint-x","policy":"root"}`, "vault.policy"},
		"an upper-case policy":     {`{"path":"db/creds/stint-x","policy":"stint-X"}`, "vault.policy"},
		"a field without a source": {`{"path":"db/creds/stint-x","policy":"stint-x","fields":{"a":""}}`, "vault.fields"},
		"a static value":           {`{"path":"kv/data/x","policy":"stint-x","kind":"static"}`, "accept_permanent"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := recipe.Parse(role(tt.section, "a"))
			if !errors.Is(err, plugins.ErrInvalidRole) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want one that says %q", err, tt.says)
			}
		})
	}
	stored := role(`{"path":"kv/data/x","policy":"stint-x","kind":"static","engine_end":"none"}`)
	stored.AcceptPermanent = true
	if _, err := recipe.Parse(stored); err == nil || !strings.Contains(err.Error(), "vault.engine_end") {
		t.Errorf("an engine's end of a stored value: %v", err)
	}
}

func TestCall(t *testing.T) {
	r, err := recipe.Parse(role(`{"path":"team/{{ .params.env }}/creds/stint-{{.params.db}}","policy":"stint-x",
		"data":{"ttl":"{{ .ttl }}","note":"for {{ .params.db }}.","port":5432,"tls":true,"empty":""}}`, "db", "env"))
	if err != nil {
		t.Fatal(err)
	}
	method, path, body, err := r.Call(recipe.Values{Params: map[string]string{"db": "orders", "env": "eu"}, TTL: 59})
	if err != nil || method != "PUT" || path != "team/eu/creds/stint-orders" {
		t.Fatalf("%s %s, %v", method, path, err)
	}
	for key, want := range map[string]string{"ttl": "59s", "note": "for orders.", "empty": ""} {
		if body[key] != want {
			t.Errorf("%s is %v, want %q", key, body[key], want)
		}
	}
	if body["tls"] != true || len(body) != 5 {
		t.Errorf("body %v", body)
	}
	if got := r.LeaseGlob(); got != "team/*" {
		t.Errorf("lease glob %q", got)
	}
}

func TestCallRefusesValues(t *testing.T) {
	r, err := recipe.Parse(role(`{"path":"ssh/creds/stint-x","policy":"stint-x","data":{"ip":"{{ .params.ip }}"}}`, "ip"))
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{
		"", ".", "..", "a/b", "a..b", "*", "a+b", "%2f", "a\x00b", "a\nb", "a b", "\u202e", "\xff", "{{ .ttl }}", strings.Repeat("x", 513),
	} {
		_, _, _, err := r.Call(recipe.Values{Params: map[string]string{"ip": value}})
		var rejected *plugins.RejectedError
		if !errors.As(err, &rejected) || rejected.Field != "parameters.ip" {
			t.Errorf("value %q: %v", value, err)
		}
	}
	if _, _, _, err := r.Call(recipe.Values{}); !errors.Is(err, plugins.ErrNotIssued) {
		t.Errorf("a missing parameter: %v", err)
	}
}

func TestRule(t *testing.T) {
	for name, tt := range map[string]struct {
		section string
		want    recipe.Rule
		glob    string
	}{
		"a database": {
			`{"path":"database/creds/stint-ro","policy":"stint-x"}`,
			recipe.Rule{Path: "database/creds/stint-ro", Capability: "read"},
			"database/creds/stint-*",
		},
		"data": {
			`{"path":"ssh/creds/stint-otp","policy":"stint-x","data":{"ip":"10.0.0.{{ .params.a }}","user":"ubuntu","any":"{{ .params.a }}","on":true,"n":1}}`,
			recipe.Rule{Path: "ssh/creds/stint-otp", Capability: "update", Allowed: map[string][]string{
				"ip": {"10.0.0.*"}, "user": {"ubuntu"}, "any": {}, "on": {"true"}, "n": {},
			}},
			"ssh/creds/stint-*",
		},
		"a parameter in the path": {
			`{"path":"kv/{{ .params.a }}/stint-{{ .params.a }}","policy":"stint-x"}`,
			recipe.Rule{Path: "kv/+/stint-*", Capability: "read"},
			"kv/*",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := recipe.Parse(role(tt.section, "a"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, r.Rule()); diff != "" {
				t.Error(diff)
			}
			if got := r.LeaseGlob(); got != tt.glob {
				t.Errorf("lease glob %q, want %q", got, tt.glob)
			}
		})
	}
}

// FuzzCall holds that no value of a parameter changes the shape of the path that it stands in.
func FuzzCall(f *testing.F) {
	for _, seed := range []string{"orders", "..", "a/b", "%2e%2e", "+", "*", "\\", "{{ .ttl }}", "ä", "\u2028"} {
		f.Add(seed)
	}
	r, err := recipe.Parse(role(`{"path":"db/{{ .params.a }}/stint-{{ .params.a }}","policy":"stint-x"}`, "a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, value string) {
		_, path, _, err := r.Call(recipe.Values{Params: map[string]string{"a": value}})
		if err != nil {
			if !errors.Is(err, plugins.ErrNotIssued) {
				t.Errorf("value %q: %v is no rejection", value, err)
			}
			return
		}
		if parts := strings.Split(path, "/"); len(parts) != 3 || parts[1] != value || parts[2] != "stint-"+value {
			t.Errorf("value %q made the path %q", value, path)
		}
		if strings.ContainsAny(path, "*+%?#\\\x00\n ") || strings.Contains(path, "..") || value == "." {
			t.Errorf("value %q made the path %q", value, path)
		}
	})
}

// FuzzParse holds that what is accepted names a path and a policy of Stint's.
func FuzzParse(f *testing.F) {
	f.Add(`{"path":"database/creds/stint-x","policy":"stint-x"}`)
	f.Add(`{"path":"db/{{ .params.a }}/stint-{{ .params.a }}","policy":"stint-x","data":{"k":"{{ .ttl }}"}}`)
	f.Fuzz(func(t *testing.T, section string) {
		r, err := recipe.Parse(role(section, "a"))
		if err != nil {
			if !errors.Is(err, plugins.ErrInvalidRole) {
				t.Errorf("error %v", err)
			}
			return
		}
		_, path, _, err := r.Call(recipe.Values{Params: map[string]string{"a": "v"}, TTL: 1})
		if err != nil {
			t.Fatalf("accepted, but cannot be filled: %v", err)
		}
		parts := strings.Split(path, "/")
		if !strings.HasPrefix(parts[len(parts)-1], recipe.Prefix) || !strings.HasPrefix(r.Policy, recipe.Prefix) || r.Kind != recipe.Lease {
			t.Errorf("accepted %q: path %q, policy %q, kind %s", section, path, r.Policy, r.Kind)
		}
	})
}
