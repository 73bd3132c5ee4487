package audit_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// memLog is a log in memory. Tests reach into it to falsify it.
type memLog struct {
	head    audit.Head
	entries []audit.Entry
	hashes  [][32]byte
	texts   map[int64][]audit.Text
	edge    audit.Edge
	epochs  []audit.Epoch
	grown   chan struct{}
}

func newMemLog() *memLog {
	return &memLog{head: audit.Head{Epoch: 1}, texts: map[int64][]audit.Text{}, grown: make(chan struct{})}
}

func (m *memLog) Head() (audit.Head, error) { return m.head, nil }

func (m *memLog) Entries(start int64, limit int, task string) ([]audit.Entry, error) {
	var out []audit.Entry
	for _, e := range m.entries {
		if e.Index >= start && len(out) < limit && (task == "" || e.Task == task) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (m *memLog) Hashes(indexes []int64) ([][32]byte, error) {
	out := make([][32]byte, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(m.hashes)) {
			return nil, fmt.Errorf("hash %d is not there", index)
		}
		out[i] = m.hashes[index]
	}
	return out, nil
}

func (m *memLog) Texts(index int64) ([]audit.Text, error) { return m.texts[index], nil }

func (m *memLog) ViewLog(_ context.Context, fn func(audit.Reader) error) error { return fn(m) }

func (m *memLog) Grown() <-chan struct{} { return m.grown }

// add appends records and signs a checkpoint over all.
func (m *memLog) add(tb testing.TB, key audit.Key, records ...audit.Record) {
	tb.Helper()
	for _, r := range records {
		if r.Time.IsZero() {
			r.Time = time.Date(2030, 1, 2, 3, 4, 5, len(m.entries), time.UTC)
		}
		e, texts, err := audit.Encode(r, int64(len(m.entries)))
		if err != nil {
			tb.Fatal(err)
		}
		m.entries = append(m.entries, e)
		m.hashes = m.edge.Append(m.hashes, e.JSON)
		if len(texts) > 0 {
			m.texts[e.Index] = texts
		}
	}
	m.sign(tb, key)
}

func (m *memLog) sign(tb testing.TB, key audit.Key) {
	tb.Helper()
	signed, err := audit.Checkpoint{Origin: key.Signer.Name(), Size: m.edge.Size(), Root: m.edge.Root(), Epochs: m.epochs}.Sign(key.Signer)
	if err != nil {
		tb.Fatal(err)
	}
	m.head.Size, m.head.Checkpoint = m.edge.Size(), signed
}

// restored returns the log as it was at a size, with a new epoch begun.
func (m *memLog) restored(tb testing.TB, key audit.Key, size, epoch int64) *memLog {
	tb.Helper()
	r := newMemLog()
	for _, e := range m.entries[:size] {
		r.entries = append(r.entries, e)
		r.hashes = r.edge.Append(r.hashes, e.JSON)
		if texts := m.texts[e.Index]; texts != nil {
			r.texts[e.Index] = texts
		}
	}
	for _, e := range m.epochs {
		if e.Start < size {
			r.epochs = append(r.epochs, e)
		}
	}
	r.epochs = append(r.epochs, audit.Epoch{Number: epoch, Start: size})
	r.head.Epoch = epoch
	r.add(tb, key, audit.Record{
		Event: audit.LogRestored, Actor: audit.Actor{ID: "uid:1000"},
		Restore: &audit.Restore{Epoch: epoch, Found: audit.FoundOlder, Size: size},
	})
	return r
}

// copy returns a log of its own to falsify.
func (m *memLog) copy() *memLog {
	c := *m
	c.entries, c.hashes, c.texts = slices.Clone(m.entries), slices.Clone(m.hashes), maps.Clone(m.texts)
	for i := range c.entries {
		c.entries[i].JSON = slices.Clone(c.entries[i].JSON)
	}
	return &c
}

func newKey(tb testing.TB) audit.Key {
	tb.Helper()
	key, err := audit.CreateKey(tb.TempDir()+"/key", "log.example/audit")
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

const (
	taskA  = "019ab3c1-d2e4-7f0a-8b1c-2d3e4f506100"
	taskB  = "019ab3c1-d2e4-7f0a-8b1c-2d3e4f506101"
	leaseA = "019AB3C1D2E47F0A8B1C2D3E4F506172"
	leaseB = "019AB3C1D9037B21A6F00C9E1D2B3A41"
)

// story is the life of taskA with two leases, among records of another task.
func story() []audit.Record {
	manifest := task.Hash{0x4b, 0xe1}
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	agent := audit.Actor{ID: "spiffe://example.org/agent/eu1", Method: "x509"}
	stint := audit.Actor{ID: "stint"}
	of := func(event audit.Event, lease, role string) audit.Record {
		return audit.Record{
			Event: event, Actor: agent, Task: taskA, TaskName: "try-it-7f3k", Agent: agent.ID, Purpose: "try-it", Lease: lease, Role: role,
			Backend: "stepca/dev", Time: now,
		}
	}
	ended := func(lease, role string, kind plugins.Proof) audit.Record {
		r := of(audit.LeaseEnded, lease, role)
		r.Actor, r.Proof = stint, &audit.Proof{Kind: kind, At: now, UsableUntil: now, Detail: "CRL 418"}
		return r
	}
	declared := of(audit.TaskDeclared, "", "")
	declared.Owner, declared.Sponsor, declared.Manifest, declared.Roles = "team", "head", &manifest, []string{"web", "db"}
	declared.Texts = map[string]string{"description": "tries ünïcode <&>\u2028"}
	active := of(audit.LeaseActive, leaseA, "web")
	active.Ref, active.NotAfter = "CN=eu1", now.Add(time.Minute)
	closing := of(audit.TaskClosing, "", "")
	closing.Texts = map[string]string{"comment": "enough"}
	closed := of(audit.TaskClosed, "", "")
	closed.Reason = "completed"
	closed.Summary = &task.Summary{
		Leases: 2, Final: 2, ByProof: map[plugins.Proof]int{plugins.OnCRL: 1, plugins.NotIssued: 1}, UsableUntil: now,
	}
	other := audit.Record{Event: audit.TaskDeclared, Actor: agent, Task: taskB, TaskName: "other", Time: now}
	return []audit.Record{
		{Event: audit.LogStarted, Actor: stint, Time: now},
		declared, other, active, of(audit.LeaseIntent, leaseB, "db"), of(audit.LeaseFailed, leaseB, "db"), closing,
		ended(leaseB, "db", plugins.NotIssued), ended(leaseA, "web", plugins.OnCRL), closed, other,
	}
}
