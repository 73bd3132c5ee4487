package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"

	"github.com/stint-dev/stint/broker/config"
)

// vault is what a caller would decode.
type vault struct {
	Address string           `hcl:"address"`
	Role    string           `hcl:"token_role,optional"`
	Horizon *config.Duration `hcl:"horizon,optional"`
	Auth    auth             `hcl:"auth,block"`
}

type auth struct {
	Type   string           `hcl:"type,label"`
	Secret config.SecretRef `hcl:"secret_id,optional"`
	Rest   hcl.Body         `hcl:",remain"`
}

type mount struct {
	Mount string `hcl:"mount"`
}

func backendOf(t *testing.T, body string) config.Backend {
	t.Helper()
	c, err := config.Parse("c.hcl", []byte(least+"backend \"vault\" \"prod\" {\n"+body+"\n}"), plugins...)
	if err != nil {
		t.Fatal(err)
	}
	return c.Backends[0]
}

func TestDecodeBackend(t *testing.T) {
	b := backendOf(t, `address = "https://v"
horizon = "90s"
auth "approle" {
  secret_id = "file:///s"
  mount = "m"
}`)
	if b.ID() != "vault/prod" || b.Range.Start.Line != 7 {
		t.Errorf("backend %s in line %d", b.ID(), b.Range.Start.Line)
	}
	got := vault{Role: "stint"}
	if err := config.DecodeBackend(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Address != "https://v" || got.Auth.Type != "approle" || got.Auth.Secret != "file:///s" || got.Horizon.Value() != 90*time.Second {
		t.Errorf("got %+v", got)
	}
	var rest mount
	if err := config.DecodeBlock("auth", got.Auth.Rest, &rest); err != nil || rest.Mount != "m" {
		t.Errorf("rest: %+v, %v", rest, err)
	}
	if err := config.DecodeBackend(b, got); err == nil {
		t.Error("a target that is no pointer was accepted")
	}
}

func TestDecodeBackendFaults(t *testing.T) {
	tests := map[string]struct{ body, want string }{
		"unknown key": {`token_rol = "x"`, `c.hcl:8: unsupported argument: An argument named "token_rol" is not expected here. Did you mean "token_role"?`},
		"missing":     {`auth "x" {}`, `The argument "address" is required`},
		"inline":      {"address = \"x\"\nauth \"x\" {\nsecret_id = \"hvs.material\"\n}", "c.hcl:10: backend vault/prod: secret_id: a secret must not stand here"},
		"duration":    {"address = \"x\"\nhorizon = \"90\"\nauth \"x\" {}", "c.hcl:9: backend vault/prod: horizon: duration"},
		"negative":    {"address = \"x\"\nhorizon = \"-1s\"\nauth \"x\" {}", "horizon: duration"},
		"number":      {"address = \"x\"\nhorizon = 90\nauth \"x\" {}", "write a string in quotes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := vault{Role: "stint"}
			err := config.DecodeBackend(backendOf(t, test.body), &got)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "hvs") {
				t.Errorf("the error repeats a secret: %v", err)
			}
			if diff := cmp.Diff(vault{Role: "stint"}, got); diff != "" {
				t.Errorf("target was changed: %s", diff)
			}
		})
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]config.ByteSize{"0B": 0, "1KiB": 1024, "512MiB": 512 << 20, "3GiB": 3 << 30, "1TiB": 1 << 40, "1500B": 1500} {
		got, err := config.ParseByteSize(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %d %s %v", text, got, got, err)
		}
	}
	for _, bad := range []string{"", "1", "MiB", "-1MiB", "1.5MiB", "1MB", "1mib", "1 MiB", "9223372036854775807KiB", "99999999999999999999B"} {
		if got, err := config.ParseByteSize(bad); err == nil {
			t.Errorf("%q was accepted as %d", bad, got)
		}
	}
}
