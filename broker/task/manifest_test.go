package task_test

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/task"
)

// vectors is docs/manifest-vectors.json, which was not made by this code.
type vectors struct {
	Vectors []struct {
		Name     string `json:"name"`
		Manifest struct {
			task.Manifest

			NotAfter time.Time `json:"not_after"`
		} `json:"manifest"`
		Canonical string    `json:"canonical"`
		SHA256    task.Hash `json:"sha256"`
	} `json:"vectors"`
}

func TestManifestVectors(t *testing.T) {
	raw, err := os.ReadFile("../../docs/manifest-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var file vectors
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 5 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			m := v.Manifest.Manifest
			m.NotAfter = v.Manifest.NotAfter
			canonical, err := m.Canonical()
			if diff := cmp.Diff(v.Canonical, string(canonical)); err != nil || diff != "" {
				t.Errorf("canonical bytes: %v (-want +got):\n%s", err, diff)
			}
			if got, err := m.Hash(); err != nil || got != v.SHA256 {
				t.Errorf("hash %s, %v; want %s", got, err, v.SHA256)
			}
		})
	}
}

func manifest() task.Manifest {
	return task.Manifest{
		Agent: "spiffe://example.org/a", Purpose: "p", RequestID: "r",
		NotAfter: time.Date(2026, 3, 1, 10, 28, 0, 0, time.UTC),
		Roles: []task.ManifestRole{
			{Name: "b", TTLSeconds: 1}, {Name: "a", Parameters: map[string]string{"x": "1", "y": "2"}},
		},
	}
}

// What does not belong to the declaration does not change the hash: the order of roles, a zone, part of a second.
func TestManifestSame(t *testing.T) {
	want, err := manifest().Hash()
	if err != nil {
		t.Fatal(err)
	}
	other := manifest()
	slices.Reverse(other.Roles)
	other.NotAfter = other.NotAfter.Add(999 * time.Millisecond).In(time.FixedZone("x", 3600))
	other.Roles[1].Parameters = map[string]string{}
	if got, err := other.Hash(); err != nil || got != want {
		t.Errorf("hash %s, %v; want %s", got, err, want)
	}
	if other.Roles[0].Name != "a" || manifest().Roles[1].Name != "a" {
		t.Error("the caller's roles were sorted")
	}
}

// Whatever does belong to it does.
func TestManifestDiffers(t *testing.T) {
	want, err := manifest().Hash()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*task.Manifest){
		"agent":       func(m *task.Manifest) { m.Agent += "x" },
		"purpose":     func(m *task.Manifest) { m.Purpose += "x" },
		"description": func(m *task.Manifest) { m.Description += "x" },
		"request id":  func(m *task.Manifest) { m.RequestID += "x" },
		"deadline":    func(m *task.Manifest) { m.NotAfter = m.NotAfter.Add(time.Second) },
		"a role less": func(m *task.Manifest) { m.Roles = m.Roles[1:] },
		"role name":   func(m *task.Manifest) { m.Roles[0].Name += "x" },
		"role ttl":    func(m *task.Manifest) { m.Roles[0].TTLSeconds++ },
		"parameter":   func(m *task.Manifest) { m.Roles[1].Parameters["x"] = "2" },
		"parameters":  func(m *task.Manifest) { delete(m.Roles[1].Parameters, "x") },
	} {
		m := manifest()
		change(&m)
		if got, err := m.Hash(); err != nil || got == want {
			t.Errorf("%s does not count: %v", name, err)
		}
	}
}

// Canonical bytes are canonical: decoded and encoded by anybody else's JSON, they say the same.
func TestManifestIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := manifest()
		m.Description = rapid.String().Draw(t, "description")
		m.Roles[0].Parameters = rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "parameters")
		b, err := m.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		var back task.Manifest
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if back.Description != m.Description || back.Roles[1].Name != "b" {
			t.Fatalf("came back as %+v", back)
		}
		if diff := cmp.Diff(m.Roles[0].Parameters, back.Roles[1].Parameters); diff != "" {
			t.Fatal(diff)
		}
	})
}
