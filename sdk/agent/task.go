package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// DefaultIdleTimeout is how long after the last sign of life a task of [Client.Declare] closes by itself.
const DefaultIdleTimeout = 60 * time.Second

const (
	closeWait         = 20 * time.Second // how long Close lets the broker prove that everything ended
	closeReasonPrefix = "CLOSE_REASON_"
)

// Role is one role that a task asks for.
type Role struct {
	Name       string            // the operator's name for it
	Parameters map[string]string // what is fixed now and cannot be changed when a credential is issued
	TTL        time.Duration     // how long each credential should live, in whole seconds; 0: the role's default
}

// Declaration is what a task is going to do.
type Declaration struct {
	Purpose     string            // a short token that policy may decide on
	Description string            // for people, at most 2,048 bytes
	Roles       []Role            // each at most once; all must be permitted, or nothing is opened
	NotAfter    time.Time         // the deadline; cut to whole seconds
	TTL         time.Duration     // or the length from now; neither means the profile's default
	IdleTimeout time.Duration     // close when nothing was heard for so long; 0: DefaultIdleTimeout, or the profile's with Open
	Labels      map[string]string // for bookkeeping; never an input to a decision
	Strict      bool              // deny instead of shortening what is longer than allowed
	// RequestID makes the declaration the same one when it is sent again; "" makes one. At least 128 random bits.
	RequestID string
	// ValidateOnly decides and answers, but opens nothing.
	ValidateOnly bool
}

// Task is an open task that is kept alive until it is closed. It is safe for concurrent use.
type Task struct {
	client *Client
	name   string
	stop   context.CancelFunc // of what keeps it alive
	wait   sync.WaitGroup
	done   chan struct{}
	latest atomic.Pointer[stintv1.Task]

	mu      sync.Mutex // guards what follows
	ended   bool       // done is closed
	err     error      // why it ended from outside
	ours    bool       // the end was asked for here
	outcome stintv1.CloseReason
}

// Open declares a task and does nothing to keep it alive: for those who go on elsewhere. Where the declaration has a
// deadline, the broker's manifest hash is compared with the one computed here; a difference is [ErrManifest].
func (c *Client) Open(ctx context.Context, d Declaration) (*stintv1.DeclareTaskResponse, error) {
	req, err := d.request()
	if err != nil {
		return nil, err
	}
	want := ""
	if req.GetNotAfter() != nil {
		if want, err = d.manifest(c.ID().String(), req).SHA256(); err != nil {
			return nil, err
		}
	}
	answer, err := c.Tasks().DeclareTask(ctx, req)
	if err != nil {
		return nil, err
	}
	if got := answer.GetTask().GetManifestSha256(); want != "" && got != want {
		return nil, c.abandon(ctx, answer.GetTask(), fmt.Errorf("%w: stored sha256:%s, declared sha256:%s", ErrManifest, got, want))
	}
	return answer, nil
}

// abandon closes a task that nobody will use, and returns why.
func (c *Client) abandon(ctx context.Context, task *stintv1.Task, why error) error {
	if task.GetName() == "" {
		return why
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	_, err := c.Tasks().CompleteTask(ctx, &stintv1.CompleteTaskRequest{
		Name: task.GetName(), Outcome: stintv1.CloseReason_CLOSE_REASON_CANCELLED,
	})
	return errors.Join(why, err)
}

// Declare opens a task and keeps it alive until Close: with a watch, and a keepalive three times in an idle timeout. The
// context bounds the declaration, not the task. Close it on every way out; if the process dies, the idle timeout does.
func (c *Client) Declare(ctx context.Context, d Declaration) (*Task, error) {
	if d.ValidateOnly {
		return nil, invalid("a declaration that only validates opens no task; use Open")
	}
	if d.IdleTimeout == 0 {
		d.IdleTimeout = DefaultIdleTimeout
	}
	answer, err := c.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	t := &Task{client: c, name: answer.GetTask().GetName(), done: make(chan struct{})}
	t.latest.Store(answer.GetTask())
	t.keep(ctx)
	return t, nil
}

// request turns a declaration into a message. The deadline is absolute and in whole seconds, so that it can be hashed.
func (d Declaration) request() (*stintv1.DeclareTaskRequest, error) {
	if !d.NotAfter.IsZero() && d.TTL != 0 {
		return nil, invalid("a declaration has a deadline or a length, not both")
	}
	if d.TTL < 0 || (d.TTL > 0 && d.TTL < time.Second) {
		return nil, invalid("ttl %s is shorter than a second", d.TTL)
	}
	req := &stintv1.DeclareTaskRequest{
		Purpose: d.Purpose, Description: d.Description, Labels: d.Labels, Strict: d.Strict,
		RequestId: d.RequestID, ValidateOnly: d.ValidateOnly,
	}
	if req.GetRequestId() == "" {
		req.RequestId = NewRequestID()
	}
	deadline := d.NotAfter
	if d.TTL > 0 {
		deadline = time.Now().Add(d.TTL)
	}
	if !deadline.IsZero() {
		req.NotAfter = timestamppb.New(deadline.Truncate(time.Second))
	}
	if d.IdleTimeout > 0 {
		req.IdleTimeout = durationpb.New(d.IdleTimeout)
	}
	for _, r := range d.Roles {
		role := &stintv1.RoleRequest{Role: r.Name, Parameters: r.Parameters}
		if r.TTL > 0 {
			role.Ttl = durationpb.New(r.TTL)
		}
		req.Roles = append(req.Roles, role)
	}
	return req, nil
}

func (d Declaration) manifest(agent string, req *stintv1.DeclareTaskRequest) Manifest {
	m := Manifest{
		Agent: agent, Purpose: d.Purpose, Description: d.Description,
		NotAfter: req.GetNotAfter().AsTime(), RequestID: req.GetRequestId(),
	}
	for _, r := range d.Roles {
		m.Roles = append(m.Roles, ManifestRole(r))
	}
	return m
}

// Name returns "tasks/<ID>".
func (t *Task) Name() string { return t.name }

// Latest returns the task as it was last heard of. The message is shared: do not change it.
func (t *Task) Latest() *stintv1.Task { return t.latest.Load() }

// Issue asks for one credential; see [Client.Issue].
func (t *Task) Issue(ctx context.Context, role string, o IssueOptions) (*Credential, error) {
	return t.client.Issue(ctx, t.name, role, o)
}

// Done is closed when the task is over: closed here, by its deadline, or by somebody else. Err says which.
func (t *Task) Done() <-chan struct{} { return t.done }

// Err returns nil until the task is over, and where it was closed here. Else an [*Error] with reason TASK_EXPIRED or
// TASK_CLOSED, whose metadata has the close_reason ("STOPPED", "ABANDONED", …).
func (t *Task) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// SetOutcome says what Close will report: COMPLETED (unless set), FAILED or CANCELLED.
func (t *Task) SetOutcome(outcome stintv1.CloseReason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outcome = outcome
}

// Close completes the task with its outcome and gives the broker 20 s to prove that everything issued for it ended; the
// broker goes on after that. Closing a task that is over is not an error.
func (t *Task) Close(ctx context.Context) error {
	_, err := t.Complete(ctx, closeWait)
	return err
}

// Complete is Close that returns what the broker says, and waits for teardown as long as told, at most 60 s.
func (t *Task) Complete(ctx context.Context, wait time.Duration) (*stintv1.CompleteTaskResponse, error) {
	t.mu.Lock()
	t.ours = true
	outcome := t.outcome
	t.mu.Unlock()
	answer, err := t.client.Tasks().CompleteTask(ctx, &stintv1.CompleteTaskRequest{
		Name: t.name, Outcome: outcome, Wait: durationpb.New(wait),
	})
	if err == nil {
		t.latest.Store(answer.GetTask())
	}
	// Also after a failure nothing keeps the task alive any more: its idle timeout ends it.
	t.end(nil)
	t.stop()
	t.wait.Wait()
	return answer, err
}

// end makes the task over, once.
func (t *Task) end(why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	t.ended = true
	if !t.ours {
		t.err = why
	}
	close(t.done)
}

// over is the error for a task that ended from outside.
func over(task *stintv1.Task, why stintv1.CloseReason) *Error {
	e := &Error{Code: codes.FailedPrecondition, Reason: stintv1.Reason_REASON_TASK_CLOSED, Metadata: map[string]string{
		"task": task.GetName(), "close_reason": strings.TrimPrefix(why.String(), closeReasonPrefix),
	}}
	name := task.GetShortName()
	switch why {
	case stintv1.CloseReason_CLOSE_REASON_EXPIRED:
		e.Reason = stintv1.Reason_REASON_TASK_EXPIRED
		e.Message = fmt.Sprintf("task %s reached its deadline at %s", name, task.GetNotAfter().AsTime().Format(time.RFC3339))
	case stintv1.CloseReason_CLOSE_REASON_ABANDONED:
		e.Message = fmt.Sprintf("task %s was closed: nothing was heard of it for %s", name, task.GetIdleTimeout().AsDuration())
	case stintv1.CloseReason_CLOSE_REASON_STOPPED:
		e.Message = fmt.Sprintf("task %s was stopped by an operator", name)
	case stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED:
		e.Message = fmt.Sprintf("task %s was closed: its agent is suspended", name)
	case stintv1.CloseReason_CLOSE_REASON_UNSPECIFIED, stintv1.CloseReason_CLOSE_REASON_COMPLETED,
		stintv1.CloseReason_CLOSE_REASON_FAILED, stintv1.CloseReason_CLOSE_REASON_CANCELLED:
		e.Message = fmt.Sprintf("task %s was closed by another caller with this identity", name)
	}
	return e
}
