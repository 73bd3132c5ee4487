package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/stepca"
	"github.com/stint-dev/stint/plugins/vault"
)

// tokenChecker is a backend that can check itself with a token that serving does not have.
type tokenChecker interface {
	CheckWith(ctx context.Context, token secret.Value, roles []plugins.Role) []plugins.Finding
}

// prober is a backend that can issue and revoke one credential of a role for real.
type prober interface {
	Probe(ctx context.Context, role plugins.Role, params map[string]string) []plugins.Finding
}

var (
	_ tokenChecker = (*vault.Backend)(nil)
	_ prober       = (*vault.Backend)(nil)
	_ prober       = (*stepca.Backend)(nil)
)

// slow is how long a step may take before it is mentioned.
const slow = 2 * time.Second

// within runs a step, and says which it is if it takes long.
func within(progress io.Writer, what string, step func()) {
	began := time.Now()
	timer := time.AfterFunc(slow, func() { _, _ = fmt.Fprintf(progress, "%s: still at it\n", what) }) // progress only
	step()
	if !timer.Stop() {
		_, _ = fmt.Fprintf(progress, "%s: done after %s\n", what, time.Since(began).Round(100*time.Millisecond)) // progress only
	}
}

// lockedWriter lets steps that go on at once speak one at a time.
type lockedWriter struct {
	mu  sync.Mutex // guards out
	out io.Writer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(p)
}

// askBackends lets each backend that can look at its own set-up, all at once, but those that are mute without an identity.
func askBackends(
	ctx context.Context, set resource.Set, backends map[string]plugins.Backend, mute []string, o checkOptions,
) []plugins.Finding {
	tokens, err := o.tokensByBackend(backends)
	params, err2 := o.paramsByRole(set)
	var found []plugins.Finding
	if err = errors.Join(err, err2); err != nil {
		found = faultsOf("flags", err)
	}
	o.progress = &lockedWriter{out: o.progress}
	roles := map[string][]resource.Role{}
	for _, r := range set.Roles() {
		roles[r.Backend] = append(roles[r.Backend], r)
	}
	var group sync.WaitGroup
	results := make(chan []plugins.Finding, len(backends))
	for name, b := range backends {
		if slices.Contains(mute, name) {
			found = append(found, plugins.Finding{
				Severity: plugins.Weakens, Code: "not-asked", Subject: name, Problem: "not asked: Stint logs in there with its identity, and has none",
				Remedy: "mend the identity, then check again",
			})
			continue
		}
		group.Go(func() {
			asked := question{name: name, backend: b, roles: roles[name], token: tokens[name], params: params}
			results <- asked.ask(ctx, o)
		})
	}
	group.Wait()
	close(results)
	for part := range results {
		found = append(found, part...)
	}
	slices.SortStableFunc(found, func(a, b plugins.Finding) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Code, b.Code))
	})
	return found
}

// question is what one backend is asked.
type question struct {
	name    string
	backend plugins.Backend
	roles   []resource.Role
	token   secret.Value
	params  map[string]map[string]string // by role
}

func (q question) ask(ctx context.Context, o checkOptions) []plugins.Finding {
	var list []plugins.Role
	if o.rolesKnown {
		list = make([]plugins.Role, len(q.roles))
	}
	for i := range list {
		list[i] = q.roles[i].Plugin
	}
	var found []plugins.Finding
	within(o.progress, q.name, func() {
		switch b := q.backend.(type) {
		case tokenChecker:
			found = b.CheckWith(ctx, q.token, list)
		case plugins.Checker:
			found = b.Check(ctx, list)
		}
	})
	if p, ok := o.cas.or(q.name, q.backend).(prober); ok && o.probe {
		for _, role := range q.roles {
			within(o.progress, q.name+" "+role.Name+": issuing and revoking", func() { found = append(found, q.probe(ctx, p, role)...) })
		}
	}
	for i := range found {
		if found[i].Subject != q.name {
			found[i].Subject = q.name + " " + found[i].Subject
		}
	}
	return found
}

// probe tries a role, unless a value for one of its parameters is missing or wrong.
func (q question) probe(ctx context.Context, p prober, role resource.Role) []plugins.Finding {
	values := q.params[role.Name]
	for _, param := range role.Parameters {
		if err := param.CheckValue(values[param.Name]); err != nil {
			return []plugins.Finding{{
				Severity: plugins.Weakens, Code: "probe-skipped", Subject: "role " + role.Name,
				Problem: fmt.Sprintf("not tried: parameter %s %s", param.Name, err),
				Remedy:  fmt.Sprintf("--param %s.%s=VALUE", role.Name, param.Name),
			}}
		}
	}
	return p.Probe(ctx, role.Plugin, values)
}

// tokensByBackend reads the flags --vault-token-file. A file without a backend is for all.
func (o checkOptions) tokensByBackend(backends map[string]plugins.Backend) (map[string]secret.Value, error) {
	tokens := map[string]secret.Value{}
	var faults []error
	for _, flag := range o.tokens {
		name, file, named := strings.Cut(flag, "=")
		if !named {
			file = flag
		}
		if _, known := backends[name]; named && !known {
			faults = append(faults, fmt.Errorf("--vault-token-file: backend %s is not configured", name))
			continue
		}
		token, err := loadToken(file)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for backend := range backends {
			if !named || backend == name {
				tokens[backend] = token
			}
		}
	}
	return tokens, errors.Join(faults...)
}

// paramsByRole reads the flags --param.
func (o checkOptions) paramsByRole(set resource.Set) (map[string]map[string]string, error) {
	params := map[string]map[string]string{}
	var faults []error
	for _, flag := range o.params {
		key, value, ok := strings.Cut(flag, "=")
		role, param, dotted := strings.Cut(key, ".")
		if _, known := set.Role(role); !ok || !dotted || !known {
			faults = append(faults, fmt.Errorf("--param %s: write ROLE.NAME=VALUE, with a role of the resources", key))
			continue
		}
		if params[role] == nil {
			params[role] = map[string]string{}
		}
		params[role][param] = value
	}
	return params, errors.Join(faults...)
}

// loadToken reads a token from a file that only its owner can read.
func loadToken(file string) (secret.Value, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return secret.Value{}, fmt.Errorf("--vault-token-file: %w", err)
	}
	token, err := config.SecretRef("file://" + path).Load()
	if err != nil {
		return secret.Value{}, fmt.Errorf("--vault-token-file: %w", err)
	}
	return token, nil
}
