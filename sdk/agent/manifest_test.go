package agent_test

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stint-dev/stint/sdk/agent"
)

func TestManifestCanonical(t *testing.T) {
	t.Parallel()
	m := agent.Manifest{
		Agent: "spiffe://example.org/agent/invoice/eu1", Purpose: "reconcile-invoices", Description: "November & \"more\" \u20ac",
		NotAfter:  time.Date(2026, 11, 23, 11, 0, 0, 0, time.FixedZone("CET", 3600)),
		RequestID: "AAAAAAAAAAAAAAAAAAAAAAAA",
		Roles: []agent.ManifestRole{
			{Name: "orders-db-read", Parameters: map[string]string{"schema": "<eu>", "b": "1"}, TTL: 15 * time.Minute},
			{Name: "ledger-api"},
		},
	}
	const want = `{"agent":"spiffe://example.org/agent/invoice/eu1","description":"November & \"more\" €","not_after":"2026-11-23T10:00:00Z",` +
		`"purpose":"reconcile-invoices","request_id":"AAAAAAAAAAAAAAAAAAAAAAAA","roles":[{"name":"ledger-api","parameters":{},"ttl_seconds":0},` +
		`{"name":"orders-db-read","parameters":{"b":"1","schema":"<eu>"},"ttl_seconds":900}],"v":1}`
	got, err := m.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("canonical bytes\n%s\nwant\n%s", got, want)
	}
}

func TestManifestRefuses(t *testing.T) {
	t.Parallel()
	good := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for name, m := range map[string]agent.Manifest{
		"no deadline":                 {},
		"deadline within a second":    {NotAfter: good.Add(time.Millisecond)},
		"ttl within a second":         {NotAfter: good, Roles: []agent.ManifestRole{{Name: "a", TTL: 1500 * time.Millisecond}}},
		"negative ttl":                {NotAfter: good, Roles: []agent.ManifestRole{{Name: "a", TTL: -time.Second}}},
		"the same role twice":         {NotAfter: good, Roles: []agent.ManifestRole{{Name: "a"}, {Name: "a"}}},
		"a description not UTF-8":     {NotAfter: good, Description: "\xff"},
		"a parameter value not UTF-8": {NotAfter: good, Roles: []agent.ManifestRole{{Name: "a", Parameters: map[string]string{"p": "\xff"}}}},
	} {
		if _, err := m.SHA256(); !errors.Is(err, agent.ErrUsage) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestManifestVectors reads the vectors that other languages reproduce, and so agrees with the broker.
func TestManifestVectors(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/manifest-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name     string `json:"name"`
			Manifest struct {
				Agent       string    `json:"agent"`
				Description string    `json:"description"`
				NotAfter    time.Time `json:"not_after"`
				Purpose     string    `json:"purpose"`
				RequestID   string    `json:"request_id"`
				Roles       []struct {
					Name       string            `json:"name"`
					Parameters map[string]string `json:"parameters"`
					TTL        int64             `json:"ttl_seconds"`
				} `json:"roles"`
			} `json:"manifest"`
			Canonical string `json:"canonical"`
			SHA256    string `json:"sha256"`
		} `json:"vectors"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range file.Vectors {
		m := agent.Manifest{
			Agent: v.Manifest.Agent, Purpose: v.Manifest.Purpose, Description: v.Manifest.Description,
			NotAfter: v.Manifest.NotAfter, RequestID: v.Manifest.RequestID,
		}
		for _, r := range v.Manifest.Roles {
			m.Roles = append(m.Roles, agent.ManifestRole{Name: r.Name, Parameters: r.Parameters, TTL: time.Duration(r.TTL) * time.Second})
		}
		if canonical, err := m.Canonical(); err != nil || string(canonical) != v.Canonical {
			t.Errorf("%s: canonical bytes\n%s, %v, want\n%s", v.Name, canonical, err, v.Canonical)
		}
		if got, err := m.SHA256(); err != nil || got != v.SHA256 {
			t.Errorf("%s: %s, %v, want %s", v.Name, got, err, v.SHA256)
		}
	}
}
