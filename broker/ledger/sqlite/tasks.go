package sqlite

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

const selectTask = "SELECT id, body FROM tasks WHERE "

// Task returns a task or ErrNotFound.
func (r *rows) Task(id task.ID) (task.Task, error) { return r.task(selectTask+"id = ?", id[:]) }

// FindTask returns the task that a key names, or ErrNotFound.
func (r *rows) FindTask(key ledger.TaskKey) (task.Task, error) {
	switch {
	case key.ShortName != "":
		return r.task(selectTask+"short_name = ?", key.ShortName)
	case key.RequestID != "":
		return r.task(selectTask+"agent = ? AND request_id = ? AND request_id <> ''", key.Agent, key.RequestID)
	}
	return task.Task{}, ledger.ErrNotFound
}

func (r *rows) task(query string, args ...any) (task.Task, error) {
	var id, body []byte
	if err := r.s.one(query, args, &id, &body); err != nil {
		return task.Task{}, err
	}
	return decodeTask(id, body)
}

func (r *rows) tasks(query string, args []any) ([]task.Task, error) {
	var out []task.Task
	err := r.s.each(query, args, func(scan func(...any) error) error {
		var id, body []byte
		if err := scan(&id, &body); err != nil {
			return err
		}
		t, err := decodeTask(id, body)
		out = append(out, t)
		return err
	})
	return out, err
}

func decodeTask(id, body []byte) (task.Task, error) {
	var t task.Task
	return t, unmarshal("task", id, body, &t)
}

// InsertTask adds a task, or answers ErrExists.
func (r *rows) InsertTask(t task.Task) error {
	body, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("write task %s: %w", t.ID, err)
	}
	_, err = r.s.exec("INSERT INTO tasks (id, short_name, agent, request_id, state, open, due, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		t.ID[:], t.ShortName, t.Agent, t.RequestID, string(t.State), t.State != task.Closed, taskDue(t), body)
	return err
}

// UpdateTask replaces a task if it is still in the state from, else ErrStale.
func (r *rows) UpdateTask(t task.Task, from task.State) error {
	body, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("write task %s: %w", t.ID, err)
	}
	n, err := r.s.exec("UPDATE tasks SET state = ?, open = ?, due = ?, body = ? WHERE id = ? AND state = ?",
		string(t.State), t.State != task.Closed, taskDue(t), body, t.ID[:], string(from))
	if err == nil && n == 0 {
		return ledger.ErrStale
	}
	return err
}

// taskDue returns the due column of a task.
func taskDue(t task.Task) any {
	if t.State == task.Closed {
		return nil
	}
	if t.State != task.Active || t.NextAt.IsZero() {
		return never
	}
	return nanos(t.NextAt)
}

// ListTasks returns a page, newest first.
func (r *rows) ListTasks(f ledger.TaskFilter) ([]task.Task, error) {
	l := listing{table: "tasks", final: []string{string(task.Closed)}, limit: f.Limit}
	for _, s := range f.States {
		l.states = append(l.states, string(s))
	}
	if f.Agent != "" {
		l.by("agent", f.Agent)
	}
	if f.Before != (task.ID{}) {
		l.where("id < ?", f.Before[:])
	}
	return r.tasks(l.query())
}

// DueTasks returns the ACTIVE tasks with NextAt at or before now that are not in except, earliest first.
func (r *rows) DueTasks(now time.Time, limit int, except ...task.ID) ([]task.ID, error) {
	const due = "SELECT id FROM tasks WHERE due IS NOT NULL AND due <= ? "
	if len(except) == 0 {
		return r.taskIDs(due+"ORDER BY due LIMIT ?", []any{nanos(now), limit})
	}
	list, err := hexList(except)
	if err != nil {
		return nil, err
	}
	return r.taskIDs(due+"AND lower(hex(id)) NOT IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT ?", []any{nanos(now), list, limit})
}

func (r *rows) taskIDs(query string, args []any) ([]task.ID, error) {
	var out []task.ID
	err := r.s.each(query, args, func(scan func(...any) error) error {
		var raw []byte
		if err := scan(&raw); err != nil {
			return err
		}
		id, err := uuid.FromBytes(raw)
		if err != nil {
			return damaged(err)
		}
		out = append(out, task.ID(id))
		return nil
	})
	return out, err
}

// LiveTasks counts an agent's tasks that are not CLOSED.
func (r *rows) LiveTasks(agent string) (int, error) {
	return r.count("SELECT count(*) FROM tasks WHERE agent = ? AND open = 1", agent)
}
