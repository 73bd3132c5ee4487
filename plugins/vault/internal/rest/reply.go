package rest

import (
	"bytes"
	"encoding/json"

	"github.com/stint-dev/stint/plugins/secret"
)

// Reply is what Vault answered. Data stays in bytes, so that it can be wiped.
type Reply struct {
	Status        int                        `json:"-"`
	LeaseID       string                     `json:"lease_id"`
	LeaseDuration int64                      `json:"lease_duration"` // seconds
	Renewable     bool                       `json:"renewable"`
	MountType     string                     `json:"mount_type"` // "database"; empty before Vault 1.16
	Data          map[string]json.RawMessage `json:"data"`
	Warnings      []string                   `json:"warnings"`
	Auth          *Auth                      `json:"auth"`
	Health
}

// Health is what sys/health says at the top level of its answer.
type Health struct {
	Initialized bool   `json:"initialized"`
	Sealed      bool   `json:"sealed"`
	Standby     bool   `json:"standby"`
	ClusterID   string `json:"cluster_id"`
	ServerTime  int64  `json:"server_time_utc"` // Unix seconds, rounded down
}

// Auth is a token that was made.
type Auth struct {
	Token         Token    `json:"client_token"`
	Accessor      string   `json:"accessor"`
	Policies      []string `json:"policies"`
	LeaseDuration int64    `json:"lease_duration"` // seconds
	Renewable     bool     `json:"renewable"`
	Orphan        bool     `json:"orphan"`
	TokenType     string   `json:"token_type"`
}

// Token is a Vault token that is decoded straight into a secret.
type Token struct{ secret.Value }

// UnmarshalJSON copies the token out of a JSON string.
func (t *Token) UnmarshalJSON(raw []byte) error {
	text, err := Text(raw)
	if err != nil {
		return err
	}
	t.Value = secret.New(text)
	return nil
}

// Wipe overwrites the data with zeros.
func (r *Reply) Wipe() {
	for _, raw := range r.Data {
		clear(raw)
	}
}

// Text returns the bytes of a JSON string. Only a string with escapes passes through a Go string, which cannot be
// wiped; tokens and the passwords of Vault's engines have none.
func Text(raw []byte) ([]byte, error) {
	n := len(raw)
	if n >= 2 && raw[0] == '"' && raw[n-1] == '"' && !bytes.ContainsRune(raw, '\\') {
		return append([]byte(nil), raw[1:n-1]...), nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, errNotJSON
	}
	return []byte(s), nil
}

// Decode reads one public value of the data into out, and reports whether it was there and had the right shape.
func (r *Reply) Decode(key string, out any) bool {
	raw, ok := r.Data[key]
	return ok && json.Unmarshal(raw, out) == nil
}
