// Package failpoint marks the steps between which a test kills or freezes the process. It is empty unless the build has
// the tag failpoints, so that nothing of it is in a released program.
package failpoint

// Steps returns every step, in the order in which a task lives. A test stops a process at each.
func Steps() []string {
	return []string{
		"declare.committed",
		"issue.prepared", "issue.intent", "issue.issued", "issue.active",
		"issue.dropped", "issue.failed", "issue.discarded",
		"revoke.asked", "role.removed", "close.committed",
		"stop.suspended", "stop.page", "stop.chosen", "suspension.page",
		"teardown.due", "teardown.claimed", "teardown.revoked", "teardown.settled",
		"inventory.settled", "stray.recorded", "stray.revoked", "stray.ended",
	}
}
