package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const hashDigits = 12

// taskTable writes one task for people.
func taskTable(w io.Writer, task *stintv1.Task, leases []*stintv1.Lease, now time.Time) error {
	t := render.NewTable()
	t.Row("Task", fmt.Sprintf("%s  (%s)    State  %s", task.GetShortName(), bareTask(task.GetName()), state(task, now)))
	if task.GetDescription() != "" {
		t.Row("About", task.GetDescription())
	}
	t.Row("Agent", join(task.GetAgent(), "profile "+task.GetProfile(), labelled("owner", task.GetOwner()), labelled("sponsor", task.GetSponsor())))
	t.Row("Manifest", "sha256:"+task.GetManifestSha256()+"    Last seen  "+lastSeen(task, now))
	t.Row("Decision", fmt.Sprintf("allowed by %s, policy set %s   audit %d", strings.Join(policies(task), ", "), short(task.GetPolicySet()), task.GetAuditIndex()))
	t.Row("Roles", grants(task))
	t.Row("Exposure", taskExposure(task, leases, now))
	if len(task.GetLabels()) > 0 {
		t.Row("Labels", pairs(task.GetLabels()))
	}
	if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
		t.Row("Teardown", teardown(task))
		t.Row("Usable", usable(task.GetTeardown(), now))
		openRows(t, leases, now)
	}
	return t.Write(w)
}

// short cuts a hash to what people compare.
func short(hash string) string {
	if len(hash) <= hashDigits {
		return hash
	}
	return hash[:hashDigits] + "…"
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " · ")
}

func labelled(label, value string) string {
	if value == "" {
		return ""
	}
	return label + " " + value
}

// state writes "ACTIVE, ends in 13m40s (10:28:00Z)" or "CLOSED (completed) after 12m41s".
func state(task *stintv1.Task, now time.Time) string {
	word := render.Word(task.GetState(), statePrefix)
	if task.GetState() == stintv1.TaskState_TASK_STATE_ACTIVE {
		return fmt.Sprintf("%s, ends in %s (%s)", word, render.Until(task.GetNotAfter(), now), render.Clock(task.GetNotAfter(), now))
	}
	word += " (" + strings.ToLower(render.Word(task.GetCloseReason(), closePrefix)) + ")"
	if task.GetClosedTime() != nil {
		word += " after " + render.Short(task.GetClosedTime().AsTime().Sub(task.GetCreateTime().AsTime()))
	}
	return word
}

func lastSeen(task *stintv1.Task, now time.Time) string {
	if task.GetLastSeen() == nil {
		return "-"
	}
	text := render.Short(max(0, now.Sub(task.GetLastSeen().AsTime())).Round(time.Second)) + " ago"
	if task.GetIdleTimeout() != nil && task.GetState() == stintv1.TaskState_TASK_STATE_ACTIVE {
		text += fmt.Sprintf(" (closes %s after the last)", render.Duration(task.GetIdleTimeout()))
	}
	return text
}

func policies(task *stintv1.Task) []string {
	var all []string
	for _, g := range task.GetGrants() {
		all = append(all, g.GetPolicies()...)
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == 0 {
		return []string{noneText}
	}
	return all
}

func grants(task *stintv1.Task) string {
	out := make([]string, 0, len(task.GetGrants()))
	for _, g := range task.GetGrants() {
		text := g.GetRole() + " " + render.Duration(g.GetTtl())
		if len(g.GetParameters()) > 0 {
			text += " (" + pairs(g.GetParameters()) + ")"
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return noneText
	}
	return strings.Join(out, ", ")
}

func pairs(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, " ")
}

// taskExposure says for how long something of the task could work after its end: the worst of its grants, and until when
// who checks no revocation accepts what was issued.
func taskExposure(task *stintv1.Task, leases []*stintv1.Lease, now time.Time) string {
	var worst time.Duration
	var out []string
	for _, g := range task.GetGrants() {
		switch e := g.GetExposure(); {
		case e.GetMax() != nil:
			worst = max(worst, e.GetMax().AsDuration())
		case e.GetUntilExpiry():
			out = append(out, g.GetRole()+" until it expires")
		default:
			out = append(out, g.GetRole()+" without bound")
		}
	}
	bounded := render.Short(worst)
	var longer []string
	for _, l := range leases {
		if until := unchecked(l); until.AsTime().After(now) {
			longer = append(longer, l.GetRole()+" until "+render.Clock(until, now))
		}
	}
	if len(longer) > 0 {
		bounded += " for services that read the CRL, else " + strings.Join(longer, ", ")
	}
	return strings.Join(append([]string{bounded}, out...), "; ")
}

// teardown writes "2 of 2 leases final: 2 read_back; 0 stuck".
func teardown(task *stintv1.Task) string {
	sum := task.GetTeardown()
	text := fmt.Sprintf("%d of %s final", sum.GetFinal(), plural(int(sum.GetLeases()), "lease"))
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(sum.GetByProof())) {
		if n := sum.GetByProof()[kind]; n > 0 {
			kinds = append(kinds, fmt.Sprintf("%d %s", n, kind))
		}
	}
	if len(kinds) > 0 {
		text += ": " + strings.Join(kinds, ", ")
	}
	return fmt.Sprintf("%s; %d stuck", text, sum.GetStuck())
}

// usable says until when, at worst, something of a task could still work where revocation is honoured.
func usable(sum *stintv1.TeardownSummary, now time.Time) string {
	open, until := sum.GetLeases()-sum.GetFinal(), sum.GetUsableUntil()
	switch {
	case until.AsTime().After(now) && (open == 0 || !render.Endless(until)):
		return render.Worst(until, now)
	case open > 0: // what has no clock of its own may go on accepting it
		return fmt.Sprintf("until proven ended, %d of %s", open, plural(int(sum.GetLeases()), "lease"))
	default:
		return "no longer"
	}
}

// maxOpen is how many leases that have not ended a task is shown with.
const maxOpen = 10

// openRows says of each lease that has not ended what is waited for.
func openRows(t *render.Table, leases []*stintv1.Lease, now time.Time) {
	open := slices.DeleteFunc(slices.Clone(leases), final)
	for i, l := range open {
		if i == maxOpen {
			t.Row("", fmt.Sprintf("and %d more: stint lease list --task", len(open)-maxOpen))
			return
		}
		label := "Open"
		if i > 0 {
			label = ""
		}
		t.Row(label, join(l.GetRole(), l.GetBackend(), render.Word(l.GetState(), leaseState), awaited(l, now)))
	}
}

func final(l *stintv1.Lease) bool {
	return slices.Contains([]stintv1.LeaseState{
		stintv1.LeaseState_LEASE_STATE_REVOKED, stintv1.LeaseState_LEASE_STATE_LAPSED, stintv1.LeaseState_LEASE_STATE_DISCLOSED,
	}, l.GetState())
}

// awaited says what the end of a lease waits for.
func awaited(l *stintv1.Lease, now time.Time) string {
	detail := endDetail(l, now)
	switch {
	case l.GetLastError() != "":
		return detail
	case l.GetState() == stintv1.LeaseState_LEASE_STATE_INTENT:
		return "what its issue may still bring is waited for until " + render.Clock(l.GetNextAttempt(), now)
	case l.GetState() == stintv1.LeaseState_LEASE_STATE_LAPSING:
		return "cannot be revoked, ends by itself at " + render.Clock(l.GetNotAfter(), now)
	}
	return "is being ended"
}

func tasksTable(w io.Writer, tasks []*stintv1.Task, now time.Time) error {
	t := render.NewTable("TASK", "STATE", "ENDS", "AGENT", "PURPOSE", "LEASES")
	for _, task := range tasks {
		ends := render.Until(task.GetNotAfter(), now)
		word := render.Word(task.GetState(), statePrefix)
		if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
			ends = "-"
			word += " (" + strings.ToLower(render.Word(task.GetCloseReason(), closePrefix)) + ")"
		}
		leases := "-" // a list counts those of closed tasks only
		if sum := task.GetTeardown(); sum.GetLeases() > 0 || task.GetState() == stintv1.TaskState_TASK_STATE_CLOSED {
			leases = fmt.Sprintf("%d, %d final", sum.GetLeases(), sum.GetFinal())
		}
		if task.GetTeardown().GetStuck() > 0 {
			leases += fmt.Sprintf(", %d STUCK", task.GetTeardown().GetStuck())
		}
		t.Row(task.GetShortName(), word, ends, task.GetAgent(), task.GetPurpose(), leases)
	}
	return t.Write(w)
}
