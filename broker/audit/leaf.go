package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gowebpki/jcs"

	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// leaf is a Record with its fields in the order of RFC 8785 (sorted by name), so that encoding/json writes the canonical
// form at once: 5 times faster than to sort afterwards. A test holds it against Record and against jcs.Transform.
type leaf struct {
	Actor     Actor                `json:"actor"`
	Agent     string               `json:"agent,omitempty"`
	Backend   string               `json:"backend,omitempty"`
	Count     int64                `json:"count,omitempty"`
	Etag      string               `json:"etag,omitempty"`
	Event     Event                `json:"event"`
	Hashes    map[string]task.Hash `json:"hashes,omitempty"`
	Lease     string               `json:"lease,omitempty"`
	Manifest  *task.Hash           `json:"manifest,omitempty"`
	NotAfter  time.Time            `json:"not_after,omitzero"`
	Owner     string               `json:"owner,omitempty"`
	Policies  []string             `json:"policies,omitempty"`
	PolicySet string               `json:"policy_set,omitempty"`
	Profile   string               `json:"profile,omitempty"`
	Proof     *leafProof           `json:"proof,omitempty"`
	Purpose   string               `json:"purpose,omitempty"`
	Reason    string               `json:"reason,omitempty"`
	Ref       string               `json:"ref,omitempty"`
	Request   string               `json:"request,omitempty"`
	Resource  string               `json:"resource,omitempty"`
	Restore   *Restore             `json:"restore,omitempty"`
	Role      string               `json:"role,omitempty"`
	Roles     []string             `json:"roles,omitempty"`
	Sponsor   string               `json:"sponsor,omitempty"`
	Summary   *leafSummary         `json:"summary,omitempty"`
	Task      string               `json:"task,omitempty"`
	TaskName  string               `json:"task_name,omitempty"`
	Time      time.Time            `json:"time"`
	V         int                  `json:"v"`
}

type leafProof struct {
	At             time.Time     `json:"at"`
	Detail         string        `json:"detail,omitempty"`
	Kind           plugins.Proof `json:"kind"`
	UncheckedUntil time.Time     `json:"unchecked_until,omitzero"`
	UsableUntil    time.Time     `json:"usable_until,omitzero"`
}

type leafSummary struct {
	ByProof        map[plugins.Proof]int `json:"by_proof,omitempty"`
	Final          int                   `json:"final"`
	Leases         int                   `json:"leases"`
	Stuck          int                   `json:"stuck"`
	UncheckedUntil time.Time             `json:"unchecked_until,omitzero"`
	UsableUntil    time.Time             `json:"usable_until,omitzero"`
}

// Encode makes the leaf of a record at its index: canonical JSON, with free text replaced by salted hashes. The texts and
// their salts, which are fresh, are returned for keeping beside the log.
func Encode(r Record, index int64) (Entry, []Text, error) {
	texts, err := saltTexts(&r, index)
	if err != nil {
		return Entry{}, nil, err
	}
	r.V = 1
	raw, err := canonical(r)
	if err != nil {
		return Entry{}, nil, fmt.Errorf("encode %s record: %w", r.Event, err)
	}
	return Entry{Index: index, JSON: raw, Event: r.Event, Task: r.Task}, texts, nil
}

// saltTexts moves free text out of a record.
func saltTexts(r *Record, index int64) ([]Text, error) {
	if len(r.Texts) == 0 {
		return nil, nil
	}
	hashes := maps.Clone(r.Hashes)
	if hashes == nil {
		hashes = make(map[string]task.Hash, len(r.Texts))
	}
	texts := make([]Text, 0, len(r.Texts))
	for _, field := range slices.Sorted(maps.Keys(r.Texts)) {
		t := Text{Index: index, Field: field, Text: r.Texts[field]}
		if _, err := rand.Read(t.Salt[:]); err != nil {
			return nil, fmt.Errorf("salt %s: %w", field, err)
		}
		hashes[field] = HashOf(t.Salt, t.Text)
		texts = append(texts, t)
	}
	r.Hashes, r.Texts = hashes, nil
	return texts, nil
}

// canonical returns the RFC 8785 form of a record.
func canonical(r Record) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(leafOf(r)); err != nil {
		return nil, err
	}
	raw := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if plain(raw) {
		return raw, nil
	}
	return jcs.Transform(raw)
}

// plain reports whether the JSON is free of escapes and of characters outside ASCII, where encoding/json and RFC 8785
// could differ.
func plain(raw []byte) bool {
	for _, c := range raw {
		if c >= 0x80 || c == '\\' {
			return false
		}
	}
	return true
}

// leafOf copies a record in canonical order. Times are written in UTC.
func leafOf(r Record) leaf {
	l := leaf{
		Actor: r.Actor, Agent: r.Agent, Backend: r.Backend, Count: r.Count, Etag: r.Etag, Event: r.Event,
		Hashes: r.Hashes, Lease: r.Lease, Manifest: r.Manifest, NotAfter: r.NotAfter.UTC(), Owner: r.Owner,
		Policies: r.Policies, PolicySet: r.PolicySet, Profile: r.Profile, Purpose: r.Purpose, Reason: r.Reason,
		Ref: r.Ref, Request: r.Request, Resource: r.Resource, Role: r.Role, Roles: r.Roles, Sponsor: r.Sponsor,
		Task: r.Task, TaskName: r.TaskName, Time: r.Time.UTC(), V: r.V,
	}
	if r.Restore != nil {
		restore := *r.Restore
		restore.At = restore.At.UTC()
		l.Restore = &restore
	}
	if p := r.Proof; p != nil {
		l.Proof = &leafProof{
			At: p.At.UTC(), Detail: p.Detail, Kind: p.Kind,
			UncheckedUntil: p.UncheckedUntil.UTC(), UsableUntil: p.UsableUntil.UTC(),
		}
	}
	if s := r.Summary; s != nil {
		l.Summary = &leafSummary{
			ByProof: s.ByProof, Final: s.Final, Leases: s.Leases, Stuck: s.Stuck,
			UncheckedUntil: s.UncheckedUntil.UTC(), UsableUntil: s.UsableUntil.UTC(),
		}
	}
	return l
}
