package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	beatsPerTimeout = 3
	shortestBeat    = 500 * time.Millisecond
	rewatchFirst    = 100 * time.Millisecond
	rewatchMost     = 5 * time.Second
	deadlineGrace   = time.Second // the broker says first that a deadline has passed
)

// keep starts what keeps a task alive and notices its end. Complete stops and awaits it.
func (t *Task) keep(ctx context.Context) {
	ctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	t.wait.Go(func() { t.watch(ctx) })
	t.wait.Go(func() { t.deadline(ctx) })
	if idle := t.Latest().GetIdleTimeout().AsDuration(); idle > 0 {
		t.wait.Go(func() { t.beat(ctx, max(idle/beatsPerTimeout, shortestBeat)) })
	}
}

// watch follows the task, across reconnects, until it is over or ctx is done.
func (t *Task) watch(ctx context.Context) {
	for pause := rewatchFirst; ; pause = min(2*pause, rewatchMost) {
		began := time.Now()
		err := t.follow(ctx)
		if t.gone(err) {
			return
		}
		if time.Since(began) > rewatchMost { // it worked for a while: a recycled connection, not a dead broker
			pause = rewatchFirst
		}
		if !sleep(ctx, t.done, jitter(pause)) {
			return
		}
	}
}

// follow reads one stream to its end.
func (t *Task) follow(ctx context.Context) error {
	stream, err := t.client.Tasks().WatchTask(ctx, &stintv1.WatchTaskRequest{Name: t.name})
	if err != nil {
		return err
	}
	for {
		task, err := stream.Recv()
		if err != nil {
			return err
		}
		t.latest.Store(task)
		if task.GetState() != stintv1.TaskState_TASK_STATE_ACTIVE {
			t.end(over(task, task.GetCloseReason()))
			return nil
		}
	}
}

// gone says whether there is nothing more to follow, and ends the task where an error says that it is over.
func (t *Task) gone(err error) bool {
	if err == nil {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Reason { //nolint:exhaustive // everything else may pass
	case stintv1.Reason_REASON_NOT_FOUND, stintv1.Reason_REASON_TASK_CLOSED, stintv1.Reason_REASON_TASK_EXPIRED:
		t.end(e)
		return true
	case stintv1.Reason_REASON_AGENT_SUSPENDED: // which closed every task of the agent in the same commit
		t.end(over(t.Latest(), stintv1.CloseReason_CLOSE_REASON_AGENT_SUSPENDED))
		return true
	default:
		return false
	}
}

// beat tells the broker that the agent lives. A beat that fails is made up for by the next; the answer may say that the
// task is over.
func (t *Task) beat(ctx context.Context, every time.Duration) {
	for sleep(ctx, t.done, jitter(every)) {
		call, cancel := context.WithTimeout(ctx, every)
		answer, err := t.client.Tasks().KeepAlive(call, &stintv1.KeepAliveRequest{Name: t.name})
		cancel()
		if err != nil {
			if t.gone(err) {
				return
			}
			continue
		}
		if state := answer.GetState(); state != stintv1.TaskState_TASK_STATE_ACTIVE {
			t.learn(ctx)
			return
		}
	}
}

// learn asks why the task is over.
func (t *Task) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	task, err := t.client.Tasks().GetTask(ctx, &stintv1.GetTaskRequest{Name: t.name})
	if err != nil {
		task = t.Latest()
	} else {
		t.latest.Store(task)
	}
	t.end(over(task, task.GetCloseReason()))
}

// deadline ends the task here when its time has passed, also while the broker cannot be reached. The broker's times are
// compared with each other only, so that a wrong clock here does no harm.
func (t *Task) deadline(ctx context.Context) {
	task := t.Latest()
	if task.GetNotAfter() == nil {
		return
	}
	left := task.GetNotAfter().AsTime().Sub(task.GetCreateTime().AsTime())
	if sleep(ctx, t.done, left+deadlineGrace) {
		t.end(over(t.Latest(), stintv1.CloseReason_CLOSE_REASON_EXPIRED))
	}
}

// jitter takes up to a tenth away, so that agents do not call in step.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/10+1) //nolint:gosec // jitter is no secret
}

// sleep waits for a time; false when ctx or done came first.
func sleep(ctx context.Context, done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-done:
		return false
	case <-timer.C:
		return true
	}
}
