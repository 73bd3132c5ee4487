package cli

import (
	"fmt"
	"strings"
	"time"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	taskPrefix  = "tasks/"
	leasePrefix = "leases/"
	statePrefix = "TASK_STATE_"
	closePrefix = "CLOSE_REASON_"
	leaseState  = "LEASE_STATE_"
)

// taskName accepts a task as people write it: ID, short name, with or without "tasks/".
func taskName(text string) string { return taskPrefix + strings.TrimPrefix(text, taskPrefix) }

func leaseName(text string) string { return leasePrefix + strings.TrimPrefix(text, leasePrefix) }

func bareTask(name string) string { return strings.TrimPrefix(name, taskPrefix) }

func bareLease(name string) string { return strings.TrimPrefix(name, leasePrefix) }

// parseRole parses "name" or "name=ttl".
func parseRole(text string) (agent.Role, error) {
	name, ttl, hasTTL := strings.Cut(text, "=")
	role := agent.Role{Name: name}
	if name == "" {
		return role, usage("--role %q has no name", text)
	}
	if !hasTTL {
		return role, nil
	}
	d, err := time.ParseDuration(ttl)
	if err != nil || d <= 0 {
		return role, usage("--role %q: %q is no duration such as 15m", text, ttl)
	}
	role.TTL = d
	return role, nil
}

// parseRoles parses --role and --param role.name=value.
func parseRoles(roles, params []string) ([]agent.Role, error) {
	out := make([]agent.Role, 0, len(roles))
	index := map[string]int{}
	for _, text := range roles {
		role, err := parseRole(text)
		if err != nil {
			return nil, err
		}
		if _, twice := index[role.Name]; twice {
			return nil, usage("--role %s stands twice", role.Name)
		}
		index[role.Name] = len(out)
		out = append(out, role)
	}
	for _, text := range params {
		left, value, ok := strings.Cut(text, "=")
		role, name, dotted := strings.Cut(left, ".")
		i, known := index[role]
		if !ok || !dotted || name == "" || !known {
			return nil, usage("--param %q must be ROLE.NAME=VALUE with one of the roles asked for", text)
		}
		if out[i].Parameters == nil {
			out[i].Parameters = map[string]string{}
		}
		out[i].Parameters[name] = value
	}
	return out, nil
}

// parsePairs parses repeated NAME=VALUE flags.
func parsePairs(flag string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil //nolint:nilnil // no pairs are no map
	}
	out := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, usage("--%s %q must be NAME=VALUE", flag, pair)
		}
		out[name] = value
	}
	return out, nil
}

// parseStates parses --state for tasks.
func parseStates(names []string) ([]stintv1.TaskState, error) {
	return parseEnum[stintv1.TaskState]("--state", statePrefix, names, stintv1.TaskState_value)
}

func parseLeaseStates(names []string) ([]stintv1.LeaseState, error) {
	return parseEnum[stintv1.LeaseState]("--state", leaseState, names, stintv1.LeaseState_value)
}

func parseEnum[E ~int32](flag, prefix string, names []string, values map[string]int32) ([]E, error) {
	out := make([]E, 0, len(names))
	for _, name := range names {
		value, ok := values[prefix+strings.ToUpper(name)]
		if !ok || value == 0 {
			return nil, usage("%s %q is not known", flag, name)
		}
		out = append(out, E(value))
	}
	return out, nil
}

func parseOutcome(text string) (stintv1.CloseReason, error) {
	switch text {
	case "completed":
		return stintv1.CloseReason_CLOSE_REASON_COMPLETED, nil
	case "failed":
		return stintv1.CloseReason_CLOSE_REASON_FAILED, nil
	case "cancelled":
		return stintv1.CloseReason_CLOSE_REASON_CANCELLED, nil
	}
	return 0, usage("--outcome is completed, failed or cancelled, not %q", text)
}

// plural writes "1 lease", "2 leases".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
