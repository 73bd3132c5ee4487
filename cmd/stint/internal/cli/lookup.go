package cli

import (
	"context"

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

// listTasks reads all pages: the caller's own tasks, or everybody's where that was asked for or the caller is no agent.
func (s session) listTasks(ctx context.Context, f taskFilter) ([]*stintv1.Task, error) {
	return ownOrAll(f.everybody, func() ([]*stintv1.Task, error) {
		return pages(func(token string) ([]*stintv1.Task, string, error) {
			call, cancel := s.app.call(ctx)
			defer cancel()
			answer, err := s.Tasks().ListTasks(call, &stintv1.ListTasksRequest{PageSize: pageSize, PageToken: token, States: f.states})
			return answer.GetTasks(), answer.GetNextPageToken(), err
		})
	}, func() ([]*stintv1.Task, error) {
		return pages(func(token string) ([]*stintv1.Task, string, error) {
			call, cancel := s.app.call(ctx)
			defer cancel()
			answer, err := s.Admin().ListAllTasks(call, &stintv1.ListAllTasksRequest{
				PageSize: pageSize, PageToken: token, States: f.states, Agent: f.agent,
			})
			return answer.GetTasks(), answer.GetNextPageToken(), err
		})
	})
}

// leaseFilter says which leases to list.
type leaseFilter struct {
	everybody bool
	task      string
	states    []stintv1.LeaseState
	stuck     bool
}

// listLeases is listTasks for leases.
func (s session) listLeases(ctx context.Context, f leaseFilter) ([]*stintv1.Lease, error) {
	return ownOrAll(f.everybody, func() ([]*stintv1.Lease, error) {
		return pages(func(token string) ([]*stintv1.Lease, string, error) {
			call, cancel := s.app.call(ctx)
			defer cancel()
			answer, err := s.Credentials().ListLeases(call, &stintv1.ListLeasesRequest{
				Task: f.task, PageSize: pageSize, PageToken: token, States: f.states,
			})
			return answer.GetLeases(), answer.GetNextPageToken(), err
		})
	}, func() ([]*stintv1.Lease, error) {
		return pages(func(token string) ([]*stintv1.Lease, string, error) {
			call, cancel := s.app.call(ctx)
			defer cancel()
			answer, err := s.Admin().ListAllLeases(call, &stintv1.ListAllLeasesRequest{
				PageSize: pageSize, PageToken: token, States: f.states, Task: f.task, Stuck: f.stuck,
			})
			return answer.GetLeases(), answer.GetNextPageToken(), err
		})
	})
}

// ownOrAll lists the caller's own things, and everybody's where a flag says so or the caller turns out to be an
// administrator, who has none of its own.
//
//nolint:revive // the flag is the person's decision
func ownOrAll[T any](everybody bool, own, all func() ([]T, error)) ([]T, error) {
	if everybody {
		return all()
	}
	items, err := own()
	if agent.ReasonOf(err) != stintv1.Reason_REASON_NO_PROFILE {
		return items, err
	}
	items, allErr := all()
	if agent.ReasonOf(allErr) == stintv1.Reason_REASON_ADMIN_ROLE_REQUIRED {
		return nil, err
	}
	return items, allErr
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
