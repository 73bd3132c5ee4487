package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/resource"
)

// The keys of a refusal's metadata.
const (
	MetaProfile    = "profile"          // the agent's profile
	MetaOwner      = "owner"            // whom to ask for more
	MetaClasses    = "classes"          // what failed: identity, purpose, role, parameter, ttl, argument, policy, limit, csr, deadline; by comma
	MetaLimit      = "limit"            // the profile's, where there are as many live tasks or leases
	MetaReasons    = "reasons"          // all reasons, where there are several; by comma
	MetaPolicies   = "policies"         // the policies that decided; by comma, empty where none permits
	MetaConditions = "conditions"       // what of the context the forbidding policies read; by comma
	MetaRoles      = "allowed_roles"    // the profile's, where a role was outside; by comma
	MetaPurposes   = "allowed_purposes" // the profile's, where the purpose was outside; by comma
	MetaNotes      = "notes"            // what else would have been shortened; by semicolon
	MetaPolicySet  = "policy_set"       // the hash of the policy set that decided
)

// refusal is one thing that stands against a request.
type refusal struct {
	reason   fault.Reason
	field    string // as the API spells it; "" for none
	problem  string // of the field; for roles and purposes outside the profile, their name
	policies []string
	cause    error
}

// refusals collects everything that stands against a request.
type refusals struct {
	profile resource.Profile
	list    []refusal
	clamps  []Clamp
}

func (r *refusals) add(f refusal) { r.list = append(r.list, f) }

func (r *refusals) argument(field, problem string) {
	r.add(refusal{reason: fault.InvalidArgument, field: field, problem: problem})
}

// precedence orders reasons: an error has one, and this is the one that the caller must mend first.
func precedence(reason fault.Reason) int {
	return slices.Index([]fault.Reason{
		fault.PurposeOutsideProfile, fault.RoleOutsideProfile, fault.RoleNotInTask, fault.InvalidArgument,
		fault.ParameterInvalid, fault.TTLTooLong, fault.PolicyError, fault.PolicyDenied,
	}, reason)
}

// class says in one word what failed.
func class(reason fault.Reason) string {
	switch reason { //nolint:exhaustive // the reasons of precedence, and no others
	case fault.PurposeOutsideProfile:
		return "purpose"
	case fault.RoleOutsideProfile, fault.RoleNotInTask:
		return "role"
	case fault.ParameterInvalid:
		return "parameter"
	case fault.TTLTooLong:
		return "ttl"
	case fault.PolicyDenied, fault.PolicyError:
		return "policy"
	default:
		return "argument"
	}
}

// err returns nil if nothing stands against the request, else one error that names everything. tail says what did not
// happen: "Nothing was created."
func (r *refusals) err(e *Engine, tail string) error {
	if len(r.list) == 0 {
		return nil
	}
	slices.SortStableFunc(r.list, func(a, b refusal) int { return cmp.Compare(precedence(a.reason), precedence(b.reason)) })
	out := fault.New(r.list[0].reason, r.message(tail))
	var classes, reasons, policies, conditions []string
	var causes []error
	for _, f := range r.list {
		if f.field != "" {
			out.Fields = append(out.Fields, fault.Field{Name: f.field, Problem: f.fieldProblem(r.profile)})
		}
		classes, reasons = append(classes, class(f.reason)), append(reasons, string(f.reason))
		policies = append(policies, f.policies...)
		causes = append(causes, f.cause)
		for _, id := range f.policies {
			st := e.byID[id]
			conditions = append(conditions, st.reads.conditions()...)
		}
	}
	out.Cause = errors.Join(causes...)
	out.Metadata = r.allowed()
	out.Metadata[MetaPolicySet] = e.hash
	out.Metadata[MetaClasses] = commas(classes)
	out.Metadata[MetaReasons] = commas(reasons)
	if slices.Contains(classes, "policy") {
		out.Metadata[MetaPolicies] = commas(policies)
		out.Metadata[MetaConditions] = commas(conditions)
	}
	return out
}

// allowed is metadata that says what the profile does allow, where something outside was asked for, and what else would
// change.
func (r *refusals) allowed() map[string]string {
	out := map[string]string{MetaProfile: r.profile.Name, MetaOwner: r.profile.Owner}
	if r.has(fault.RoleOutsideProfile) {
		out[MetaRoles] = strings.Join(r.profile.RoleNames(), ",")
	}
	if r.has(fault.PurposeOutsideProfile) {
		out[MetaPurposes] = strings.Join(r.profile.Purposes, ",")
	}
	if len(r.clamps) > 0 {
		notes := make([]string, 0, len(r.clamps))
		for _, c := range r.clamps {
			notes = append(notes, c.String())
		}
		out[MetaNotes] = strings.Join(notes, "; ")
	}
	return out
}

func (r *refusals) has(reason fault.Reason) bool {
	return slices.ContainsFunc(r.list, func(f refusal) bool { return f.reason == reason })
}

// message is one sentence for each reason, the first without naming it.
func (r *refusals) message(tail string) string {
	var parts []string
	for i := 0; i < len(r.list); {
		reason, what := r.list[i].reason, []string{}
		for ; i < len(r.list) && r.list[i].reason == reason; i++ {
			what = append(what, r.list[i].sentence())
		}
		text := strings.Join(what, ", ")
		switch reason { //nolint:exhaustive // only these say what is allowed instead
		case fault.RoleOutsideProfile:
			text += fmt.Sprintf("; profile %s allows %s", r.profile.Name, strings.Join(r.profile.RoleNames(), ", "))
		case fault.PurposeOutsideProfile:
			text += fmt.Sprintf("; profile %s allows %s", r.profile.Name, strings.Join(r.profile.Purposes, ", "))
		}
		if len(parts) > 0 {
			text = "also " + string(reason) + " " + text
		}
		parts = append(parts, text+".")
	}
	return strings.Join(append(parts, tail), " ")
}

// sentence says what stands against the request, for the message.
func (f refusal) sentence() string {
	switch f.reason { //nolint:exhaustive // these name what the profile does not hold
	case fault.RoleOutsideProfile, fault.PurposeOutsideProfile, fault.RoleNotInTask, fault.PolicyDenied, fault.PolicyError:
		return f.problem
	default:
		return f.field + " " + f.problem
	}
}

// fieldProblem says what is wrong with the field.
func (f refusal) fieldProblem(p resource.Profile) string {
	switch f.reason { //nolint:exhaustive // these have a name as their problem
	case fault.RoleOutsideProfile, fault.PurposeOutsideProfile:
		return f.problem + " is not in profile " + p.Name
	default:
		return f.problem
	}
}

// commas joins what is distinct, sorted.
func commas(list []string) string {
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ",")
}

// shown returns a name that a caller sent as it may stand in a message: as it is where it looks like one, else quoted
// and cut.
func shown(name string) string {
	ok := !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
	})
	if ok && name != "" && len(name) <= maxShown {
		return name
	}
	if len(name) > maxShown {
		name = name[:maxShown]
	}
	return strconv.QuoteToASCII(name)
}

const maxShown = 63
