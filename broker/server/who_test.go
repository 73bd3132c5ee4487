package server_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func TestWhoIs(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, oncall := h.As(t, "/agent/a"), h.As(t, "/ops/oncall")
	task := agent.Declare(t, "orders-db")
	lease := agent.Issue(t, task, "orders-db").GetLease()
	for _, query := range []string{lease.GetName(), lease.GetPublicRef(), task.GetName(), task.GetShortName()} {
		got, err := oncall.Admin.WhoIs(t.Context(), &stintv1.WhoIsRequest{Query: query})
		if err != nil || got.GetTask().GetName() != task.GetName() {
			t.Errorf("%s: %v, %v", query, got, err)
		}
	}
	_, err := oncall.Admin.WhoIs(t.Context(), &stintv1.WhoIsRequest{Query: "v-token-of-nobody"})
	wantReason(t, err, codes.NotFound, fault.NotFound)
}

func TestWhoAmI(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	for _, c := range []struct {
		client              *brokertest.Client
		id, method, profile string
		roles               []string
	}{
		{h.As(t, "/agent/a"), "spiffe://example.org/agent/a", "x509-svid", "agents", nil},
		{h.WithToken(t, h.Token(t, "/agent/a")), "spiffe://example.org/agent/a", "jwt-svid", "agents", nil},
		{h.As(t, "/ops/alice"), "spiffe://example.org/ops/alice", "x509-svid", "", []string{"admin"}},
		{h.WithToken(t, h.Token(t, "/ops/alice")), "spiffe://example.org/ops/alice", "jwt-svid", "", nil},
		{h.Local(t), "local:uid:1000", "local", "", []string{"admin"}},
	} {
		got, err := c.client.Tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got.GetId() != c.id || got.GetMethod() != c.method || got.GetProfile() != c.profile || !cmp.Equal(got.GetAdminRoles(), c.roles) {
			t.Errorf("got %v, want %v", got, c)
		}
		if got.GetServerId() != "spiffe://example.org/stint" || got.GetServerVersion() != brokertest.Version || got.GetServerTime() == nil {
			t.Errorf("server %v", got)
		}
		if hasEnd := got.GetSvidExpires() != nil; hasEnd == (c.method == "local") {
			t.Errorf("%s: expires %v", c.id, got.GetSvidExpires())
		}
	}
}

// What an agent hears of itself, whole.
func TestWhoAmIWhole(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	got, err := h.As(t, "/agent/a").Tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{})
	if err != nil {
		t.Fatal(err)
	}
	role := func(name string, normal, most time.Duration) *stintv1.AvailableRole {
		return &stintv1.AvailableRole{
			Name: name, DefaultTtl: durationpb.New(normal), MaxTtl: durationpb.New(most),
			Exposure: &stintv1.Exposure{Max: durationpb.New(0), Reason: "revoked synchronously"}, Delivery: &stintv1.Delivery{},
		}
	}
	certificate, orders := role("client-cert", 5*time.Minute, 10*time.Minute), role("orders-db", 10*time.Minute, 30*time.Minute)
	certificate.NeedsCsr = true
	orders.Description = "Rows of the orders database"
	orders.Delivery = &stintv1.Delivery{
		Env:  map[string]string{"PGUSER": "{{ .username }}", "PGPASSWORD": "{{ .password }}"},
		With: map[string]string{"PGHOST": "orders.db.example.org"},
	}
	parametric := role("parametric", 5*time.Minute, 10*time.Minute)
	parametric.Parameters = []*stintv1.ParameterInfo{{Name: "host", Pattern: "[a-z0-9.]+", Required: true, Description: "Where to"}}
	want := &stintv1.WhoAmIResponse{
		Id: "spiffe://example.org/agent/a", Method: "x509-svid", Profile: "agents", Owner: "platform@example.org",
		Purposes: []string{"answer-invoice", "reconcile-invoices"}, MaxTaskTtl: durationpb.New(time.Hour),
		Roles:         []*stintv1.AvailableRole{certificate, orders, parametric, role("vault-like", 5*time.Minute, 10*time.Minute)},
		ServerVersion: brokertest.Version, ServerId: "spiffe://example.org/stint",
	}
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(want, "svid_expires", "server_time")); diff != "" {
		t.Error(diff)
	}
}

func TestAvailableRoles(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	got, err := h.As(t, "/agent/a").Tasks.ListAvailableRoles(t.Context(), &stintv1.ListAvailableRolesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range got.GetRoles() {
		names = append(names, r.GetName())
	}
	if !cmp.Equal(names, []string{"client-cert", "orders-db", "parametric", "vault-like"}) {
		t.Errorf("roles %v", names)
	}
	if r := got.GetRoles()[0]; !r.GetNeedsCsr() || r.GetMaxTtl().AsDuration() != 10*time.Minute {
		t.Errorf("role %v", r)
	}
	if p := got.GetRoles()[2].GetParameters(); len(p) != 1 || p[0].GetPattern() != "[a-z0-9.]+" || !p[0].GetRequired() {
		t.Errorf("parameters %v", p)
	}
}
