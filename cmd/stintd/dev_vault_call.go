package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// vaultCallTimeout bounds one call to the development Vault.
const vaultCallTimeout = 10 * time.Second

// client returns a client that goes to the Vault that was started or named, and nowhere else: no proxy, no redirect, and
// nothing of the environment (forgetVault).
func (v *devVault) client() (*vaultapi.Client, error) {
	client, err := vaultapi.NewClient(&vaultapi.Config{
		Address: v.addr, HttpClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: vaultCallTimeout}, DisableRedirects: true,
	})
	if err != nil {
		return nil, fmt.Errorf("make vault client: %w", err)
	}
	client.SetMaxRetries(0)
	client.SetToken(string(v.token.Expose()))
	return client, nil
}

// write sends a body to a path and returns the data of the answer.
func (v *devVault) write(ctx context.Context, path string, body map[string]any) (map[string]any, error) {
	client, err := v.client()
	if err != nil {
		return nil, err
	}
	answer, err := client.Logical().WriteWithContext(ctx, path, body)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	if answer == nil { // a success without data
		return map[string]any{}, nil
	}
	return answer.Data, nil
}

// mounted says whether an engine or an auth method was there before, as when stintd dev uses a Vault for the second time.
func mounted(err error) bool {
	refusal, ok := errors.AsType[*vaultapi.ResponseError](err)
	return ok && refusal.StatusCode == http.StatusBadRequest && slices.ContainsFunc(refusal.Errors, func(text string) bool {
		return strings.HasPrefix(text, "path is already in use at ")
	})
}

// up returns nil where an active, unsealed node answers.
func (v *devVault) up(ctx context.Context) error {
	client, err := v.client()
	if err != nil {
		return err
	}
	health, err := client.Sys().HealthWithContext(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("ask vault for its health: %w", err)
	case health.Sealed || health.Standby || !health.Initialized:
		return errors.New("vault is sealed, or no active node")
	}
	return nil
}
