package servertest_test

import (
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins/servertest"
)

func mountKV(t *testing.T, client *vaultapi.Client) {
	t.Helper()
	if err := client.Sys().MountWithContext(t.Context(), "kv", &vaultapi.MountInput{Type: "kv"}); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, client *vaultapi.Client, value string) error {
	t.Helper()
	_, err := client.Logical().WriteWithContext(t.Context(), "kv/x", map[string]any{"v": value})
	return err
}

func read(t *testing.T, client *vaultapi.Client) string {
	t.Helper()
	secret, err := client.Logical().ReadWithContext(t.Context(), "kv/x")
	if err != nil || secret == nil {
		t.Fatalf("read = %v, %v", secret, err)
	}
	value, ok := secret.Data["v"].(string)
	if !ok {
		t.Fatalf("value is a %T", secret.Data["v"])
	}
	return value
}

func TestVaultSealsAndStops(t *testing.T) {
	t.Setenv("VAULT_NAMESPACE", "must-not-be-read")
	vault := servertest.StartVault(t, servertest.VaultOptions{})
	client := vault.Client(t, vault.RootToken)
	mountKV(t, client)
	if err := write(t, client, "one"); err != nil {
		t.Fatal(err)
	}
	vault.Seal(t)
	if err := write(t, client, "two"); err == nil {
		t.Error("a sealed vault wrote")
	}
	vault.Unseal(t)
	if got := read(t, client); got != "one" {
		t.Errorf("read %q after unseal", got)
	}
	vault.Stop(t)
	if err := write(t, client, "three"); err == nil {
		t.Error("a stopped vault wrote")
	}
}

func TestVaultOnDiskSurvivesKill(t *testing.T) {
	vault := servertest.StartVault(t, servertest.VaultOptions{OnDisk: true, MaxRequestDuration: 5 * time.Second})
	client := vault.Client(t, vault.RootToken)
	mountKV(t, client)
	if err := write(t, client, "kept"); err != nil {
		t.Fatal(err)
	}
	vault.Kill(t)
	if err := write(t, client, "lost"); err == nil {
		t.Error("a killed vault wrote")
	}
	vault.Restart(t)
	if got := read(t, client); got != "kept" {
		t.Errorf("read %q after restart", got)
	}
}

func TestVaultPauses(t *testing.T) {
	vault := servers.Vault(t)
	client := vault.Client(t, vault.RootToken)
	client.SetClientTimeout(200 * time.Millisecond)
	vault.Pause(t)
	_, err := client.Sys().HealthWithContext(t.Context())
	vault.Resume(t)
	if err == nil {
		t.Error("a paused vault answered")
	}
	client.SetClientTimeout(10 * time.Second)
	if _, err := client.Sys().HealthWithContext(t.Context()); err != nil {
		t.Errorf("after resume: %v", err)
	}
}
