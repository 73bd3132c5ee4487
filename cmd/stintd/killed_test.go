package main

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	"github.com/stint-dev/stint/sdk/agent"
)

// TestKilledForGood kills a stintd that has issued by every engine and every kind of CA, and never starts it again. By the
// backends' own books everything is gone by the credential's end and the slack of docs/dead-mans-switch.md.
func TestKilledForGood(t *testing.T) {
	t.Parallel()
	ttl := "{default: 8s, max: 1m}"
	x := newExposed(t, limits{ttl: ttl, dbTTL: ttl})
	_, err := x.vault.Root.Logical().WriteWithContext(t.Context(), "sys/mounts/ssh/tune", map[string]any{"default_lease_ttl": "6s"})
	if err != nil {
		t.Fatal(err)
	}
	task := declare(t, x.agent(t, agentPath), 5*time.Minute, everyRole()...)
	issued := map[string]*agent.Credential{}
	for _, role := range everyRole() {
		issued[role] = issue(t, task, role)
	}
	session, err := login(t.Context(), x.pg, issued[dbRole])
	if err != nil {
		t.Fatal(err)
	}
	made := tokens(t, x.vault)
	x.d.kill(t)

	// Of a stored value only the token ends: Vault has no other.
	end := issued[dbRole].Expires()
	var watches []vaulttest.Watch
	watch := func(what string, end time.Time, slack time.Duration, alive func() bool) {
		watches = append(watches, vaulttest.Watch{What: what, End: end, Slack: slack, Alive: alive})
	}
	watch("the lease of the database user", end, vaulttest.LeaseSlack, x.vault.LeaseAlive(t, "database/creds/stint-orders-ro"))
	watch("the lease of the one-time password", issued[otpRole].Expires(), vaulttest.LeaseSlack, x.vault.LeaseAlive(t, "ssh/creds/stint-otp"))
	watch("the lease of pki's certificate", issued[pkiRole].Expires(), vaulttest.LeaseSlack, x.vault.LeaseAlive(t, "pki/issue/stint-internal"))
	watch("the database user", end, vaulttest.LeaseSlack, func() bool {
		return users(t, x.pg, string(issued[dbRole].Fields["username"].Expose())) > 0
	})
	watch("its open session", end, vaulttest.LeaseSlack, func() bool { return session.QueryRow(t.Context(), "SELECT 1").Scan(new(int)) == nil })
	if len(made) != 4 {
		t.Errorf("Vault has %d tokens of 4 credentials", len(made))
	}
	for accessor := range made { // each within the time that its credentials were issued in
		watch("a token", issued[remoteRole].Expires(), exposedHorizon+vaulttest.LeaseSlack, x.vault.TokenAlive(t, accessor))
	}
	for role, slack := range map[string]time.Duration{certRole: 0, remoteRole: 0, pkiRole: vaulttest.CertificateSlack} {
		c := certificateOf(t, issued[role])
		watch("the certificate of "+role, issued[role].Expires(), slack, c.valid)
	}
	vaulttest.GoneInTime(t, watches...)

	if x.verifies(t, issued[otpRole]) {
		t.Error("the one-time password still verifies")
	}
	if n := len(tokens(t, x.vault)); n != 0 {
		t.Errorf("Vault has %d tokens of credentials left", n)
	}
}
