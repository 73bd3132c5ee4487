package server_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/attestortest" //nolint:depguard // tests choose who is calling
	"github.com/stint-dev/stint/attestor/devdomain"    //nolint:depguard // as above
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func whoAmI(t *testing.T, c *brokertest.Client) error {
	t.Helper()
	_, err := c.Tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{})
	return err
}

func token(t *testing.T, h *brokertest.House, r devdomain.JWTRequest) string {
	t.Helper()
	if r.ID.IsZero() {
		r.ID = attestortest.ID(t, h.Domain, "/agent/a")
	}
	if r.Audience == nil {
		r.Audience = []string{h.ServerID().String()}
	}
	text, err := h.Domain.IssueJWT(r)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTokens(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	foreign := attestortest.NewDomain(t, "foreign.org", 0)
	stranger, err := foreign.IssueJWT(devdomain.JWTRequest{
		ID: attestortest.ID(t, foreign, "/agent/a"), Audience: []string{h.ServerID().String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, token, problem string
		reason               fault.Reason
	}{
		{"none", "", "no_evidence", fault.Unauthenticated},
		{"garbage", "garbage", "invalid", fault.Unauthenticated},
		{"expired", token(t, h, devdomain.JWTRequest{IssuedAt: time.Now().Add(-time.Hour)}), "expired", fault.SVIDExpired},
		{"for another", token(t, h, devdomain.JWTRequest{Audience: []string{"vault"}}), "audience", fault.Unauthenticated},
		{"foreign", stranger, "foreign_trust_domain", fault.Unauthenticated},
	} {
		refusal := whoAmI(t, h.WithToken(t, c.token))
		wantReason(t, refusal, codes.Unauthenticated, c.reason)
		if got := detail[errdetails.ErrorInfo](refusal).GetMetadata()["problem"]; got != c.problem {
			t.Errorf("%s: problem %q, want %q", c.name, got, c.problem)
		}
	}
	agent := h.WithToken(t, token(t, h, devdomain.JWTRequest{}))
	task := agent.Declare(t, "orders-db")
	if len(agent.Issue(t, task, "orders-db").GetSecret().GetFields()) != 2 {
		t.Error("no secret over the listener for tokens")
	}
	got, err := h.As(t, "/agent/a").Tasks.GetTask(t.Context(), &stintv1.GetTaskRequest{Name: task.GetName()})
	if err != nil || got.GetName() != task.GetName() {
		t.Errorf("the same agent over mTLS: %v, %v", got, err)
	}
}

// A token that is shown over mTLS changes nothing about who is calling.
func TestTokenOverMTLSIsIgnored(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	got, err := h.As(t, "/agent/a").Tasks.WhoAmI(withBearer(t.Context(), h.Token(t, "/agent/b")), &stintv1.WhoAmIRequest{})
	if err != nil || got.GetId() != "spiffe://example.org/agent/a" || got.GetMethod() != "x509-svid" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestExpiredIdentityGetsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		agent := h.WithToken(t, token(t, h, devdomain.JWTRequest{TTL: time.Minute}))
		task := agent.Declare(t, "orders-db")
		began := time.Now()
		stream, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantReason(t, err, codes.Unauthenticated, fault.SVIDExpired)
		if lived := time.Since(began); lived < 59*time.Second || lived > 62*time.Second {
			t.Errorf("the stream lived for %v", lived)
		}
		wantReason(t, whoAmI(t, agent), codes.Unauthenticated, fault.SVIDExpired)
	})
}

func TestExpiredCertificateEndsItsConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		agent := h.With(t, devdomain.X509Request{ID: attestortest.ID(t, h.Domain, "/agent/a"), TTL: time.Minute})
		task := agent.Declare(t, "orders-db")
		stream, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err = stream.Recv(); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Unauthenticated {
			t.Errorf("the stream ended with %v", err)
		}
		if lived := time.Since(began); lived < 58*time.Second || lived > 62*time.Second {
			t.Errorf("the stream lived for %v", lived)
		}
		<-time.After(time.Second) // at the very instant of its NotAfter it is valid
		if err := whoAmI(t, agent); err == nil {
			t.Error("an expired SVID is served on a new connection")
		}
	})
}

// When the bundle changes, open streams of callers that it no longer verifies end at once.
func TestRemovedRootEndsStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		agent := h.WithToken(t, token(t, h, devdomain.JWTRequest{TTL: 10 * time.Minute}))
		task := agent.Declare(t, "orders-db")
		stream, err := agent.Tasks.WatchTask(t.Context(), &stintv1.WatchTaskRequest{Name: task.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err = h.Domain.RotateCA(); err != nil {
			t.Fatal(err)
		}
		if err = h.Domain.RemoveOldRoots(); err != nil {
			t.Fatal(err)
		}
		removed := time.Now()
		if err = h.Source.Replace(attestortest.Material(t, h.Domain, devdomain.X509Request{
			ID: h.ServerID(), DNSNames: []string{"localhost"},
		})); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantReason(t, err, codes.Unauthenticated, fault.Unauthenticated)
		if waited := time.Since(removed); waited > time.Second {
			t.Errorf("it took %v", waited)
		}
	})
}

// Refusals without an identity are in the record as sums, and cost no commit each.
func TestRefusalsAreSummedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := brokertest.Start(t, brokertest.Config{})
		before := h.Ledger.Head().Size
		nobody, agent := h.WithToken(t, "garbage"), h.As(t, "/agent/a")
		for range 30 {
			wantReason(t, whoAmI(t, nobody), codes.Unauthenticated, fault.Unauthenticated)
		}
		for range 5 {
			_, err := agent.Admin.ListAllTasks(t.Context(), &stintv1.ListAllTasksRequest{})
			wantReason(t, err, codes.PermissionDenied, fault.AdminRoleRequired)
		}
		if got := h.Ledger.Head().Size; got != before {
			t.Errorf("%d records at once", got-before)
		}
		<-time.After(30 * time.Second)
		var found []string
		err := h.Ledger.View(t.Context(), func(r ledger.Reader) error {
			entries, err := r.Entries(before, 100, "")
			for _, e := range entries {
				if e.Event == audit.CallsRefused {
					found = append(found, string(e.JSON))
				}
			}
			return err
		})
		if err != nil || len(found) != 2 {
			t.Errorf("records %v, %v", found, err)
		}
	})
}
