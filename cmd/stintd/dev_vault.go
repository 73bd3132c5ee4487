package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault"
)

// devVault is a Vault that the development broker started, or one that the person named. What it holds is gone with it.
type devVault struct {
	addr   string
	binary string // empty for a Vault that somebody else runs
	token  secret.Value
	cmd    *exec.Cmd
}

// devLeaseTTL is what the ssh engine gives every lease. Stint refuses what lives longer than it asked for, and it asks for what
// is left of the minute of role build-host by then.
const devLeaseTTL = "50s"

// envVaultBin names a vault binary, for make and for the tests too.
const envVaultBin = "VAULT_BIN"

// whereVault says where one is looked for.
const whereVault = "VAULT_BIN names none, and none is on PATH or in .bin"

// findVault returns the vault binary that the environment names, or the one on PATH or in .bin, or "".
func findVault() (string, error) {
	if named := os.Getenv(envVaultBin); named != "" {
		path, err := exec.LookPath(named)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", envVaultBin, err)
		}
		return path, nil
	}
	if path, err := exec.LookPath("vault"); err == nil {
		return path, nil
	}
	for _, dir := range []string{".bin", filepath.Dir(selfPath())} {
		path := filepath.Join(dir, "vault")
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			if abs, err := filepath.Abs(path); err == nil {
				return abs, nil
			}
		}
	}
	return "", nil
}

func selfPath() string {
	self, err := os.Executable()
	if err != nil {
		return "."
	}
	return self
}

// startVault runs `vault server -dev` on a loopback port, with a root token that only its environment and this process
// know. Its own environment is otherwise empty: VAULT_ADDR and the like are neither read nor passed on.
func startVault(ctx context.Context, binary string) (*devVault, error) {
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	v := &devVault{addr: "http://" + addr, binary: binary, token: secret.FromString(rand.Text())}
	home, err := os.MkdirTemp("", "stint-vault-")
	if err != nil {
		return nil, fmt.Errorf("make a home for vault: %w", err)
	}
	v.cmd = exec.Command(binary, "server", "-dev", "-dev-no-store-token", "-dev-listen-address="+addr) //nolint:gosec,noctx // found on PATH; ended by stop
	v.cmd.Env = []string{"HOME=" + home, "VAULT_DEV_ROOT_TOKEN_ID=" + string(v.token.Expose())}
	v.cmd.Dir = home
	var out bytes.Buffer
	v.cmd.Stdout, v.cmd.Stderr = &out, &out
	ownGroup(v.cmd)
	if err := v.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", binary, err), os.RemoveAll(home))
	}
	if err := v.waitUp(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("vault did not come up: %w: %s", err, lastLine(&out)), v.stop())
	}
	return v, nil
}

// stop ends the Vault that was started here.
func (v *devVault) stop() error {
	if v == nil || v.cmd == nil {
		return nil
	}
	err := v.cmd.Process.Signal(os.Interrupt)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	done := make(chan struct{})
	go func() {
		_ = v.cmd.Wait() // its exit status says nothing more
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		err = errors.Join(err, v.cmd.Process.Kill())
		<-done
	}
	return errors.Join(err, os.RemoveAll(v.cmd.Dir))
}

func (v *devVault) waitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := v.up(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// prepare gives the development Vault what an operator gives a real one: the ssh engine, the token role, the minimal
// policies, and JWT login for the broker's own JWT-SVIDs.
func (v *devVault) prepare(ctx context.Context, cfg vault.Config, roles []plugins.Role, spiffeID string, jwtKeys []any) error {
	own, err := vault.PolicyText(cfg, roles)
	if err != nil {
		return fmt.Errorf("policy of the broker: %w", err)
	}
	keys, err := publicPEM(jwtKeys)
	if err != nil {
		return err
	}
	steps := []struct {
		path string
		body map[string]any
	}{
		{"sys/mounts/ssh", map[string]any{"type": "ssh", "config": map[string]any{"default_lease_ttl": devLeaseTTL}}},
		{"ssh/roles/stint-build-host", map[string]any{"key_type": "otp", "default_user": "build", "cidr_list": "10.0.0.0/24"}},
		{"sys/policies/acl/stint-broker", map[string]any{"policy": own}},
		{"auth/token/roles/" + vault.DefaultTokenRole, devTokenRole()},
		{"sys/auth/jwt", map[string]any{"type": "jwt"}},
		{"auth/jwt/config", map[string]any{"jwt_validation_pubkeys": keys}},
		{"auth/jwt/role/stint", map[string]any{
			"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{v.addr}, "bound_claims": map[string]any{"sub": spiffeID},
			"token_policies": []string{"stint-broker"}, "token_no_default_policy": true, "token_ttl": "1h",
		}},
	}
	for _, r := range roles {
		name, text, err := vault.RolePolicyText(r)
		if err != nil {
			return fmt.Errorf("policy of role %s: %w", r.Name, err)
		}
		steps = append(steps, struct {
			path string
			body map[string]any
		}{"sys/policies/acl/" + name, map[string]any{"policy": text}})
	}
	for _, s := range steps {
		if _, err := v.write(ctx, s.path, s.body); err != nil && !mounted(err) {
			return fmt.Errorf("prepare development vault: %w", err)
		}
	}
	return nil
}

func devTokenRole() map[string]any {
	return map[string]any{
		"orphan": true, "allowed_policies_glob": []string{"stint-*"}, "disallowed_policies": []string{"root", "stint-broker"},
		"token_no_default_policy": true, "renewable": true, "token_type": "service",
	}
}

func publicPEM(keys []any) ([]string, error) {
	var out []string
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return nil, fmt.Errorf("encode JWT key: %w", err)
		}
		out = append(out, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	return out, nil
}

// freeAddr returns a loopback address that was free a moment ago.
func freeAddr(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

func lastLine(out *bytes.Buffer) string {
	last := ""
	for s := bufio.NewScanner(out); s.Scan(); {
		if s.Text() != "" {
			last = s.Text()
		}
	}
	return last
}
