package main

import (
	"os"

	vaultapi "github.com/hashicorp/vault/api"
)

// forgetVault removes from the environment of this process what vault/api reads before it can be told not to: a proxy, a CA, a
// namespace, headers. What stintd uses is in its configuration. Every other variable stays, since a secret reference may name
// it (env://VAULT_SECRET_ID); so do those that are read by name: VAULT_ADDR is mentioned and never used, VAULT_TOKEN goes with
// --vault-addr, VAULT_BIN names a binary.
func forgetVault() error {
	for _, name := range []string{
		vaultapi.EnvVaultAgentAddr, vaultapi.EnvVaultCACert, vaultapi.EnvVaultCACertBytes, vaultapi.EnvVaultCAPath,
		vaultapi.EnvVaultClientCert, vaultapi.EnvVaultClientKey, vaultapi.EnvVaultClientTimeout, vaultapi.EnvVaultHeaders,
		vaultapi.EnvVaultSRVLookup, vaultapi.EnvVaultSkipVerify, vaultapi.EnvVaultNamespace, vaultapi.EnvVaultTLSServerName,
		vaultapi.EnvVaultWrapTTL, vaultapi.EnvVaultMaxRetries, vaultapi.EnvVaultMFA, vaultapi.EnvRateLimit, vaultapi.EnvHTTPProxy,
		vaultapi.EnvVaultProxyAddr, vaultapi.EnvVaultDisableRedirects,
	} {
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	return nil
}
