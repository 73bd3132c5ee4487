package broker

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"time"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/task"
)

// maxShortLength is where looking for a free short name ends.
const maxShortLength = 12

// Declaration is what an agent says it is about to do.
type Declaration struct {
	Purpose     string
	Description string
	Roles       []RoleRequest
	// NotAfter is the task's end as asked for; zero with TTL zero means the profile's default.
	NotAfter    time.Time
	TTL         time.Duration
	IdleTimeout time.Duration
	Labels      map[string]string
	Strict      bool
	RequestID   string
	// ValidateOnly decides and answers, and opens nothing.
	ValidateOnly bool
}

// RoleRequest is one role that a declaration asks for.
type RoleRequest struct {
	Role   string
	Params map[string]string
	TTL    time.Duration
}

// Declared is an open task.
type Declared struct {
	Task       task.Task
	Clamps     []policy.Clamp
	Checkpoint []byte
}

// Declare opens a task, or says everything that stands against it. The same request ID with the same body returns the
// same task.
func (b *Broker) Declare(ctx context.Context, c Caller, d Declaration) (Declared, error) {
	if err := b.gate.enter(); err != nil {
		return Declared{}, err
	}
	defer b.gate.leave()
	if err := b.Unheld(); err != nil {
		return Declared{}, err
	}

	now := time.Now()
	hash := requestHash(d)
	if found, err := b.declaredBefore(ctx, c, d.RequestID, hash); err == nil || !errors.Is(err, ledger.ErrNotFound) {
		return found, err
	}
	if err := b.undamaged(); err != nil {
		return Declared{}, err
	}
	engine := b.catalog.Engine()
	held, err := b.held(ctx, engine, c.agent())
	if err != nil {
		return Declared{}, err
	}
	decision, err := engine.Declare(policy.DeclareInput{
		Identity: c.Identity, Purpose: d.Purpose, Roles: policyRoles(d.Roles), NotAfter: d.NotAfter, TTL: d.TTL,
		IdleTimeout: d.IdleTimeout, Strict: d.Strict, Held: held, Now: now,
	})
	if err != nil {
		return Declared{}, b.deny(ctx, c, denial{event: audit.TaskDenied, purpose: d.Purpose, roles: roleNames(d.Roles)}, err)
	}
	manifest, err := manifestOf(c, d, decision).Canonical()
	if err != nil {
		return Declared{}, err
	}
	t, err := newTask(c, d, decision, now)
	if err != nil {
		return Declared{}, err
	}
	t.RequestHash, t.ManifestHash = hash, sha256.Sum256(manifest)
	if d.ValidateOnly {
		return Declared{Task: t, Clamps: decision.Clamps()}, nil
	}
	commit, err := b.ledger.Update(ctx, func(tx *ledger.Tx) error { return insertTask(tx, c, &t, decision, manifest) })
	if errors.Is(err, ledger.ErrExists) { // the same request on another connection was faster
		return b.declaredBefore(ctx, c, d.RequestID, hash)
	}
	if err != nil {
		denied := denial{event: audit.TaskDenied, purpose: d.Purpose, roles: roleNames(d.Roles)}
		return Declared{}, b.refuse(ctx, c, denied, err)
	}
	failpoint.Hit("declare.committed")
	b.presence.Touch(t.ID, now)
	return Declared{Task: t, Clamps: decision.Clamps(), Checkpoint: commit.Checkpoint}, nil
}

// declaredBefore returns the task that a request ID opened before, ledger.ErrNotFound if it opened none, and a refusal if
// it came with another body.
func (b *Broker) declaredBefore(ctx context.Context, c Caller, requestID string, hash task.Hash) (Declared, error) {
	var out Declared
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		t, err := r.FindTask(ledger.TaskKey{Agent: c.agent(), RequestID: requestID})
		if err != nil {
			return err
		}
		if t.RequestHash != hash {
			return reused("tasks/" + t.ID.String())
		}
		head, err := r.Head()
		out = Declared{Task: t, Checkpoint: head.Checkpoint}
		return err
	})
	if errors.Is(err, ledger.ErrNotFound) {
		return Declared{}, err
	}
	return out, storeFault(err)
}

// manifestOf is the declaration as it was asked for.
func manifestOf(c Caller, d Declaration, decision policy.TaskDecision) task.Manifest {
	m := task.Manifest{
		Agent: c.agent(), Purpose: d.Purpose, Description: d.Description, RequestID: d.RequestID,
		NotAfter: decision.AskedNotAfter(),
	}
	for _, r := range d.Roles {
		m.Roles = append(m.Roles, task.ManifestRole{
			Name: r.Role, Parameters: r.Params, TTLSeconds: int64(r.TTL / time.Second),
		})
	}
	return m
}

// newTask builds the task that a decision allows.
func newTask(c Caller, d Declaration, decision policy.TaskDecision, now time.Time) (task.Task, error) {
	id, err := task.NewID()
	if err != nil {
		return task.Task{}, err
	}
	p := decision.Profile()
	t := task.Task{
		ID: id, ShortName: task.ShortName(d.Purpose, id, task.ShortLength), Agent: c.agent(),
		Profile: p.Name, Owner: p.Owner, Sponsor: p.Sponsor, Purpose: d.Purpose, Description: d.Description,
		Labels: d.Labels, Grants: decision.Grants(), State: task.Active,
		NotAfter: decision.NotAfter(), IdleTimeout: decision.IdleTimeout(), CreatedAt: now, LastSeen: now,
		RequestID: d.RequestID, PolicySet: decision.PolicySet(),
	}
	t.NextAt = t.NotAfter
	if t.IdleTimeout > 0 && now.Add(t.IdleTimeout).Before(t.NextAt) {
		t.NextAt = now.Add(t.IdleTimeout)
	}
	return t, nil
}

// insertTask counts, inserts and records in one transaction.
func insertTask(tx *ledger.Tx, c Caller, t *task.Task, decision policy.TaskDecision, manifest []byte) error {
	if err := notSuspended(tx, t.Agent); err != nil {
		return err
	}
	if _, err := tx.FindTask(ledger.TaskKey{Agent: t.Agent, RequestID: t.RequestID}); !errors.Is(err, ledger.ErrNotFound) {
		return errors.Join(ledger.ErrExists, err)
	}
	live, err := tx.LiveTasks(t.Agent)
	if err != nil {
		return err
	}
	if limit := decision.Profile().MaxLive; limit > 0 && live >= limit {
		return tooMany(fault.TooManyTasks, "live tasks", limit, decision.Profile().Name)
	}
	if err = freeShortName(tx, t); err != nil {
		return err
	}
	rec := record(c, audit.TaskDeclared, *t)
	rec.Manifest, rec.PolicySet, rec.Policies = &t.ManifestHash, t.PolicySet, decision.Policies()
	rec.NotAfter = t.NotAfter
	for _, g := range t.Grants {
		rec.Roles = append(rec.Roles, g.Role)
	}
	// The description is free text, so the manifest that holds it stands beside the log, where it can be erased.
	rec.Texts = map[string]string{audit.ManifestText: string(manifest)}
	if t.Record, err = tx.Append(rec); err != nil {
		return err
	}
	return tx.InsertTask(*t)
}

// freeShortName lengthens the short name until nobody has it.
func freeShortName(tx *ledger.Tx, t *task.Task) error {
	for length := task.ShortLength; ; length++ {
		t.ShortName = task.ShortName(t.Purpose, t.ID, length)
		switch _, err := tx.FindTask(ledger.TaskKey{ShortName: t.ShortName}); {
		case errors.Is(err, ledger.ErrNotFound):
			return nil
		case err != nil:
			return err
		case length == maxShortLength:
			return fault.New(fault.Internal, "no short name is free; try again")
		}
	}
}

// requestHash identifies a request's body, to tell a retry from another request under the same ID. encoding/json sorts
// the keys of maps.
func requestHash(body any) task.Hash {
	raw, err := json.Marshal(body)
	if err != nil { // the bodies are plain structs
		return task.Hash{}
	}
	return sha256.Sum256(raw)
}

func policyRoles(roles []RoleRequest) []policy.RoleInput {
	out := make([]policy.RoleInput, 0, len(roles))
	for _, r := range roles {
		out = append(out, policy.RoleInput{Role: r.Role, Params: r.Params, TTL: r.TTL})
	}
	return out
}

func roleNames(roles []RoleRequest) []string {
	out := make([]string, 0, len(roles))
	for _, r := range roles {
		out = append(out, r.Role)
	}
	return out
}
