package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// vaultCallTimeout bounds one call to the development Vault.
const vaultCallTimeout = 10 * time.Second

// vaultRefusal is an answer of the development Vault that is no success.
type vaultRefusal struct {
	status   int
	messages []string
}

// Error returns the status and Vault's own messages.
func (r *vaultRefusal) Error() string {
	return fmt.Sprintf("%d %s", r.status, strings.Join(r.messages, "; "))
}

// write sends a body to a path and returns the data of the answer, nil where it has none.
func (v *devVault) write(ctx context.Context, path string, body map[string]any) (map[string]any, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	data, err := v.call(ctx, http.MethodPut, path, raw)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return data, nil
}

// call takes nothing from the environment, where vault/api would find a proxy, a CA, a namespace and headers: the token goes to the
// Vault that was started or named, and nowhere else.
func (v *devVault) call(ctx context.Context, method, path string, body []byte) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, vaultCallTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(v.addr, "/")+"/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if token := v.token.Expose(); len(token) > 0 {
		req.Header.Set("X-Vault-Token", string(token))
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // no proxy, no redirect
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read only
	var answer struct {
		Data   map[string]any `json:"data"`
		Errors []string       `json:"errors"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer)
	if resp.StatusCode >= http.StatusMultipleChoices {
		return nil, &vaultRefusal{resp.StatusCode, answer.Errors}
	}
	if err != nil && resp.StatusCode != http.StatusNoContent {
		return nil, fmt.Errorf("the answer is not JSON: %w", err)
	}
	return answer.Data, nil
}
