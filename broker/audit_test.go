package broker_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// TestNoRecordNoCredential: rule 3. Whichever write transaction of an issue fails, and however: nobody gets a credential
// that the ledger does not hold, and nothing is alive in the end.
func TestNoRecordNoCredential(t *testing.T) {
	reasons := map[step]fault.Reason{
		atBegin: fault.LedgerUnavailable, atLog: fault.LedgerUnavailable,
		atCommit: fault.OutcomeUnknown, atAnswer: fault.OutcomeUnknown,
	}
	for at, reason := range reasons {
		for nth := 1; nth <= 2; nth++ {
			names := kinds()
			if nth == 2 {
				names = []string{"horizon", "horizon-cert", "vault"}
			}
			t.Run(fmt.Sprintf("%s of transaction %d", at, nth), func(t *testing.T) {
				eachKind(t, names, func(h *house, role string) {
					t := h.tb
					h.endLoop() // its transactions are not to fail in place of the issue's
					work := h.declare(role)
					req := wish(t, work, role)
					h.store.failNth(at, nth)
					out, err := h.broker.Issue(t.Context(), agent("a"), req)
					if f := wanted(t, err, reason); f.RetryAfter == 0 {
						t.Error("the caller is not told to try again")
					}
					if out.Credential.Fields != nil || out.Credential.Chain != nil || h.meter.issued != 0 {
						t.Errorf("handed out %+v", out)
					}
					intents := role == "horizon" || role == "horizon-cert" || role == "vault"
					if nth == 1 && intents && h.memoryOf(role).Calls(plugintest.OpIssue) != 0 {
						t.Error("issue was called without a durable intent")
					}
					h.checkUnknown(t, req, at, nth)
					h.startLoop()
					h.complete(work)
					h.gone()
					if n := h.vault.Tokens(); n != 0 {
						t.Errorf("%d tokens are left", n)
					}
				})
			})
		}
	}
}

// checkUnknown looks at what a failed transaction left, and asks again as a client does.
func (h *house) checkUnknown(tb testing.TB, req broker.IssueRequest, at step, nth int) { //nolint:cyclop // a table in code
	tb.Helper()
	intents := h.memoryOf(req.Role).Descriptor().Horizon > 0
	written := at == atAnswer
	all := h.leases()
	switch {
	case written && (nth == 2 || !intents):
		if len(all) != 1 || all[0].State != lease.Active {
			tb.Fatalf("leases %+v, want the one that was written", all)
		}
		again, err := h.broker.Issue(tb.Context(), agent("a"), req)
		if req.CSR == nil {
			want(tb, err, fault.AlreadyIssued)
			if h.alive() != 0 {
				tb.Error("a secret that nobody got is alive")
			}
			return
		}
		again.Credential.Handle = again.Lease.Handle
		if err != nil || !h.memoryOf(req.Role).Works(tb.Context(), again.Credential) {
			tb.Errorf("the certificate that is given again does not work (%v)", err)
		}
	case written || nth == 2:
		if len(all) != 1 || all[0].State != lease.Intent {
			tb.Fatalf("leases %+v, want the intent", all)
		}
		_, err := h.broker.Issue(tb.Context(), agent("a"), req)
		want(tb, err, fault.AlreadyIssued)
	default:
		if len(all) != 0 || h.alive() != 0 {
			tb.Fatalf("leases %+v, %d alive; want nothing", all, h.alive())
		}
		if _, err := h.broker.Issue(tb.Context(), agent("a"), req); err != nil {
			tb.Errorf("asked again: %v", err)
		}
	}
}

// TestCloseSurvivesItsStore: completing, stopping and revoking say so when they were not stored, and can be repeated.
func TestCloseSurvivesItsStore(t *testing.T) {
	for at, reason := range map[step]fault.Reason{
		atBegin: fault.LedgerUnavailable, atLog: fault.LedgerUnavailable, atCommit: fault.OutcomeUnknown, atAnswer: fault.OutcomeUnknown,
	} {
		t.Run(string(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				h.endLoop()
				work := h.declare("vault")
				out := h.issue(work, "vault")
				h.store.failNth(at, 1)
				_, _, err := h.broker.RevokeLease(t.Context(), agent("a"), out.Lease.ID, 0)
				want(t, err, reason)
				h.store.failNth(at, 1)
				_, err = h.broker.Complete(t.Context(), agent("a"), ref(work), task.Completed, 0)
				want(t, err, reason)
				h.store.failNth(at, 1)
				_, err = h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "vault"))
				want(t, err, reason)
				h.startLoop()
				h.complete(work)
				h.gone()
			})
		})
	}
}

// TestDiskFull: rule 3 and 12. With no room nothing is issued or declared; ending goes on as soon as the ledger can be
// written, and a disk that is nearly full stops issuing only.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("vault")
		h.issue(work, "vault")
		h.store.fill(true)
		_, err := h.try(work, "vault")
		if f := wanted(t, err, fault.LedgerUnavailable); f.RetryAfter == 0 {
			t.Error("the caller is not told to try again")
		}
		h.store.fill(false)
		h.issue(work, "vault")

		h.store.fillUp(true)
		_, err = h.try(work, "vault")
		want(t, err, fault.LedgerUnavailable)
		_, err = h.broker.Declare(t.Context(), agent("a"), declaration(newID(t), "vault"))
		want(t, err, fault.LedgerUnavailable)
		_, err = h.broker.Complete(t.Context(), agent("a"), ref(work), task.Completed, 0)
		want(t, err, fault.LedgerUnavailable)
		pass(time.Until(work.NotAfter.Add(time.Minute))) // the loop cannot record either, and goes on trying
		if h.task(work.ID).State != task.Active {
			t.Error("something was written to a full disk")
		}
		h.store.fillUp(false)
		h.until(time.Minute, func() bool { return h.task(work.ID).State == task.Closed })
		h.gone()
	})
}

// TestRefusalWithoutItsRecord: a refusal stands although its record cannot be written; the record is owed and paid later.
func TestRefusalWithoutItsRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		work := h.declare("plain")
		h.store.fillUp(true)
		_, err := h.try(work, "vault")
		if f := wanted(t, err, fault.RoleNotInTask); f.Metadata["record"] != "" {
			t.Errorf("refers to record %s, which is not there", f.Metadata["record"])
		}
		pass(30 * time.Second)
		h.store.fillUp(false)
		pass(30 * time.Second)
		rec := h.recorded(audit.CallsRefused, "")
		if len(rec) != 1 || rec[0].Count != 1 || rec[0].Reason != string(fault.RoleNotInTask) ||
			rec[0].Actor.ID != agent("a").Identity.String() {
			t.Errorf("owed records: %+v", rec)
		}
	})
}
