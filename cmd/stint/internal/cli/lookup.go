package cli

import (
	"context"

	"google.golang.org/grpc/codes"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const pageSize = 1000

// taskFilter says which tasks to list.
type taskFilter struct {
	everybody bool
	states    []stintv1.TaskState
	agent     string
}

// listTasks reads all pages.
func (s session) listTasks(ctx context.Context, f taskFilter) ([]*stintv1.Task, error) {
	return pages(func(token string) ([]*stintv1.Task, string, error) {
		call, cancel := s.app.call(ctx)
		defer cancel()
		if f.everybody {
			answer, err := s.Admin().ListAllTasks(call, &stintv1.ListAllTasksRequest{
				PageSize: pageSize, PageToken: token, States: f.states, Agent: f.agent,
			})
			return answer.GetTasks(), answer.GetNextPageToken(), err
		}
		answer, err := s.Tasks().ListTasks(call, &stintv1.ListTasksRequest{PageSize: pageSize, PageToken: token, States: f.states})
		return answer.GetTasks(), answer.GetNextPageToken(), err
	})
}

// leaseFilter says which leases to list.
type leaseFilter struct {
	everybody bool
	task      string
	states    []stintv1.LeaseState
	stuck     bool
}

func (s session) listLeases(ctx context.Context, f leaseFilter) ([]*stintv1.Lease, error) {
	return pages(func(token string) ([]*stintv1.Lease, string, error) {
		call, cancel := s.app.call(ctx)
		defer cancel()
		if f.everybody {
			answer, err := s.Admin().ListAllLeases(call, &stintv1.ListAllLeasesRequest{
				PageSize: pageSize, PageToken: token, States: f.states, Task: f.task, Stuck: f.stuck,
			})
			return answer.GetLeases(), answer.GetNextPageToken(), err
		}
		answer, err := s.Credentials().ListLeases(call, &stintv1.ListLeasesRequest{
			Task: f.task, PageSize: pageSize, PageToken: token, States: f.states,
		})
		return answer.GetLeases(), answer.GetNextPageToken(), err
	})
}

// pages calls until there is no next page.
func pages[T any](page func(token string) ([]T, string, error)) ([]T, error) {
	var all []T
	for token := ""; ; {
		items, next, err := page(token)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" || next == token {
			return all, nil
		}
		token = next
	}
}

// findTask returns one of the caller's tasks; on the admin socket anybody's.
func (s session) findTask(ctx context.Context, text string) (*stintv1.Task, error) {
	name := taskName(text)
	if s.app.flags.adminSocket == "" {
		return s.Tasks().GetTask(ctx, &stintv1.GetTaskRequest{Name: name})
	}
	tasks, err := s.listTasks(ctx, taskFilter{everybody: true})
	if err != nil {
		return nil, err
	}
	for _, task := range tasks {
		if task.GetName() == name || taskName(task.GetShortName()) == name {
			return task, nil
		}
	}
	return nil, &agent.Error{Code: codes.NotFound, Reason: stintv1.Reason_REASON_NOT_FOUND, Message: "there is no task " + text}
}

func (s session) leasesOf(ctx context.Context, task string) ([]*stintv1.Lease, error) {
	return s.listLeases(ctx, leaseFilter{everybody: s.app.flags.adminSocket != "", task: task})
}
