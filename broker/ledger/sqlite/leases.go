package sqlite

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

const selectLease = "SELECT id, body FROM leases WHERE "

// Lease returns a lease or ErrNotFound.
func (r *rows) Lease(id lease.ID) (lease.Lease, error) { return r.lease(selectLease+"id = ?", id[:]) }

// FindLease returns the lease that a key names, or ErrNotFound.
func (r *rows) FindLease(key ledger.LeaseKey) (lease.Lease, error) {
	switch {
	case key.RequestID != "":
		return r.lease(selectLease+"agent = ? AND request_id = ? AND request_id <> ''", key.Agent, key.RequestID)
	case key.Ref != "":
		return r.lease(selectLease+"id = (SELECT lease FROM lease_refs WHERE ref = ? ORDER BY lease DESC LIMIT 1)", key.Ref)
	}
	return lease.Lease{}, ledger.ErrNotFound
}

func (r *rows) lease(query string, args ...any) (lease.Lease, error) {
	var id, body []byte
	if err := r.s.one(query, args, &id, &body); err != nil {
		return lease.Lease{}, err
	}
	return decodeLease(id, body)
}

func (r *rows) leases(query string, args []any) ([]lease.Lease, error) {
	var out []lease.Lease
	err := r.s.each(query, args, func(scan func(...any) error) error {
		var id, body []byte
		if err := scan(&id, &body); err != nil {
			return err
		}
		l, err := decodeLease(id, body)
		out = append(out, l)
		return err
	})
	return out, err
}

func decodeLease(id, body []byte) (lease.Lease, error) {
	var l lease.Lease
	if err := unmarshal("lease", id, body, &l); err != nil {
		return l, err
	}
	l.ID = lease.ID(id)
	return l, nil
}

// unmarshal reads the body of a row. One that cannot be read is damaged.
func unmarshal(what string, id, body []byte, row any) error {
	err := json.Unmarshal(body, row)
	if err == nil && len(id) != len(lease.ID{}) {
		err = fmt.Errorf("its id has %d bytes", len(id))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ledger.ErrUnavailable, damaged(fmt.Errorf("read %s %x: %w", what, id, err)))
	}
	return nil
}

// InsertLease adds a lease, or answers ErrExists.
func (r *rows) InsertLease(l lease.Lease) error {
	body, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("write lease %s: %w", l.ID, err)
	}
	_, err = r.s.exec(`INSERT INTO leases (id, task, agent, role, lane, request_id, state, open, stuck, claim, due, body)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		l.ID[:], l.Task[:], l.Agent, l.Role, l.Lane, l.RequestID, string(l.State), !l.State.Final(), l.Stuck, l.Claim,
		leaseDue(l), body)
	if err != nil {
		return err
	}
	return r.putRefs(l, lease.Lease{})
}

// UpdateLease replaces a lease if state and claim are still those of from, else ErrStale.
func (r *rows) UpdateLease(l, from lease.Lease) error {
	body, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("write lease %s: %w", l.ID, err)
	}
	n, err := r.s.exec(`UPDATE leases SET state = ?, open = ?, stuck = ?, claim = ?, due = ?, body = ?
		WHERE id = ? AND state = ? AND claim = ?`,
		string(l.State), !l.State.Final(), l.Stuck, l.Claim, leaseDue(l), body, l.ID[:], string(from.State), from.Claim)
	if err != nil {
		return err
	}
	if n == 0 {
		return ledger.ErrStale
	}
	return r.putRefs(l, from)
}

// putRefs adds the references by which a lease is found. Those of an earlier state stay: they are still true.
func (r *rows) putRefs(l, from lease.Lease) error {
	if l.Handle == from.Handle && l.PublicRef == from.PublicRef {
		return nil
	}
	for _, ref := range refs(l) {
		if _, err := r.s.exec("INSERT OR IGNORE INTO lease_refs (ref, lease) VALUES (?, ?)", ref, l.ID[:]); err != nil {
			return err
		}
	}
	return nil
}

// leaseDue returns the due column of a lease: the later of NextAt and the end of its claim.
func leaseDue(l lease.Lease) any {
	switch {
	case l.State.Final():
		return nil
	case l.NextAt.IsZero():
		return never
	case l.ClaimUntil.After(l.NextAt):
		return nanos(l.ClaimUntil)
	}
	return nanos(l.NextAt)
}

// ListLeases returns a page, newest first.
func (r *rows) ListLeases(f ledger.LeaseFilter) ([]lease.Lease, error) {
	l := listing{
		table: "leases", limit: f.Limit,
		final: []string{string(lease.Revoked), string(lease.Lapsed), string(lease.Disclosed)},
	}
	for _, s := range f.States {
		l.states = append(l.states, string(s))
	}
	if f.Agent != "" {
		l.by("agent", f.Agent)
	}
	if f.Task != (task.ID{}) {
		l.by("task", f.Task[:])
		if f.Limit == 0 {
			l.limit = -1
		}
	}
	if f.Before != (lease.ID{}) {
		l.where("id < ?", f.Before[:])
	}
	if f.Role != "" {
		l.where("role = ?", f.Role)
	}
	if f.Stuck {
		l.where("stuck = 1")
	}
	return r.leases(l.query())
}

// DueLeases returns non-final leases of a lane that are due, not claimed and not of the tasks in except, earliest first.
func (r *rows) DueLeases(lane string, now time.Time, limit int, except ...task.ID) ([]lease.Lease, error) {
	const due = selectLease + "due IS NOT NULL AND lane = ? AND due <= ? "
	if len(except) == 0 {
		return r.leases(due+"ORDER BY due LIMIT ?", []any{lane, nanos(now), limit})
	}
	list, err := hexList(except)
	if err != nil {
		return nil, err
	}
	return r.leases(due+"AND lower(hex(task)) NOT IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT ?",
		[]any{lane, nanos(now), list, limit})
}

// hexList is a list of tasks as json_each reads it.
func hexList(tasks []task.ID) (string, error) {
	ids := make([]string, len(tasks))
	for i, id := range tasks {
		ids[i] = hex.EncodeToString(id[:])
	}
	list, err := json.Marshal(ids)
	return string(list), err
}

// LiveLeases counts an agent's leases that are not final.
func (r *rows) LiveLeases(agent string) (int, error) {
	return r.count("SELECT count(*) FROM leases WHERE agent = ? AND open = 1", agent)
}

// HasOpenLeases reports whether a task has a lease that is not final.
func (r *rows) HasOpenLeases(id task.ID) (bool, error) {
	n, err := r.count("SELECT EXISTS (SELECT 1 FROM leases WHERE task = ? AND open = 1)", id[:])
	return n > 0, err
}

func (r *rows) count(query string, args ...any) (int, error) {
	var n int
	err := r.s.one(query, args, &n)
	return n, err
}
