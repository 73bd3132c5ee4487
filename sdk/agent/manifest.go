package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gowebpki/jcs"
)

const (
	manifestVersion = 1
	notAfterLayout  = "2006-01-02T15:04:05Z"
)

// Manifest is what a declaration asks for. Its canonical bytes are JSON by RFC 8785 (docs/manifest.md); their SHA-256 is
// what people approve and certificates carry. It never changes by clamping, so it can be computed before sending.
type Manifest struct {
	Agent       string         // the SPIFFE ID of the agent
	Purpose     string         // a short token
	Description string         // for people; "" when there is none
	NotAfter    time.Time      // the absolute deadline, in whole seconds
	RequestID   string         // the request ID of the declaration
	Roles       []ManifestRole // in any order, each name once
}

// ManifestRole is one role of a manifest.
type ManifestRole struct {
	Name       string            // the role
	Parameters map[string]string // what the declaration fixes; may be nil
	TTL        time.Duration     // in whole seconds; 0 when unset
}

type manifestJSON struct {
	Agent       string             `json:"agent"`
	Description string             `json:"description"`
	NotAfter    string             `json:"not_after"`
	Purpose     string             `json:"purpose"`
	RequestID   string             `json:"request_id"`
	Roles       []manifestRoleJSON `json:"roles"`
	Version     int                `json:"v"`
}

type manifestRoleJSON struct {
	Name       string            `json:"name"`
	Parameters map[string]string `json:"parameters"`
	TTLSeconds int64             `json:"ttl_seconds"`
}

// Canonical returns the bytes that are hashed. A deadline or TTL with a part of a second, a role that stands twice, or
// text that is not UTF-8 is an error.
func (m Manifest) Canonical() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	doc := manifestJSON{
		Agent: m.Agent, Description: m.Description, NotAfter: m.NotAfter.UTC().Format(notAfterLayout),
		Purpose: m.Purpose, RequestID: m.RequestID, Roles: make([]manifestRoleJSON, 0, len(m.Roles)), Version: manifestVersion,
	}
	for _, r := range m.Roles {
		role := manifestRoleJSON{Name: r.Name, Parameters: r.Parameters, TTLSeconds: int64(r.TTL / time.Second)}
		if role.Parameters == nil {
			role.Parameters = map[string]string{}
		}
		doc.Roles = append(doc.Roles, role)
	}
	slices.SortFunc(doc.Roles, func(a, b manifestRoleJSON) int { return strings.Compare(a.Name, b.Name) })
	plain, err := json.Marshal(doc)
	if err != nil {
		return nil, invalid("manifest: %v", err)
	}
	canonical, err := jcs.Transform(plain)
	if err != nil {
		return nil, invalid("manifest: %v", err)
	}
	return canonical, nil
}

// SHA256 returns the hash of the canonical bytes in lower-case hex, as Task.manifest_sha256 has it.
func (m Manifest) SHA256() (string, error) {
	canonical, err := m.Canonical()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}

func (m Manifest) check() error {
	if m.NotAfter.IsZero() || !m.NotAfter.Equal(m.NotAfter.Truncate(time.Second)) {
		return invalid("not_after must be an instant of whole seconds")
	}
	seen := make(map[string]bool, len(m.Roles))
	texts := []string{m.Agent, m.Purpose, m.Description, m.RequestID}
	for _, r := range m.Roles {
		if seen[r.Name] {
			return invalid("role %s stands twice", r.Name)
		}
		seen[r.Name] = true
		if r.TTL < 0 || r.TTL%time.Second != 0 {
			return invalid("ttl of role %s must be whole seconds, not %s", r.Name, r.TTL)
		}
		for k, v := range r.Parameters {
			texts = append(texts, k, v)
		}
		texts = append(texts, r.Name)
	}
	if slices.ContainsFunc(texts, func(s string) bool { return !utf8.ValidString(s) }) {
		return invalid("text must be UTF-8")
	}
	return nil
}
