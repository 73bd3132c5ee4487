package agenttest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

type adminService struct {
	stintv1.UnimplementedAdminServiceServer

	b *Broker
}

// admin lets the admin socket pass.
func admin(ctx context.Context) error {
	if caller(ctx) == localCaller {
		return nil
	}
	return Refusal(codes.PermissionDenied, "ADMIN_ROLE_REQUIRED", "this needs one of the roles admin, operator, auditor", nil)
}

// Apply understands documents that begin with kind and metadata.name, which is enough to list them.
func (s *adminService) Apply(ctx context.Context, req *stintv1.ApplyRequest) (*stintv1.ApplyResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	var next []*stintv1.Resource
	for _, file := range req.GetDocuments() {
		for text := range strings.SplitSeq(file.GetYaml(), "\n---\n") {
			r := parse(text)
			if r == nil {
				return nil, Refusal(codes.InvalidArgument, "RESOURCE_INVALID", file.GetFile()+":1: unknown kind. Nothing was changed.", nil)
			}
			next = append(next, r)
		}
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	answer := &stintv1.ApplyResponse{PolicySet: "9c2e51d0"}
	kept := next
	for _, old := range s.b.resources {
		if index(next, old.GetName()) >= 0 {
			continue
		}
		if req.GetPrune() {
			answer.Changes = append(answer.Changes, &stintv1.Change{Name: old.GetName(), Action: "deleted"})
			continue
		}
		kept = append(kept, old)
	}
	for _, r := range next {
		action := "created"
		if i := index(s.b.resources, r.GetName()); i >= 0 {
			action = "updated"
			if s.b.resources[i].GetEtag() == r.GetEtag() {
				action = "unchanged"
			}
		}
		answer.Changes = append(answer.Changes, &stintv1.Change{Name: r.GetName(), Action: action})
	}
	slices.SortFunc(answer.GetChanges(), func(x, y *stintv1.Change) int { return strings.Compare(x.GetName(), y.GetName()) })
	if !req.GetDryRun() {
		s.b.resources = kept
	}
	return answer, nil
}

func index(list []*stintv1.Resource, name string) int {
	return slices.IndexFunc(list, func(r *stintv1.Resource) bool { return r.GetName() == name })
}

func parse(text string) *stintv1.Resource {
	sum := sha256.Sum256([]byte(text))
	r := &stintv1.Resource{Yaml: text, Etag: hex.EncodeToString(sum[:]), Source: "api"}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case key == "kind" && value == "Role":
			r.Kind, r.Name, r.Backend = stintv1.ResourceKind_RESOURCE_KIND_ROLE, "roles/", "vault/prod"
			r.Exposure = role("orders-db-read").GetExposure()
		case key == "kind" && value == "Profile":
			r.Kind, r.Name = stintv1.ResourceKind_RESOURCE_KIND_PROFILE, "profiles/"
		case key == "kind" && value == "Policy":
			r.Kind, r.Name = stintv1.ResourceKind_RESOURCE_KIND_POLICY, "policies/"
		case key == "name" && strings.HasSuffix(r.GetName(), "/"):
			r.Name += value
		}
	}
	if r.GetKind() == stintv1.ResourceKind_RESOURCE_KIND_UNSPECIFIED {
		return nil
	}
	return r
}

func (s *adminService) ListResources(ctx context.Context, req *stintv1.ListResourcesRequest) (*stintv1.ListResourcesResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	answer := &stintv1.ListResourcesResponse{}
	for _, r := range s.b.resources {
		if req.GetKind() == stintv1.ResourceKind_RESOURCE_KIND_UNSPECIFIED || r.GetKind() == req.GetKind() {
			answer.Resources = append(answer.Resources, r)
		}
	}
	return answer, nil
}

func (s *adminService) ListAllTasks(ctx context.Context, _ *stintv1.ListAllTasksRequest) (*stintv1.ListAllTasksResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	answer := &stintv1.ListAllTasksResponse{}
	for _, task := range s.b.sorted() {
		answer.Tasks = append(answer.Tasks, clone(task))
	}
	return answer, nil
}

func (s *adminService) ListAllLeases(ctx context.Context, req *stintv1.ListAllLeasesRequest) (*stintv1.ListAllLeasesResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	name := ""
	if req.GetTask() != "" {
		name = s.b.find(req.GetTask()).GetName()
	}
	return &stintv1.ListAllLeasesResponse{Leases: s.b.copyLeases(name)}, nil
}

func (s *adminService) StopTask(ctx context.Context, req *stintv1.StopTaskRequest) (*stintv1.StopTaskResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	task := s.b.find(req.GetName())
	if task == nil {
		return nil, notFound(req.GetName())
	}
	s.b.close(task, stintv1.CloseReason_CLOSE_REASON_STOPPED)
	return &stintv1.StopTaskResponse{Task: clone(task), Leases: s.b.copyLeases(task.GetName()), Checkpoint: s.b.log.checkpoint()}, nil
}

func (s *adminService) WhoIs(ctx context.Context, req *stintv1.WhoIsRequest) (*stintv1.WhoIsResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for _, lease := range s.b.leases {
		if strings.TrimPrefix(lease.GetName(), "leases/") == req.GetQuery() || lease.GetPublicRef() == req.GetQuery() {
			return &stintv1.WhoIsResponse{Task: clone(s.b.find(lease.GetTask())), Lease: proto.CloneOf(lease)}, nil
		}
	}
	return nil, notFound(req.GetQuery())
}
