package server_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	declare := &stintv1.DeclareTaskRequest{
		Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(),
		Roles: []*stintv1.RoleRequest{{Role: "orders-db"}, {Role: "client-cert"}},
	}
	var names []string
	for range 2 {
		res, err := agent.Tasks.DeclareTask(t.Context(), declare)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, res.GetTask().GetName())
	}
	if names[0] != names[1] {
		t.Errorf("the same request opened two tasks: %v", names)
	}
	declare.Purpose = "answer-invoice"
	_, err := agent.Tasks.DeclareTask(t.Context(), declare)
	wantReason(t, err, codes.AlreadyExists, fault.RequestIDReused)

	secret := &stintv1.IssueCredentialRequest{Task: names[0], Role: "orders-db", RequestId: brokertest.RequestID()}
	first, err := agent.Credentials.IssueCredential(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	_, err = agent.Credentials.IssueCredential(t.Context(), secret)
	wantReason(t, err, codes.AlreadyExists, fault.AlreadyIssued)
	if got := detail[errdetails.ErrorInfo](err).GetMetadata()["lease"]; got != first.GetLease().GetName() {
		t.Errorf("the refusal names lease %q, not %s", got, first.GetLease().GetName())
	}

	cert := &stintv1.IssueCredentialRequest{Task: names[0], Role: "client-cert", RequestId: brokertest.RequestID(), Csr: []byte("csr")}
	var chains [][][]byte
	for range 2 {
		res, err := agent.Credentials.IssueCredential(t.Context(), cert)
		if err != nil {
			t.Fatal(err)
		}
		chains = append(chains, res.GetCertificate().GetChain())
	}
	if len(chains[0]) != 1 || !cmp.Equal(chains[0], chains[1]) {
		t.Errorf("the same request brought %q, then %q", chains[0], chains[1])
	}
	if got := h.Memory.Made(); got != 2 {
		t.Errorf("%d credentials were made", got)
	}
}

func TestEveryAnswerHasARequestID(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	seen := map[string]bool{}
	for _, name := range []string{agent.Declare(t, "orders-db").GetName(), "tasks/nobodys"} {
		var header, trailer metadata.MD
		_, err := agent.Tasks.GetTask(t.Context(), &stintv1.GetTaskRequest{Name: name}, grpc.Header(&header), grpc.Trailer(&trailer))
		id := trailer.Get("stint-request-id")
		if len(id) != 1 || len(id[0]) != 36 || id[0][14] != '7' || seen[id[0]] {
			t.Fatalf("request IDs in the trailer: %v (%v)", id, err)
		}
		seen[id[0]] = true
		if err == nil && !cmp.Equal(header.Get("stint-request-id"), id) {
			t.Errorf("header says %v, trailer %v", header.Get("stint-request-id"), id)
		}
		if err != nil && detail[errdetails.RequestInfo](err).GetRequestId() != id[0] {
			t.Errorf("%v lacks request ID %s", err, id[0])
		}
	}
}
