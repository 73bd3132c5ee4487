package plugintest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// section is the key of a role's spec that belongs to Memory.
const section = "memory"

// roleConfig is the section "memory" of a role.
type roleConfig struct {
	Ends string `json:"ends"`
	CSR  bool   `json:"csr"`
}

func readRole(role plugins.Role) (roleConfig, error) {
	var cfg roleConfig
	if len(role.Config) == 0 {
		return cfg, nil
	}
	dec := json.NewDecoder(bytes.NewReader(role.Config))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("%w: memory: %w", plugins.ErrInvalidRole, err)
	}
	if cfg.ends() == plugins.EndsUnknown {
		return cfg, fmt.Errorf("%w: memory.ends is %q; known are revocable, lapsing, never", plugins.ErrInvalidRole, cfg.Ends)
	}
	if cfg.ends() == plugins.EndsNever && !role.AcceptPermanent {
		return cfg, fmt.Errorf("%w: memory.ends is never; set accept_permanent: true", plugins.ErrInvalidRole)
	}
	return cfg, nil
}

func (c roleConfig) ends() plugins.Ends {
	switch c.Ends {
	case "", "revocable":
		return plugins.EndsRevocable
	case "lapsing":
		return plugins.EndsLapsing
	case "never":
		return plugins.EndsNever
	}
	return plugins.EndsUnknown
}

// info describes the role; own is the backend's bound and asked the role's, zero for none.
func (c roleConfig) info(own, asked time.Duration) plugins.RoleInfo {
	info := plugins.RoleInfo{Ends: c.ends(), MaxTTL: own, NeedsCSR: c.CSR, Lane: "memory/"}
	if !c.CSR {
		info.Fields = []string{"password", "username"}
	}
	switch info.Ends {
	case plugins.EndsRevocable:
		info.Exposure = plugins.Exposure{Bounded: true, Reason: "revoked synchronously"}
	case plugins.EndsLapsing:
		info.Exposure = plugins.Exposure{Bounded: true, Max: longest(own, asked), UntilExpiry: true, Reason: "cannot be revoked, expires"}
	case plugins.EndsNever, plugins.EndsUnknown:
		info.Exposure = plugins.Exposure{Reason: "cannot be ended"}
	}
	return info
}

// longest is the longest life that two bounds allow, where zero is none.
func longest(own, asked time.Duration) time.Duration {
	if own == 0 || (asked > 0 && asked < own) {
		return asked
	}
	return own
}
