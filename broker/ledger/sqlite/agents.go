package sqlite

import (
	"time"

	"github.com/stint-dev/stint/broker/ledger"
)

const selectAgents = "SELECT id, state, since, set_by, record FROM agents WHERE "

// Agent returns an agent, or ErrNotFound where nobody has set its state.
func (r *rows) Agent(id string) (ledger.Agent, error) {
	var a ledger.Agent
	var since int64
	err := r.s.one(selectAgents+"id = ?", []any{id}, &a.ID, &a.State, &since, &a.By, &a.Record)
	if err != nil {
		return ledger.Agent{}, err
	}
	a.Since = time.Unix(0, since).UTC()
	return a, nil
}

// PutAgent adds or replaces one.
func (r *rows) PutAgent(a ledger.Agent) error {
	_, err := r.s.exec("INSERT INTO agents (id, state, since, set_by, record) VALUES (?, ?, ?, ?, ?) "+
		"ON CONFLICT (id) DO UPDATE SET state = excluded.state, since = excluded.since, set_by = excluded.set_by, record = excluded.record",
		a.ID, string(a.State), nanos(a.Since), a.By, a.Record)
	return err
}

// ListAgents returns a page, by ID.
func (r *rows) ListAgents(f ledger.AgentFilter) ([]ledger.Agent, error) {
	query, args := selectAgents+"id > ? ORDER BY id LIMIT ?", []any{f.After, f.Limit}
	if f.State != "" {
		query, args = selectAgents+"state = ? AND id > ? ORDER BY id LIMIT ?", []any{string(f.State), f.After, f.Limit}
	}
	var out []ledger.Agent
	err := r.s.each(query, args, func(scan func(...any) error) error {
		var a ledger.Agent
		var since int64
		err := scan(&a.ID, &a.State, &since, &a.By, &a.Record)
		a.Since = time.Unix(0, since).UTC()
		out = append(out, a)
		return err
	})
	return out, err
}
