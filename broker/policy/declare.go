package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
)

// Declare decides about a whole declaration: all of it, or a [*fault.Error] that names all faults at once. The policies
// are asked as if each role were issued now.
func (e *Engine) Declare(in DeclareInput) (TaskDecision, error) {
	profile, err := e.admit(in.Identity, in.Now)
	if err != nil {
		return TaskDecision{}, err
	}
	d := &declaration{engine: e, in: in, refusals: refusals{profile: profile}}
	d.readTimes()
	d.checkPurpose(in.Purpose)
	for i := range in.Roles {
		d.decideRole(i)
	}
	if err := d.err(e, "Nothing was created."); err != nil {
		return TaskDecision{}, err
	}
	d.out.valid, d.out.profile, d.out.clamps, d.out.policySet = true, profile, d.clamps, e.hash
	slices.SortFunc(d.out.grants, func(a, b task.Grant) int { return strings.Compare(a.Role, b.Role) })
	return d.out, nil
}

// admit returns the profile of an identity that is complete and valid now. Nothing that was not attested is made up: an
// SVID without a beginning would otherwise have the age of a fresh one.
func (e *Engine) admit(id attestor.Identity, now time.Time) (resource.Profile, error) {
	if now.IsZero() {
		return resource.Profile{}, fault.Wrap(fault.Internal, "internal error", errors.New("decide without a time"))
	}
	known := id.Method == attestor.MethodX509 || id.Method == attestor.MethodJWT
	if !known || id.ID.IsZero() || id.NotBefore.IsZero() || id.NotAfter.IsZero() {
		return resource.Profile{}, fault.New(fault.Unauthenticated, "an agent is known by its SVID alone")
	}
	if err := id.CheckTime(now); err != nil {
		reason := fault.Unauthenticated
		if errors.Is(err, attestor.ErrExpired) {
			reason = fault.SVIDExpired
		}
		return resource.Profile{}, fault.Wrap(reason, publicText(err), err)
	}
	profile, ok := e.Profile(id.ID)
	if !ok {
		return resource.Profile{}, fault.New(fault.NoProfile, "no profile names "+id.ID.String()).
			With(MetaPolicySet, e.hash).With(MetaClasses, "identity")
	}
	return profile, nil
}

// publicText is what an attestor's error says to the caller.
func publicText(err error) string {
	if e, ok := errors.AsType[*attestor.Error](err); ok {
		return e.Message
	}
	return "the SVID is not valid now"
}

// checkPurpose refuses a purpose that the profile does not list.
func (r *refusals) checkPurpose(purpose string) {
	if !slices.Contains(r.profile.Purposes, purpose) {
		r.add(refusal{reason: fault.PurposeOutsideProfile, field: "purpose", problem: shown(purpose)})
	}
}

// declaration is one declaration while it is decided about.
type declaration struct {
	refusals
	engine *Engine
	in     DeclareInput
	out    TaskDecision
	length time.Duration // the task's, nominally
}

// readTimes decides when the task ends and how long it may be idle.
func (d *declaration) readTimes() {
	in, p := d.in, d.profile
	field, asked := "ttl", in.TTL
	if !in.NotAfter.IsZero() {
		if in.TTL != 0 {
			d.argument("ttl", "cannot be given together with not_after")
		}
		field = "not_after"
		until := in.NotAfter.Truncate(time.Second).Sub(in.Now)
		if asked = until.Round(time.Second); until < shortest {
			d.argument("not_after", fmt.Sprintf("must be at least %s from now, %s", shortest, in.Now.UTC().Format(time.RFC3339)))
			asked = 0
		}
	}
	mode, ok := d.asked(field, asked, in.Strict)
	if !ok {
		asked = p.DefaultTTL
	}
	d.length = d.clamp(field, asked, mode, limit{p.MaxTTL, "profile " + p.Name})
	d.out.notAfter, d.out.asked = end(in.Now, d.length), end(in.Now, asked)
	if ok && field == "not_after" {
		d.out.asked = in.NotAfter.UTC().Truncate(time.Second)
		d.out.notAfter = earlier(d.out.asked, end(in.Now, p.MaxTTL))
	}

	idle := in.IdleTimeout
	mode, ok = d.asked("idle_timeout", idle, in.Strict)
	if !ok {
		idle = p.IdleTimeout
	}
	d.out.idle = d.clamp("idle_timeout", idle, mode, limit{p.IdleTimeout, "profile " + p.Name})
}

// decideRole decides about one role, and adds a grant or what stands against it.
func (d *declaration) decideRole(i int) {
	in := d.in.Roles[i]
	field := fmt.Sprintf("roles[%d]", i)
	before := len(d.list)
	if slices.ContainsFunc(d.in.Roles[:i], func(r RoleInput) bool { return r.Role == in.Role }) {
		d.argument(field+".role", shown(in.Role)+" is asked for twice")
		return
	}
	role, narrow, ok := d.engine.within(d.profile, in.Role)
	if !ok {
		d.add(refusal{reason: fault.RoleOutsideProfile, field: field + ".role", problem: shown(in.Role)})
		return
	}
	params := paramCheck{role: role, narrow: narrow, given: in.Params, field: field + ".parameters"}.check(&d.refusals)
	ttl := in.TTL
	mode, ok := d.asked(field+".ttl", ttl, d.in.Strict)
	if !ok {
		ttl = role.DefaultTTL
	}
	ttl = d.clamp(field+".ttl", ttl, mode, limit{role.MaxTTL, "role " + role.Name},
		limit{narrow.MaxTTL, "profile " + d.profile.Name}, limit{d.length, "the task's end"})
	if len(d.list) > before || d.has(fault.PurposeOutsideProfile) {
		return // the policies would be asked something that cannot be
	}
	v := d.engine.evaluate(question{
		identity: d.in.Identity, profile: d.profile.Name, role: role, purpose: d.in.Purpose, ttl: ttl, params: params,
		open: len(params) < len(role.Parameters), held: d.held(in.Role), now: d.in.Now,
	})
	if d.verdict(v, field+".role", role.Name) {
		d.out.grants = append(d.out.grants, task.Grant{
			Role: role.Name, TTL: ttl, Params: params, Policies: v.policies, Exposure: role.Info.Exposure,
		})
	}
}

// held is what the agent holds and what else it declares, as if the rest had been issued already.
func (d *declaration) held(role string) []string {
	held := slices.Clone(d.in.Held)
	for _, r := range d.in.Roles {
		if r.Role != role {
			held = append(held, r.Role)
		}
	}
	return held
}

// within returns a role and the profile's entry for it. A role that there is not and one that the profile does not list
// are the same.
func (e *Engine) within(p resource.Profile, name string) (resource.Role, resource.ProfileRole, bool) {
	entry, listed := p.Role(name)
	role, exists := e.set.Role(name)
	return role, entry, listed && exists
}

// verdict reports whether the policies allow, and adds their refusal.
func (r *refusals) verdict(v verdict, field, role string) bool {
	switch {
	case v.err != nil:
		r.add(refusal{
			reason: fault.PolicyError, field: field, policies: v.policies, cause: v.err,
			problem: strings.Join(v.policies, ", ") + " could not be evaluated for " + role + ", which denies",
		})
		return false
	case v.allow:
		return true
	case len(v.policies) > 0:
		r.add(refusal{
			reason: fault.PolicyDenied, field: field, policies: v.policies,
			problem: role + " is forbidden by " + strings.Join(v.policies, ", "),
		})
		return false
	}
	r.add(refusal{reason: fault.PolicyDenied, field: field, problem: "no policy permits " + role})
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
