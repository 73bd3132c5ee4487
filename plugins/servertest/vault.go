package servertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

var errNotActive = errors.New("vault is not active")

// VaultOptions says what differs from a plain Vault. The zero value is one that keeps everything in memory.
type VaultOptions struct {
	// OnDisk keeps the storage in a directory, so that Restart after Stop or Kill finds everything again.
	OnDisk bool
	// MaxRequestDuration is Vault's default_max_request_duration; zero leaves Vault's own 90 s.
	MaxRequestDuration time.Duration
}

// Vault is a running, initialised and unsealed Vault server with no mount but Vault's own. It speaks plain HTTP.
type Vault struct {
	Process

	// Addr is the server's URL, such as http://127.0.0.1:23456.
	Addr string
	// RootToken is for setting up and for looking behind the scenes; what is tested must not use it.
	RootToken string

	unsealKey string
	onDisk    bool
}

// StartVault starts a Vault that ends with the test.
func StartVault(tb testing.TB, options VaultOptions) *Vault {
	tb.Helper()
	vault, err := newVault(tb.Context(), tb.TempDir(), options)
	give(tb, err)
	tb.Cleanup(func() { vault.Stop(tb) })
	return vault
}

// Client returns a client of this Vault that reads nothing from the environment and retries nothing. The token may be
// empty.
func (v *Vault) Client(tb testing.TB, token string) *vaultapi.Client {
	tb.Helper()
	client, err := v.client(token)
	give(tb, err)
	return client
}

// Seal seals the Vault: requests answer 503 until Unseal.
func (v *Vault) Seal(tb testing.TB) {
	tb.Helper()
	give(tb, v.Client(tb, v.RootToken).Sys().SealWithContext(tb.Context()))
}

// Unseal ends a Seal and returns when the Vault is active.
func (v *Vault) Unseal(tb testing.TB) {
	tb.Helper()
	give(tb, v.unseal(tb.Context()))
}

// Restart stops the Vault if it runs, starts it at the same address and unseals it. It is an error for a Vault that is
// not on disk, since that one would come back empty.
func (v *Vault) Restart(tb testing.TB) {
	tb.Helper()
	if !v.onDisk {
		tb.Fatal("restart vault: started without OnDisk")
	}
	v.Stop(tb)
	give(tb, v.start(tb.Context()))
	v.Unseal(tb)
}

func newVault(ctx context.Context, dir string, options VaultOptions) (*Vault, error) {
	binary, err := findBinary("VAULT_BIN", "vault")
	if err != nil {
		return nil, err
	}
	host, port, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(host, strconv.Itoa(port))
	config := filepath.Join(dir, "vault.json")
	if err := writeVaultConfig(config, address, options); err != nil {
		return nil, err
	}
	v := &Vault{Addr: "http://" + address, onDisk: options.OnDisk}
	v.command = command{
		path: binary,
		args: []string{"server", "-config=" + config},
		env:  []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")},
		dir:  dir, ready: v.ready, stop: syscall.SIGTERM, kill: syscall.SIGKILL,
	}
	if err := v.start(ctx); err != nil {
		return nil, err
	}
	if err := v.initialise(ctx); err != nil {
		return nil, errors.Join(err, v.end(syscall.SIGKILL))
	}
	return v, nil
}

func writeVaultConfig(path, address string, options VaultOptions) error {
	storage := map[string]any{"inmem": map[string]any{}}
	if options.OnDisk {
		storage = map[string]any{"file": map[string]any{"path": filepath.Join(filepath.Dir(path), "data")}}
	}
	config := map[string]any{
		"storage":       storage,
		"listener":      map[string]any{"tcp": map[string]any{"address": address, "tls_disable": true}},
		"api_addr":      "http://" + address,
		"disable_mlock": true,
		"log_level":     "warn",
	}
	if options.MaxRequestDuration > 0 {
		config["default_max_request_duration"] = options.MaxRequestDuration.String()
	}
	text, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode vault configuration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write vault configuration: %w", err)
	}
	return nil
}

// ready is true of a Vault that answers, sealed or not.
func (v *Vault) ready(ctx context.Context) error {
	client, err := v.client("")
	if err != nil {
		return err
	}
	if _, err := client.Sys().SealStatusWithContext(ctx); err != nil {
		return fmt.Errorf("ask vault for its state: %w", err)
	}
	return nil
}

func (v *Vault) initialise(ctx context.Context) error {
	client, err := v.client("")
	if err != nil {
		return err
	}
	answer, err := client.Sys().InitWithContext(ctx, &vaultapi.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initialise vault: %w", err)
	}
	v.RootToken, v.unsealKey = answer.RootToken, answer.KeysB64[0]
	return v.unseal(ctx)
}

func (v *Vault) unseal(ctx context.Context) error {
	client, err := v.client("")
	if err != nil {
		return err
	}
	if _, err := client.Sys().UnsealWithContext(ctx, v.unsealKey); err != nil {
		return fmt.Errorf("unseal vault: %w", err)
	}
	return poll(ctx, nil, func(ctx context.Context) error { return v.active(ctx, client) })
}

// active fails while the Vault is sealed or standby.
func (v *Vault) active(ctx context.Context, client *vaultapi.Client) error {
	health, err := client.Sys().HealthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("ask vault for its health: %w", err)
	}
	if health.Sealed || health.Standby {
		return errNotActive
	}
	return nil
}

func (v *Vault) client(token string) (*vaultapi.Client, error) {
	client, err := vaultapi.NewClient(&vaultapi.Config{
		Address:    v.Addr,
		HttpClient: &http.Client{Transport: &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 64}},
	})
	if err != nil {
		return nil, fmt.Errorf("make vault client: %w", err)
	}
	client.SetMaxRetries(0)
	client.ClearNamespace() // NewClient reads it from the environment, and the token too
	client.SetToken(token)
	return client, nil
}
