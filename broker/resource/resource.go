// Package resource turns the YAML documents that operators write into validated roles, profiles and policies: strictly,
// with file and line, and with every fault at once. It does no I/O. docs/resources.md describes the format.
package resource

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/plugins"
)

// APIVersion is the only value of a document's apiVersion.
const APIVersion = "stint.dev/v1"

// Kind is what a document describes.
type Kind string

// The kinds of documents.
const (
	KindRole    Kind = "Role"
	KindProfile Kind = "Profile"
	KindPolicy  Kind = "Policy"
)

// Collection returns the first part of a resource's name: "roles", "profiles" or "policies"; "" for no known kind.
func (k Kind) Collection() string {
	switch k {
	case KindRole:
		return "roles"
	case KindProfile:
		return "profiles"
	case KindPolicy:
		return "policies"
	}
	return ""
}

// File is YAML text with one or more documents.
type File struct {
	Name string // for messages
	YAML string
	// Source is where the documents come from, as the ledger stores it: "api" or a file's name. Empty means Name.
	Source string
}

// Document is one resource as it was written.
type Document struct {
	Kind   Kind
	Name   string // without the collection
	YAML   string // the original text of this document alone
	Source string
	At     Position // its first line
	// Canonical is the content as JSON with sorted keys, without comments and layout.
	Canonical []byte
}

// ID returns the resource's name: "roles/orders-db-read".
func (d Document) ID() string { return d.Kind.Collection() + "/" + d.Name }

// Stored returns a document as it was stored under its ID, "roles/orders-db-read".
func Stored(id, yaml, source string) Document {
	collection, name, _ := strings.Cut(id, "/")
	d := Document{Name: name, YAML: yaml, Source: source}
	for _, k := range []Kind{KindRole, KindProfile, KindPolicy} {
		if k.Collection() == collection {
			d.Kind = k
		}
	}
	return d
}

// ETag returns the SHA-256 of the document's text in lower-case hex.
func (d Document) ETag() string {
	sum := sha256.Sum256([]byte(d.YAML))
	return hex.EncodeToString(sum[:])
}

// Position is a place in a file.
type Position struct {
	File string
	Line int // from 1; 0 where it is not known
}

// String returns "file:line".
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// Problem is one fault in a document. Its message says what was found and what would be right.
type Problem struct {
	At      Position
	Message string
}

// String returns "file:line: message".
func (p Problem) String() string { return p.At.String() + ": " + p.Message }

// Role is an operator's recipe for one kind of credential.
type Role struct {
	Name        string
	Description string // agents see it
	Backend     string // the instance: "vault/prod"
	DefaultTTL  time.Duration
	MaxTTL      time.Duration
	// Parameters are what an agent may fill, by name.
	Parameters []Parameter
	Deliver    Deliver
	// Info is what the backend said that issuing by this role means.
	Info   plugins.RoleInfo
	Plugin plugins.Role
	At     Position
}

// Parameter returns the parameter of that name.
func (r Role) Parameter(name string) (Parameter, bool) {
	for _, p := range r.Parameters {
		if p.Name == name {
			return p, true
		}
	}
	return Parameter{}, false
}

// Deliver says how `stint run` hands a credential to a command.
type Deliver struct {
	Env   map[string]string // environment variables and their templates
	With  map[string]string // environment variables that are not secret, verbatim
	Files map[string]string // file names and their templates
}

// Permit says which policy grants what a profile allows.
type Permit string

// The values of a profile's permit.
const (
	PermitCeiling Permit = "ceiling" // a generated policy profile/<name> grants all of it
	PermitNone    Permit = "none"    // only policies that somebody wrote grant anything
)

// Profile is what a kind of agent may ever ask for.
type Profile struct {
	Name        string
	Description string
	// Agents are the patterns of SPIFFE IDs. No two profiles of a Set match the same ID.
	Agents   []attestor.Pattern
	Owner    string   // technically responsible
	Sponsor  string   // the human accountable for the agents' purpose; never the owner
	Purposes []string // sorted
	Roles    []ProfileRole
	Permit   Permit

	DefaultTTL    time.Duration // of a task that asks for none
	MaxTTL        time.Duration // of a task
	IdleTimeout   time.Duration // the longest; zero where a task need not have one
	MaxLive       int           // tasks that are not CLOSED, of one agent
	MaxLiveLeases int           // leases that are not final, of one agent

	At Position
}

// ProfileRole is a role within a profile.
type ProfileRole struct {
	Name string
	// MaxTTL is the profile's bound of a credential's life; zero where the role's own is the only one.
	MaxTTL time.Duration
	// Parameters narrow the role's: a value must match both patterns.
	Parameters map[string]Pattern
	At         Position
}

// Role returns the profile's entry for a role.
func (p Profile) Role(name string) (ProfileRole, bool) {
	for _, r := range p.Roles {
		if r.Name == name {
			return r, true
		}
	}
	return ProfileRole{}, false
}

// RoleNames returns the names of the profile's roles, sorted.
func (p Profile) RoleNames() []string {
	names := make([]string, 0, len(p.Roles))
	for _, r := range p.Roles {
		names = append(names, r.Name)
	}
	return names
}

// Policy is Cedar text.
type Policy struct {
	Name        string
	Description string
	Cedar       string
	// At is the line on which the Cedar text begins.
	At Position
}
