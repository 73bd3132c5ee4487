package main

import (
	"os"
	"slices"
	"strings"
)

// forgetVault removes the variables of Vault's own tools from the environment of this process. vault/api reads them before it
// can be told not to: a proxy, a CA, a namespace, headers. What stintd uses is in its configuration. Those that stay are read
// by name: VAULT_ADDR is mentioned and never used, VAULT_TOKEN goes with --vault-addr, VAULT_BIN names a binary.
func forgetVault() error {
	keep := []string{"VAULT_ADDR", "VAULT_TOKEN", "VAULT_BIN"}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "VAULT_") || slices.Contains(keep, name) {
			continue
		}
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	return nil
}
