package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
)

// maxHeld bounds what a decision is told of an agent's live leases; profiles allow fewer.
const maxHeld = 10_000

// IssueRequest asks for one credential of a task.
type IssueRequest struct {
	Task   TaskRef
	Role   string
	Params map[string]string
	TTL    time.Duration
	// CSR is a PKCS #10 request in DER, for certificates.
	CSR       []byte
	RequestID string
}

// Issued is a credential and its lease. Credential is empty but for the chain when a certificate is returned again.
type Issued struct {
	Lease      lease.Lease
	Credential plugins.Credential
	Clamps     []policy.Clamp
	Checkpoint []byte
}

// Issue hands out one credential. A backend with effects of its own gets a durable intent first; the secret leaves only
// after the lease is ACTIVE on disk, and is dropped and torn down if its task ended meanwhile.
func (b *Broker) Issue(ctx context.Context, c Caller, req IssueRequest) (Issued, error) {
	if err := b.gate.enter(); err != nil {
		return Issued{}, err
	}
	defer b.gate.leave()
	if err := b.Unheld(); err != nil {
		return Issued{}, err
	}

	now := time.Now()
	t, hash, again, err := b.openIssue(ctx, c, req)
	if err != nil || again != nil {
		return b.fromLease(again), err
	}
	b.heard(t, nil)
	denied := denial{event: audit.LeaseDenied, task: &t, roles: []string{req.Role}}
	decision, force, err := b.decide(ctx, c, req, t, now)
	if err != nil {
		return Issued{}, b.refuse(ctx, c, denied, err)
	}
	in, ok := force.Backends.Find(decision.Backend())
	if !ok {
		return Issued{}, fault.New(fault.BackendMisconfigured, "the backend of this role is not configured; tell your operator")
	}
	is, err := newIssue(c, t, decision, in.Backend, now)
	if err != nil {
		return Issued{}, err
	}
	is.lease.RequestID, is.lease.RequestHash, is.request.CSR = req.RequestID, hash, req.CSR
	// The call goes on when the caller goes away: what it may bring to life has to be recorded either way.
	ctx = context.WithoutCancel(ctx)
	out, err := b.carryOut(ctx, is)
	if errors.Is(err, ledger.ErrExists) { // the same request on another connection was faster
		return b.overtaken(ctx, c, req)
	}
	if err != nil {
		return Issued{}, b.issueFault(ctx, is, denied, err)
	}
	out.Clamps = decision.Clamps()
	b.meter.Issued(out.Lease.Backend, out.Lease.Role)
	return out, nil
}

// overtaken answers a request whose lease another connection has made.
func (b *Broker) overtaken(ctx context.Context, c Caller, req IssueRequest) (Issued, error) {
	_, _, again, err := b.openIssue(ctx, c, req)
	if err == nil && again == nil {
		err = fault.New(fault.AlreadyIssued, "the same request is being answered on another connection; ask again").Retry(backendRetry)
	}
	return b.fromLease(again), err
}

// openIssue reads the task, and the lease that the same request made before.
func (b *Broker) openIssue(ctx context.Context, c Caller, req IssueRequest) (task.Task, task.Hash, *lease.Lease, error) {
	var t task.Task
	var hash task.Hash
	var again *lease.Lease
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		if t, err = findTask(r, req.Task, c.agent()); err != nil {
			return err
		}
		req.Task = TaskRef{ID: t.ID} // by whatever name: the request is the same
		hash = requestHash(req)
		l, err := r.FindLease(ledger.LeaseKey{Agent: c.agent(), RequestID: req.RequestID})
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if l.RequestHash != hash {
			return reused("leases/" + l.ID.String())
		}
		if again = &l; l.State != lease.Active || l.Chain == nil {
			return fault.New(fault.AlreadyIssued, "this request has lease "+l.ID.String()+", "+string(l.State)+
				", and its secret is not kept: revoke the lease and ask anew").With("lease", "leases/"+l.ID.String())
		}
		return nil
	})
	return t, hash, again, storeFault(err)
}

// fromLease gives a certificate that was issued before once more.
func (b *Broker) fromLease(l *lease.Lease) Issued {
	if l == nil {
		return Issued{}
	}
	return Issued{Lease: *l, Checkpoint: b.ledger.Head().Checkpoint, Credential: plugins.Credential{
		Chain: l.Chain, Bundle: l.Bundle, PublicRef: l.PublicRef, NotAfter: l.NotAfter,
	}}
}

// decide asks the policy, after what needs none. It also returns what was in force, so that the backend that carries the
// decision out is the one that it was made for.
func (b *Broker) decide(
	ctx context.Context, c Caller, req IssueRequest, t task.Task, now time.Time,
) (policy.Decision, *inForce, error) {
	if err := admits(t, now); err != nil {
		return policy.Decision{}, nil, err
	}
	if err := b.undamaged(); err != nil {
		return policy.Decision{}, nil, err
	}
	if b.ledger.Low() {
		return policy.Decision{}, nil, fault.New(fault.LedgerUnavailable,
			"the ledger's disk is nearly full: nothing is issued until there is room; revoking goes on").Retry(ledgerRetry)
	}
	force := b.catalog.force.Load()
	held, err := b.held(ctx, force.engine, t.Agent)
	if err != nil {
		return policy.Decision{}, nil, err
	}
	decision, err := force.engine.Issue(policy.IssueInput{
		Identity: c.Identity, Task: t, Role: req.Role, Params: req.Params, TTL: req.TTL, Held: held,
		Now: now,
	})
	return decision, force, err
}

// admits says whether a task takes issues now.
func admits(t task.Task, now time.Time) error {
	switch left := t.NotAfter.Sub(now); {
	case t.State != task.Active && t.CloseReason == task.Expired, left <= 0:
		return fault.New(fault.TaskExpired, "the task expired at "+t.NotAfter.UTC().Format(time.RFC3339)+"; declare a new one")
	case t.State != task.Active:
		return fault.New(fault.TaskClosed, fmt.Sprintf("the task is %s (%s); declare a new one", t.State, t.CloseReason))
	case left < IssueTimeout:
		return fault.New(fault.DeadlineTooClose, fmt.Sprintf("the task ends in %s, and issuing may take %s",
			left.Truncate(time.Second), IssueTimeout)).With(policy.MetaClasses, "deadline")
	default:
		return nil
	}
}

// held returns the roles of which the agent has live leases, where a policy asks for them.
func (b *Broker) held(ctx context.Context, engine *policy.Engine, agent string) ([]string, error) {
	if !engine.ReadsHeld() {
		return nil, nil
	}
	var roles []string
	err := b.ledger.View(ctx, func(r ledger.Reader) error {
		live, err := r.ListLeases(ledger.LeaseFilter{
			Agent: agent, States: []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing}, Limit: maxHeld,
		})
		for _, l := range live {
			roles = append(roles, l.Role)
		}
		return err
	})
	return roles, storeFault(err)
}

// issue is one credential on its way.
type issue struct {
	caller   Caller
	task     task.Task
	lease    lease.Lease
	request  plugins.Request
	backend  plugins.Backend
	decision policy.Decision
	deadline time.Time
	// intended is true once the intent is durable, asked once the backend may have issued.
	intended, asked bool
}

// newIssue prepares the lease and the plugin's request of an issue.
func newIssue(c Caller, t task.Task, d policy.Decision, backend plugins.Backend, now time.Time) (*issue, error) {
	id, err := lease.NewID()
	if err != nil {
		return nil, err
	}
	deadline := now.Add(IssueTimeout)
	return &issue{
		caller: c, task: t, backend: backend, decision: d, deadline: deadline,
		lease: lease.Lease{
			ID: id, Task: t.ID, TaskName: t.ShortName, Agent: t.Agent, Role: d.Role().Name, Backend: d.Backend(),
			Lane: d.Lane(), State: lease.Intent, Ends: d.RoleInfo().Ends, Exposure: d.Exposure(),
			Params: d.Params(), CreatedAt: now, NotAfter: d.NotAfter(),
		},
		request: d.Request(id, nil),
	}, nil
}

// issueFault turns what went wrong into what the caller sees. Causes of backends go to the log, under the request ID.
func (b *Broker) issueFault(ctx context.Context, is *issue, d denial, err error) error {
	ctx, cancel := context.WithTimeout(ctx, IssueTimeout) // a call that hung has used up its own
	defer cancel()
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return b.deny(ctx, is.caller, d, f)
	}
	if rejected, ok := errors.AsType[*plugins.RejectedError](err); ok {
		reason, class := fault.ParameterInvalid, "parameter"
		if rejected.Field == "csr" {
			reason, class = fault.CSRInvalid, "csr"
		}
		f := fault.New(reason, rejected.Error()).With(policy.MetaClasses, class)
		f.Fields = []fault.Field{{Name: rejected.Field, Problem: rejected.Problem}}
		return b.deny(ctx, is.caller, d, f)
	}
	f, isBackend := backendFault(is, err)
	if !isBackend {
		return storeFault(err)
	}
	b.log.Warn("issue failed", zap.String("request", is.caller.Request), zap.String("backend", is.lease.Backend),
		zap.String("role", is.lease.Role), zap.Stringer("lease", is.lease.ID), zap.Error(err))
	if !is.intended { // no record tells of it yet
		d.event = audit.LeaseFailed
		return b.deny(ctx, is.caller, d, f)
	}
	b.meter.Denied(f.Reason)
	return f
}

// backendFault classifies a backend's error; false where it is none.
func backendFault(is *issue, err error) (*fault.Error, bool) {
	nothing := "; nothing was issued"
	if is.intended && !errors.Is(err, plugins.ErrNotIssued) {
		nothing = "; what may have been issued was not handed out, and is ended by " +
			is.lease.SweepAt.UTC().Format(time.RFC3339)
	}
	switch {
	case errors.Is(err, plugins.ErrMisconfigured):
		return fault.Wrap(fault.BackendMisconfigured,
			"the backend refuses what the operator set up; tell your operator the request ID"+nothing, err), true
	case errors.Is(err, plugins.ErrUnavailable), errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ledger.ErrUnavailable):
		how := "does not answer"
		if errors.Is(err, plugins.ErrSealed) {
			how = "is sealed"
		}
		message := fmt.Sprintf("%s %s, retry in %.0f s%s", is.lease.Backend, how, backendRetry.Seconds(), nothing)
		return fault.Wrap(fault.BackendUnavailable, message, err).Retry(backendRetry), true
	case errors.Is(err, plugins.ErrNotIssued):
		return fault.Wrap(fault.BackendMisconfigured, "the backend refused"+nothing, err), true
	default:
		return nil, false
	}
}
