package task

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gowebpki/jcs"
)

// Manifest is a declaration as it was asked for, never as it was clamped. A client can compute its hash before it sends
// anything; docs/manifest.md states the format, docs/manifest-vectors.json holds vectors.
type Manifest struct {
	Agent       string         `json:"agent"` // SPIFFE ID
	Purpose     string         `json:"purpose"`
	Description string         `json:"description"`
	Roles       []ManifestRole `json:"roles"`
	NotAfter    time.Time      `json:"-"` // whole seconds
	RequestID   string         `json:"request_id"`
}

// ManifestRole is one role asked for.
type ManifestRole struct {
	Name       string            `json:"name"`
	Parameters map[string]string `json:"parameters"`
	// TTLSeconds is what was asked for; 0 where nothing was.
	TTLSeconds int64 `json:"ttl_seconds"`
}

// Canonical returns the manifest's canonical bytes: JCS (RFC 8785) JSON with the roles sorted by name and the deadline
// as RFC 3339 in UTC with whole seconds.
func (m Manifest) Canonical() ([]byte, error) {
	roles := slices.Clone(m.Roles)
	slices.SortFunc(roles, func(a, b ManifestRole) int { return strings.Compare(a.Name, b.Name) })
	for i := range roles {
		if roles[i].Parameters == nil {
			roles[i].Parameters = map[string]string{}
		}
	}
	if roles == nil {
		roles = []ManifestRole{}
	}
	m.Roles = roles
	doc := struct {
		Manifest
		NotAfter string `json:"not_after"`
		V        int    `json:"v"`
	}{m, m.NotAfter.UTC().Truncate(time.Second).Format(time.RFC3339), 1}
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return jcs.Transform(raw)
}

// Hash returns the SHA-256 of the canonical bytes: what certificates carry and receipts name.
func (m Manifest) Hash() (Hash, error) {
	b, err := m.Canonical()
	return sha256.Sum256(b), err
}
