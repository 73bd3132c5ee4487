package policy

import (
	"strings"
	"time"

	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/task"
)

// Issue decides about one credential of a task by the set in force now, or returns a [*fault.Error]. The declaration's
// grant is a ceiling too: nothing that was decided then can grow.
func (e *Engine) Issue(in IssueInput) (Decision, error) {
	profile, err := e.admit(in.Identity, in.Now)
	if err != nil {
		return Decision{}, err
	}
	if err = checkTask(in); err != nil {
		return Decision{}, err
	}
	r := &refusals{profile: profile}
	r.checkPurpose(in.Task.Purpose)
	grant, granted := in.Task.Grant(in.Role)
	role, narrow, inside := e.within(profile, in.Role)
	switch {
	case !granted:
		r.add(refusal{reason: fault.RoleNotInTask, field: "role", problem: shown(in.Role) + "; the task has " + grantNames(in.Task)})
	case !inside:
		r.add(refusal{reason: fault.RoleOutsideProfile, field: "role", problem: shown(in.Role)})
	}
	if err = r.err(e, nothingIssued); err != nil {
		return Decision{}, err
	}
	params := paramCheck{
		role: role, narrow: narrow, fixed: grant.Params, given: in.Params, field: "parameters", complete: true,
	}.check(r)
	ttl := in.TTL
	mode, asked := r.asked("ttl", ttl, false)
	if !asked {
		ttl = grant.TTL
	}
	left := in.Task.NotAfter.Sub(in.Now).Truncate(time.Second)
	ttl = r.clamp("ttl", ttl, mode, limit{grant.TTL, "the task's grant"}, limit{role.MaxTTL, "role " + role.Name},
		limit{narrow.MaxTTL, "profile " + profile.Name}, limit{left, "the task's end"})
	if err = r.err(e, nothingIssued); err != nil {
		return Decision{}, err
	}
	v := e.evaluate(question{
		identity: in.Identity, profile: profile.Name, role: role, purpose: in.Task.Purpose, ttl: ttl, params: params,
		held: in.Held, now: in.Now,
	})
	if !r.verdict(v, "role", role.Name) {
		return Decision{}, r.err(e, nothingIssued)
	}
	return Decision{
		valid: true, profile: profile, role: role, task: in.Task, params: params, ttl: ttl,
		notAfter: earlier(end(in.Now, ttl), in.Task.NotAfter), clamps: r.clamps, policies: v.policies, policySet: e.hash,
	}, nil
}

const nothingIssued = "Nothing was issued."

// checkTask refuses a task that is somebody else's, is not ACTIVE, or has less than a second left.
func checkTask(in IssueInput) error {
	switch t := in.Task; {
	case t.Agent == "" || t.Agent != in.Identity.ID.String():
		return fault.New(fault.NotFound, "no such task")
	case t.State != task.Active:
		return fault.New(fault.TaskClosed, "the task is "+strings.ToLower(string(t.State)))
	case !in.Now.Before(t.NotAfter):
		return fault.New(fault.TaskExpired, "the task ended at "+t.NotAfter.UTC().Format(time.RFC3339))
	case t.NotAfter.Sub(in.Now) < shortest:
		return fault.New(fault.DeadlineTooClose, "the task ends at "+t.NotAfter.UTC().Format(time.RFC3339)).With(MetaClasses, "deadline")
	}
	return nil
}

func grantNames(t task.Task) string {
	if len(t.Grants) == 0 {
		return "none"
	}
	names := make([]string, 0, len(t.Grants))
	for _, g := range t.Grants {
		names = append(names, g.Role)
	}
	return strings.Join(names, ", ")
}
