package lease_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
)

// machine runs random operations on one lease and checks after each what must always hold:
//
//   - a lease whose end was asked for is never ACTIVE, and the first cause stays;
//   - a final lease stays as it is, but for the late answer of a swept intent;
//   - what is not final is looked at again (NextAt), unless it is ACTIVE and has no end of its own;
//   - an intent is never ended before its horizon;
//   - from wherever it is, the next claim and one proof make it final.
type machine struct {
	l   lease.Lease
	now time.Time
}

// init starts with an intent, or where issuing has no side effects, with an active lease.
func (m *machine) init(t *rapid.T) {
	m.now, m.l = start, in(lease.Intent)
	if rapid.Bool().Draw(t, "no intent") {
		m.l.SweepAt = time.Time{}
		m.activate(t)
	}
}

func (m *machine) apply(next lease.Lease, err error) bool {
	if err == nil {
		m.l = next
	}
	return err == nil
}

func (m *machine) activate(t *rapid.T) {
	c := credential()
	if rapid.Bool().Draw(t, "static") {
		c.NotAfter = time.Time{}
	}
	was := m.l
	if m.apply(m.l.Activate(c)) && (was.State != lease.Intent || !was.AskedAt.IsZero()) {
		t.Fatalf("activated from %s, asked at %s", was.State, was.AskedAt)
	}
}

func (m *machine) lateAnswer(t *rapid.T) {
	was := m.l
	if m.apply(m.l.Unreleased(credential(), m.now)) && was.State.Final() && was.Proof != plugins.Swept {
		t.Fatalf("%s by %s was opened again", was.State, was.Proof)
	}
}

func (m *machine) nothing(*rapid.T) { m.apply(m.l.Nothing(m.now)) }

func (m *machine) askEnd(t *rapid.T) {
	m.l = m.l.AskEnd(m.now, rapid.SampledFrom([]lease.Cause{lease.TaskClosed, lease.Requested, lease.RoleRemoved}).Draw(t, "cause"))
}

func (m *machine) claim(t *rapid.T) {
	was := m.l
	if m.apply(m.l.Begin(m.now)) && was.State == lease.Intent && m.now.Before(sweepAt) && !was.SweepAt.IsZero() {
		t.Fatalf("swept at %s, before %s", m.now, sweepAt)
	}
	m.l.ClaimUntil = m.now.Add(time.Minute)
}

func (m *machine) fail(*rapid.T) {
	m.apply(m.l.Retry(m.now.Add(time.Second), "sealed", m.now.Add(-10*time.Minute)))
}

func (m *machine) prove(t *rapid.T) {
	proofs := []plugins.Proof{
		plugins.ReadBack, plugins.OnCRL, plugins.Swept, plugins.LostAtBackend, plugins.NotIssued, plugins.Lapsed, plugins.Disclosed,
		plugins.Pending, "probably",
	}
	ending := plugins.Ending{Proof: rapid.SampledFrom(proofs).Draw(t, "proof"), At: m.now}
	if rapid.Bool().Draw(t, "usable") {
		ending.UsableUntil = end
	}
	m.apply(m.l.End(ending))
}

func (m *machine) wait(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(1, 200).Draw(t, "seconds")) * time.Second)
}

// check is what must always hold.
func (m *machine) check(t *rapid.T, was lease.Lease) {
	l := m.l
	if l.State == lease.Active && !l.AskedAt.IsZero() {
		t.Fatalf("ACTIVE, but its end was asked for (%s)", l.Cause)
	}
	if !was.AskedAt.IsZero() && (!l.AskedAt.Equal(was.AskedAt) || l.Cause != was.Cause) {
		t.Fatalf("the first cause %s became %s", was.Cause, l.Cause)
	}
	if was.State.Final() && !l.State.Final() && was.Proof != plugins.Swept {
		t.Fatalf("%s became %s", was.State, l.State)
	}
	if l.State.Final() {
		m.checkFinal(t)
	} else {
		m.checkOpen(t)
	}
}

func (m *machine) checkFinal(t *rapid.T) {
	if m.l.Proof == "" || m.l.RevokedAt.IsZero() || m.l.Stuck || !m.l.NextAt.IsZero() {
		t.Fatalf("%s without proof, or not at rest: %+v", m.l.State, m.l)
	}
}

func (m *machine) checkOpen(t *rapid.T) {
	l := m.l
	if l.NextAt.IsZero() && (l.State != lease.Active || !l.NotAfter.IsZero()) {
		t.Fatalf("%s, and never looked at again", l.State)
	}
	begun, err := l.Begin(m.now.Add(time.Hour))
	if err != nil {
		t.Fatalf("%s cannot be claimed: %v", l.State, err)
	}
	if done, err := begun.End(plugins.Ending{Proof: plugins.ReadBack, At: m.now}); err != nil || !done.State.Final() {
		t.Fatalf("%s cannot be ended: %v", l.State, err)
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := new(machine)
		m.init(t)
		actions := map[string]func(*rapid.T){}
		for name, do := range map[string]func(*rapid.T){
			"activate": m.activate, "late answer": m.lateAnswer, "nothing": m.nothing, "ask end": m.askEnd,
			"claim": m.claim, "fail": m.fail, "prove": m.prove, "wait": m.wait,
		} {
			actions[name] = func(t *rapid.T) {
				was := m.l
				do(t)
				m.check(t, was)
			}
		}
		t.Repeat(actions)
	})
}
