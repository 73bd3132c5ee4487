package resource

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/stint-dev/stint/plugins"
)

// Set is a complete, valid set of resources. It is immutable; the zero value is empty. Callers must not change what
// its slices and maps hold.
type Set struct {
	docs     []Document // by ID
	roles    []Role     // by name
	profiles []Profile  // by name
	policies []Policy   // by name
	warnings []string
}

// Remember returns a set that was valid once, of documents as they were stored. It is for Diff alone: nothing of it is checked,
// and it holds no roles, profiles or policies.
func Remember(docs ...Document) Set {
	docs = slices.Clone(docs)
	slices.SortFunc(docs, func(a, b Document) int { return strings.Compare(a.ID(), b.ID()) })
	return Set{docs: docs}
}

// Backends are the configured plugin instances by name, such as "vault/prod".
type Backends map[string]plugins.Backend

// Documents returns the documents by ID.
func (s Set) Documents() []Document { return s.docs }

// Document returns the document of an ID such as "roles/orders-db-read".
func (s Set) Document(id string) (Document, bool) {
	i, ok := slices.BinarySearchFunc(s.docs, id, func(d Document, id string) int { return strings.Compare(d.ID(), id) })
	if !ok {
		return Document{}, false
	}
	return s.docs[i], true
}

// Roles returns the roles by name.
func (s Set) Roles() []Role { return s.roles }

// Role returns a role.
func (s Set) Role(name string) (Role, bool) {
	i, ok := slices.BinarySearchFunc(s.roles, name, func(r Role, name string) int { return strings.Compare(r.Name, name) })
	if !ok {
		return Role{}, false
	}
	return s.roles[i], true
}

// Profiles returns the profiles by name.
func (s Set) Profiles() []Profile { return s.profiles }

// Policies returns the policies by name.
func (s Set) Policies() []Policy { return s.policies }

// Warnings returns what is valid but likely not meant.
func (s Set) Warnings() []string { return s.warnings }

// Hash returns the SHA-256 in lower-case hex of all content, by ID, without comments and layout.
func (s Set) Hash() string {
	h := sha256.New()
	for _, d := range s.docs {
		for _, part := range [][]byte{[]byte(d.ID()), d.Canonical} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Action is what becomes of one resource. The values are those of the API.
type Action string

// The actions.
const (
	Created   Action = "created"
	Updated   Action = "updated"
	Unchanged Action = "unchanged"
	Deleted   Action = "deleted"
)

// Change is what applying does to one resource.
type Change struct {
	ID     string // "roles/orders-db-read"
	Action Action
}

// Diff returns what leads from one set to another, by ID, unchanged resources included. Text and source are compared,
// so a changed comment is an update.
func Diff(from, to Set) []Change {
	var out []Change
	for _, d := range to.docs {
		old, ok := from.Document(d.ID())
		switch {
		case !ok:
			out = append(out, Change{d.ID(), Created})
		case old.YAML != d.YAML || old.Source != d.Source:
			out = append(out, Change{d.ID(), Updated})
		default:
			out = append(out, Change{d.ID(), Unchanged})
		}
	}
	for _, d := range from.docs {
		if _, ok := to.Document(d.ID()); !ok {
			out = append(out, Change{d.ID(), Deleted})
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.ID, b.ID) })
	return out
}
