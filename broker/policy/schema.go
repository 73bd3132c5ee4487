package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
)

// The entity types of policies.
const (
	typeAgent   cedar.EntityType = "Stint::Agent"
	typeProfile cedar.EntityType = "Stint::Profile"
	typeRole    cedar.EntityType = "Stint::Role"
	typeBackend cedar.EntityType = "Stint::Backend"
	typeAction  cedar.EntityType = "Stint::Action"
)

// maxSegments is how many segments of an agent's path are attributes of their own: segment1 to segment8.
const maxSegments = 8

// Schema returns the Cedar schema by which the policies of a set are checked. The parameters that context.parameters can
// hold are those of the set's roles, so a misspelt one is caught.
func Schema(set resource.Set) string {
	var params, segments strings.Builder
	for _, name := range parameterNames(set) {
		fmt.Fprintf(&params, "\t\t\t%s?: String,\n", strconv.Quote(name))
	}
	for i := range maxSegments {
		fmt.Fprintf(&segments, "\t\t%s?: String,\n", segmentAttr(i))
	}
	return fmt.Sprintf(schemaText, segments.String(), params.String())
}

const schemaText = `namespace Stint {
	// What a kind of agent may ever ask for.
	entity Profile { name: String };
	// An agent, named by its SPIFFE ID.
	entity Agent in [Profile] {
		id: String,           // spiffe://example.org/agent/invoice/eu1
		trust_domain: String, // example.org
		path: String,         // /agent/invoice/eu1
		name: String,         // eu1, the last segment
		depth: Long,          // 3, the number of segments
%s	};
	// A configured plugin instance.
	entity Backend { name: String, type: String };
	// A recipe for one kind of credential. ends: "revocable", "lapsing" or "never".
	entity Role in [Backend] { name: String, ends: String };
	// Asked when a task is declared, of each of its roles, and again when a credential is issued.
	action "issue" appliesTo {
		principal: [Agent],
		resource: [Role],
		context: {
			purpose: String,       // the task's, one of the profile's
			ttl: duration,         // how long the credential would live
			exposure?: duration,   // absent where it has no bound
			until_expiry: Bool,    // relying parties that check no revocation accept it until it expires
			method: String,        // "x509-svid" or "jwt-svid"
			svid_age: duration,    // since the SVID was issued
			held: Set<Role>,       // what the agent holds, and what else it declares
			time: datetime,
			parameters: {
%s			},
		},
	};
}
`

// newValidator makes the strict validator of a schema.
func newValidator(text string) (*validate.Validator, error) {
	var s schema.Schema
	if err := s.UnmarshalCedar([]byte(text)); err != nil {
		return nil, fmt.Errorf("read the schema: %w", err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolve the schema: %w", err)
	}
	return validate.New(resolved, validate.WithStrict()), nil
}

func parameterNames(set resource.Set) []string {
	names := map[string]bool{}
	for _, r := range set.Roles() {
		for _, p := range r.Parameters {
			names[p.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// entities returns what policies can know of profiles, roles and backends.
func entities(set resource.Set) cedar.EntityMap {
	out := cedar.EntityMap{}
	add := func(uid cedar.EntityUID, attrs cedar.RecordMap, parents ...cedar.EntityUID) {
		out[uid] = cedar.Entity{UID: uid, Attributes: cedar.NewRecord(attrs), Parents: cedar.NewEntityUIDSet(parents...)}
	}
	for _, p := range set.Profiles() {
		add(profileUID(p.Name), cedar.RecordMap{"name": cedar.String(p.Name)})
	}
	for _, r := range set.Roles() {
		kind, _, _ := strings.Cut(r.Backend, "/")
		add(backendUID(r.Backend), cedar.RecordMap{"name": cedar.String(r.Backend), "type": cedar.String(kind)})
		add(roleUID(r.Name), cedar.RecordMap{"name": cedar.String(r.Name), "ends": ends(r.Info.Ends)}, backendUID(r.Backend))
	}
	return out
}

// segmentAttr names the attribute of a segment of an agent's path, counted from 0: "segment1".
func segmentAttr(i int) string { return "segment" + strconv.Itoa(i+1) }

// agentAttrs are the attributes of an agent's entity.
func agentAttrs() []string {
	names := []string{"id", "trust_domain", "path", "name", "depth"}
	for i := range maxSegments {
		names = append(names, segmentAttr(i))
	}
	return names
}

func ends(e plugins.Ends) cedar.String {
	switch e {
	case plugins.EndsRevocable:
		return "revocable"
	case plugins.EndsLapsing:
		return "lapsing"
	case plugins.EndsNever, plugins.EndsUnknown:
	}
	return "never"
}

func roleUID(name string) cedar.EntityUID { return cedar.NewEntityUID(typeRole, cedar.String(name)) }

func profileUID(name string) cedar.EntityUID {
	return cedar.NewEntityUID(typeProfile, cedar.String(name))
}

func backendUID(name string) cedar.EntityUID {
	return cedar.NewEntityUID(typeBackend, cedar.String(name))
}
func actionUID() cedar.EntityUID { return cedar.NewEntityUID(typeAction, "issue") }
