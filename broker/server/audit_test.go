package server_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// checkpoint verifies a signed checkpoint with the key that came with it.
func checkpoint(t *testing.T, c *stintv1.Checkpoint) audit.Checkpoint {
	t.Helper()
	return opened(t, c.GetVerifierKey(), c.GetNote())
}

func opened(t *testing.T, key, signed string) audit.Checkpoint {
	t.Helper()
	verifier, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := audit.OpenCheckpoint([]byte(signed), verifier)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func hashes(t *testing.T, raw [][]byte) []tlog.Hash {
	t.Helper()
	out := make([]tlog.Hash, 0, len(raw))
	for _, h := range raw {
		if len(h) != tlog.HashSize {
			t.Fatalf("a hash of %d bytes", len(h))
		}
		out = append(out, tlog.Hash(h))
	}
	return out
}

// A client that kept the checkpoint of an answer can check that the log still continues it.
func TestProofs(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, siem := h.As(t, "/agent/a"), h.As(t, "/audit/siem")
	ctx := t.Context()
	task := agent.Declare(t, "orders-db")
	earlier := opened(t, h.Key.Text, agent.Issue(t, task, "orders-db").GetCheckpoint())
	agent.Issue(t, task, "orders-db")

	proof, err := agent.Audit.GetConsistencyProof(ctx, &stintv1.GetConsistencyProofRequest{OldSize: earlier.Size})
	if err != nil {
		t.Fatal(err)
	}
	later := checkpoint(t, proof.GetCheckpoint())
	if err = audit.CheckConsistency(earlier, later, hashes(t, proof.GetHashes())); err != nil || later.Size <= earlier.Size {
		t.Errorf("from %d to %d: %v", earlier.Size, later.Size, err)
	}
	list, err := siem.Audit.ListRecords(ctx, &stintv1.ListRecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.GetRecords() {
		wantIncluded(t, siem, r)
	}
	head, err := agent.Audit.GetCheckpoint(ctx, &stintv1.GetCheckpointRequest{})
	if err != nil || checkpoint(t, head).Size != int64(len(list.GetRecords())) || head.GetSize() != checkpoint(t, head).Size {
		t.Errorf("head %v, %v; %d records", head, err, len(list.GetRecords()))
	}
	old, err := siem.Audit.GetInclusionProof(ctx, &stintv1.GetInclusionProofRequest{Index: 0, Size: earlier.Size})
	if err != nil || old.GetCheckpoint() != nil {
		t.Fatalf("for an earlier size: %v, %v", old, err)
	}
	if err := audit.CheckInclusion(earlier, 0, list.GetRecords()[0].GetJson(), hashes(t, old.GetHashes())); err != nil {
		t.Errorf("for an earlier size: %v", err)
	}
}

// wantIncluded proves a record.
func wantIncluded(t *testing.T, c *brokertest.Client, r *stintv1.AuditRecord) {
	t.Helper()
	proof, err := c.Audit.GetInclusionProof(t.Context(), &stintv1.GetInclusionProofRequest{Index: r.GetIndex()})
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.CheckInclusion(checkpoint(t, proof.GetCheckpoint()), r.GetIndex(), r.GetJson(), hashes(t, proof.GetHashes())); err != nil {
		t.Errorf("record %d: %v", r.GetIndex(), err)
	}
	if r.GetTime().AsTime().Before(time.Now().Add(-time.Hour)) || r.GetEvent() == "" {
		t.Errorf("record %v", r)
	}
}

func TestProofsOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	siem := h.As(t, "/audit/siem")
	_, err := siem.Audit.GetConsistencyProof(t.Context(), &stintv1.GetConsistencyProofRequest{OldSize: 1 << 40})
	wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
	_, err = siem.Audit.GetInclusionProof(t.Context(), &stintv1.GetInclusionProofRequest{Index: 1, Size: 1 << 40})
	wantReason(t, err, codes.InvalidArgument, fault.InvalidArgument)
	_, err = siem.Audit.GetReceipt(t.Context(), &stintv1.GetReceiptRequest{Task: "tasks/nobodys"})
	wantReason(t, err, codes.NotFound, fault.NotFound)
}

func TestReceiptVerifies(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent := h.As(t, "/agent/a")
	task := agent.Declare(t, "orders-db")
	agent.Issue(t, task, "orders-db")
	if _, err := agent.Tasks.CompleteTask(t.Context(), &stintv1.CompleteTaskRequest{Name: task.GetName(), Wait: wait(30 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	var receipts [][]byte
	for _, c := range []*brokertest.Client{agent, h.As(t, "/audit/siem"), h.Local(t)} {
		got, err := c.Audit.GetReceipt(t.Context(), &stintv1.GetReceiptRequest{Task: "tasks/" + task.GetShortName()})
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, got.GetJson())
	}
	report, err := audit.VerifyReceipt(receipts[0], h.Key.Text)
	if err != nil {
		t.Fatal(err)
	}
	if "tasks/"+report.Task != task.GetName() {
		t.Errorf("report of %q", report.Task)
	}
	if !bytes.Equal(receipts[0], receipts[1]) || !bytes.Equal(receipts[0], receipts[2]) {
		t.Error("the receipt depends on who asks")
	}
}

func TestRecordsInPagesAndAsTheyCome(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	agent, siem := h.As(t, "/agent/a"), h.As(t, "/audit/siem")
	stream, err := siem.Audit.StreamRecords(t.Context(), &stintv1.StreamRecordsRequest{Start: 1})
	if err != nil {
		t.Fatal(err)
	}
	task := agent.Declare(t, "orders-db")
	other := agent.Declare(t, "orders-db")
	agent.Issue(t, task, "orders-db")
	var paged, streamed []int64
	for start := int64(1); ; {
		page, pageErr := siem.Audit.ListRecords(t.Context(), &stintv1.ListRecordsRequest{Start: start, PageSize: 2})
		if pageErr != nil {
			t.Fatal(pageErr)
		}
		for _, r := range page.GetRecords() {
			paged = append(paged, r.GetIndex())
		}
		if start = page.GetNextStart(); start == 0 {
			break
		}
	}
	for len(streamed) < len(paged) {
		r, recvErr := stream.Recv()
		if recvErr != nil {
			t.Fatal(recvErr)
		}
		streamed = append(streamed, r.GetIndex())
	}
	if !cmp.Equal(paged, streamed) || int64(len(paged)) != h.Ledger.Head().Size-1 {
		t.Errorf("paged %v, streamed %v", paged, streamed)
	}
	mine, err := siem.Audit.ListRecords(t.Context(), &stintv1.ListRecordsRequest{Task: task.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for _, r := range mine.GetRecords() {
		events = append(events, r.GetEvent())
		if bytes.Contains(r.GetJson(), []byte(other.GetShortName())) {
			t.Errorf("a record of another task: %s", r.GetJson())
		}
	}
	if !cmp.Equal(events, []string{"task.declared", "lease.active"}) {
		t.Errorf("events %v", events)
	}
}

func TestResources(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	ops := h.As(t, "/ops/oncall").Admin
	for kind, want := range map[stintv1.ResourceKind]int{
		stintv1.ResourceKind_RESOURCE_KIND_UNSPECIFIED: 5, stintv1.ResourceKind_RESOURCE_KIND_ROLE: 4,
		stintv1.ResourceKind_RESOURCE_KIND_PROFILE: 1, stintv1.ResourceKind_RESOURCE_KIND_POLICY: 0,
	} {
		got, err := ops.ListResources(t.Context(), &stintv1.ListResourcesRequest{Kind: kind})
		if err != nil || len(got.GetResources()) != want {
			t.Errorf("%v: %v, %v", kind, got, err)
		}
	}
	role, err := ops.GetResource(t.Context(), &stintv1.GetResourceRequest{Name: "roles/orders-db"})
	if err != nil || role.GetBackend() != "memory/a" || role.GetExposure().GetMax() == nil || len(role.GetEtag()) != 64 || role.GetSource() != "api" {
		t.Errorf("role %v, %v", role, err)
	}
	_, err = ops.GetResource(t.Context(), &stintv1.GetResourceRequest{Name: "roles/nothing"})
	wantReason(t, err, codes.NotFound, fault.NotFound)
}

const extraRole = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: extra}
spec: {backend: memory/a, ttl: {max: 5m}}
`

func TestApply(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	ops := h.As(t, "/ops/alice").Admin
	extra := []*stintv1.Document{{File: "extra.yaml", Yaml: extraRole}}
	dry, err := ops.Apply(t.Context(), &stintv1.ApplyRequest{Documents: extra, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = ops.GetResource(t.Context(), &stintv1.GetResourceRequest{Name: "roles/extra"})
	wantReason(t, err, codes.NotFound, fault.NotFound)
	changed, err := ops.Apply(t.Context(), &stintv1.ApplyRequest{Documents: extra})
	if err != nil || !cmp.Equal(actions(dry), actions(changed)) || actions(changed)["roles/extra"] != "created" ||
		actions(changed)["roles/orders-db"] != "unchanged" || len(changed.GetPolicySet()) != 64 {
		t.Errorf("applied %v (dry %v), %v", changed, dry, err)
	}
	_, err = ops.Apply(t.Context(), &stintv1.ApplyRequest{Documents: []*stintv1.Document{{File: "bad.yaml", Yaml: "kind: Role\nspec: {}\n"}}})
	wantReason(t, err, codes.InvalidArgument, fault.ResourceInvalid)
	if fields := detail[errdetails.BadRequest](err).GetFieldViolations(); len(fields) < 2 || !strings.HasPrefix(fields[0].GetField(), "bad.yaml") {
		t.Errorf("fields %v", fields)
	}
}

func TestRemovedRoleEndsWhatItIssued(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{})
	ops, agent := h.As(t, "/ops/alice").Admin, h.As(t, "/agent/a")
	agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db")
	_, err := ops.DeleteResource(t.Context(), &stintv1.DeleteResourceRequest{Name: "roles/orders-db"})
	wantReason(t, err, codes.InvalidArgument, fault.ResourceInvalid) // the profile names it
	pruned, err := ops.Apply(t.Context(), &stintv1.ApplyRequest{Documents: []*stintv1.Document{{Yaml: extraRole}}, Prune: true})
	if err != nil || actions(pruned)["roles/orders-db"] != "deleted" {
		t.Fatalf("pruned %v, %v", pruned, err)
	}
	brokertest.Eventually(t, "what the removed role issued ends", func() bool { return len(h.Memory.Alive()) == 0 })
	gone, err := ops.DeleteResource(t.Context(), &stintv1.DeleteResourceRequest{Name: "roles/extra"})
	if err != nil || gone.GetLeasesEnding() != 0 {
		t.Errorf("deleted %v, %v", gone, err)
	}
}

func actions(r *stintv1.ApplyResponse) map[string]string {
	out := map[string]string{}
	for _, c := range r.GetChanges() {
		out[c.GetName()] = c.GetAction()
	}
	return out
}
