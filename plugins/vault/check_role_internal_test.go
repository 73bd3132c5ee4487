package vault

import (
	"encoding/json"
	"testing"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// TestEngineRole: only a path without parameters has one role of its engine.
func TestEngineRole(t *testing.T) {
	for path, want := range map[string]string{
		"database/creds/stint-orders":              "database/roles/stint-orders",
		"pki/issue/stint-internal":                 "pki/roles/stint-internal",
		"database/creds/stint-{{ .params.db }}":    "",
		"database/{{ .params.db }}/stint-orders":   "",
		"database/static-creds/more/stint-orders":  "",
		"database/creds/{{ .params.db }}/stint-ro": "",
	} {
		section, err := json.Marshal(map[string]string{"path": path, "policy": "stint-x"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := recipe.Parse(plugins.Role{Name: "r", Config: section, Parameters: []string{"db"}})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := engineRole(r); got != want || ok != (want != "") {
			t.Errorf("%s has the engine's role %q, %t; want %q", path, got, ok, want)
		}
	}
}
