package ledgertest

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/ledger"
)

func testAgents(t *testing.T, s *suite) {
	t.Helper()
	a := ledger.Agent{ID: "spiffe://td/a", State: ledger.AgentSuspended, Since: base(), By: "uid:0", Record: 7}
	b := ledger.Agent{ID: "spiffe://td/b", State: ledger.AgentSuspended, Since: base(), By: "spiffe://td/ops", Record: 8}
	c := ledger.Agent{ID: "spiffe://td/c", State: ledger.AgentActive, Since: base().Add(time.Hour), By: "uid:1", Record: 9}
	s.write(t, func(tx ledger.StoreTx) error {
		for _, row := range []ledger.Agent{c, a, b} { // lists are by ID, not by order of writing
			wants(t, "put", tx.PutAgent(row), nil)
		}
		got, err := tx.Agent(a.ID)
		same(t, "agent within the transaction", got, a)
		return err
	})
	lists := map[string]struct {
		filter ledger.AgentFilter
		want   []ledger.Agent
	}{
		"all":                   {ledger.AgentFilter{Limit: 9}, []ledger.Agent{a, b, c}},
		"first page":            {ledger.AgentFilter{Limit: 2}, []ledger.Agent{a, b}},
		"second page":           {ledger.AgentFilter{After: b.ID, Limit: 2}, []ledger.Agent{c}},
		"suspended":             {ledger.AgentFilter{State: ledger.AgentSuspended, Limit: 9}, []ledger.Agent{a, b}},
		"suspended, first":      {ledger.AgentFilter{State: ledger.AgentSuspended, Limit: 1}, []ledger.Agent{a}},
		"suspended, after a":    {ledger.AgentFilter{State: ledger.AgentSuspended, After: a.ID, Limit: 9}, []ledger.Agent{b}},
		"active":                {ledger.AgentFilter{State: ledger.AgentActive, Limit: 9}, []ledger.Agent{c}},
		"after the last of all": {ledger.AgentFilter{After: c.ID, Limit: 9}, nil},
	}
	s.read(t, func(r ledger.Reader) error {
		for name, list := range lists {
			got, err := r.ListAgents(list.filter)
			wants(t, name, err, nil)
			same(t, name, got, list.want)
		}
		_, err := r.Agent("spiffe://td/nobody")
		wants(t, "agent that is not there", err, ledger.ErrNotFound)
		return nil
	})
	resumed := a
	resumed.State, resumed.Since, resumed.By, resumed.Record = ledger.AgentActive, base().Add(time.Minute), "uid:2", 10
	s.write(t, func(tx ledger.StoreTx) error { return tx.PutAgent(resumed) })
	s.close(t)
	s.store = s.open(t, s.dir)
	s.read(t, func(r ledger.Reader) error {
		got, err := r.Agent(a.ID)
		same(t, "replaced agent after opening again", got, resumed)
		return err
	})
}
