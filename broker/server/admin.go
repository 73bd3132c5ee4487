package server

import (
	"context"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// sourceAPI is where resources come from that were applied over the API.
const sourceAPI = "api"

// adminService is stint.v1.AdminService.
type adminService struct {
	stintv1.UnimplementedAdminServiceServer

	server *Server
}

func (s *adminService) broker() *broker.Broker { return s.server.cfg.Broker }

// Apply makes resources what the documents say.
func (s *adminService) Apply(ctx context.Context, req *stintv1.ApplyRequest) (*stintv1.ApplyResponse, error) {
	apply := broker.Apply{DryRun: req.GetDryRun(), Prune: req.GetPrune()}
	for _, d := range req.GetDocuments() {
		name := d.GetFile()
		if name == "" {
			name = sourceAPI
		}
		apply.Files = append(apply.Files, resource.File{Name: name, YAML: d.GetYaml(), Source: sourceAPI})
	}
	applied, err := s.broker().Catalog().Apply(ctx, callerOf(ctx), apply)
	if err != nil {
		return nil, err
	}
	return &stintv1.ApplyResponse{
		Changes: changesOf(applied.Changes), Warnings: applied.Warnings, PolicySet: applied.PolicySet,
	}, nil
}

// GetResource returns one resource.
func (s *adminService) GetResource(_ context.Context, req *stintv1.GetResourceRequest) (*stintv1.Resource, error) {
	set := s.broker().Catalog().Engine().Set()
	doc, ok := set.Document(req.GetName())
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no resource of that name; names are like roles/orders-db-read")
	}
	return resourceOf(set, doc), nil
}

// ListResources returns the resources of a kind.
func (s *adminService) ListResources(
	_ context.Context, req *stintv1.ListResourcesRequest,
) (*stintv1.ListResourcesResponse, error) {
	set := s.broker().Catalog().Engine().Set()
	out := &stintv1.ListResourcesResponse{}
	for _, doc := range set.Documents() {
		if want := req.GetKind(); want == stintv1.ResourceKind_RESOURCE_KIND_UNSPECIFIED || want == kindOf(doc.Kind) {
			out.Resources = append(out.Resources, resourceOf(set, doc))
		}
	}
	return out, nil
}

// DeleteResource removes a resource.
func (s *adminService) DeleteResource(
	ctx context.Context, req *stintv1.DeleteResourceRequest,
) (*stintv1.DeleteResourceResponse, error) {
	ending, err := s.broker().Catalog().Delete(ctx, callerOf(ctx), req.GetName())
	if err != nil {
		return nil, err
	}
	return &stintv1.DeleteResourceResponse{LeasesEnding: count(ending)}, nil
}

// ListAllTasks returns a page of everybody's tasks.
func (s *adminService) ListAllTasks(ctx context.Context, req *stintv1.ListAllTasksRequest) (*stintv1.ListAllTasksResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := taskToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	tasks, err := s.broker().AllTasks(ctx, ledger.TaskFilter{
		Agent: req.GetAgent(), States: taskStatesOf(req.GetStates()), Before: before, Limit: size + 1,
	})
	if err != nil {
		return nil, err
	}
	tasks, token := cutPage(tasks, size, func(t task.Task) [16]byte { return t.ID })
	return &stintv1.ListAllTasksResponse{Tasks: s.server.tasks(tasks), NextPageToken: token}, nil
}

// ListAllLeases returns a page of everybody's leases.
func (s *adminService) ListAllLeases(
	ctx context.Context, req *stintv1.ListAllLeasesRequest,
) (*stintv1.ListAllLeasesResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := leaseToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	ref, err := optionalTask(req.GetTask())
	if err != nil {
		return nil, err
	}
	leases, err := s.broker().AllLeases(ctx, ref, ledger.LeaseFilter{
		States: leaseStatesOf(req.GetStates()), Stuck: req.GetStuck(), Before: before, Limit: size + 1,
	})
	if err != nil {
		return nil, err
	}
	leases, token := cutPage(leases, size, func(l lease.Lease) [16]byte { return l.ID })
	return &stintv1.ListAllLeasesResponse{Leases: leasesOf(leases), NextPageToken: token}, nil
}

// StopTask closes anybody's task.
func (s *adminService) StopTask(ctx context.Context, req *stintv1.StopTaskRequest) (*stintv1.StopTaskResponse, error) {
	ref, err := broker.ParseTaskRef(req.GetName())
	if err != nil {
		return nil, err
	}
	ended, err := s.broker().Stop(ctx, callerOf(ctx), ref, req.GetComment(), req.GetWait().AsDuration())
	if err != nil {
		return nil, err
	}
	return &stintv1.StopTaskResponse{
		Task: s.server.task(ended.Task), Leases: leasesOf(ended.Leases), Checkpoint: string(ended.Checkpoint),
	}, nil
}

// WhoIs finds the task behind what was found somewhere.
func (s *adminService) WhoIs(ctx context.Context, req *stintv1.WhoIsRequest) (*stintv1.WhoIsResponse, error) {
	t, l, err := s.broker().WhoIs(ctx, req.GetQuery())
	if err != nil {
		return nil, err
	}
	out := &stintv1.WhoIsResponse{Task: s.server.task(t)}
	if l != nil {
		out.Lease = leaseOf(*l)
	}
	return out, nil
}
