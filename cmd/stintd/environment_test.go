package main

import (
	"os"
	"strings"
	"testing"
)

// TestForgetVault forgets what Vault's own tools read, and keeps what a secret reference may name.
func TestForgetVault(t *testing.T) {
	for _, variable := range hostile() {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	t.Setenv("VAULT_SECRET_ID", "mine")
	if err := forgetVault(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"VAULT_SECRET_ID": "mine", "VAULT_TOKEN": "hvs.none", "VAULT_PROXY_ADDR": "", "VAULT_HTTP_PROXY": "", "VAULT_NAMESPACE": "",
		"VAULT_CACERT": "", "VAULT_MAX_RETRIES": "", "VAULT_HEADERS": "",
	} {
		if got := os.Getenv(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
