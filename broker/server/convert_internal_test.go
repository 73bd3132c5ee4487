package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Every state of the API is a state of the domain, and a filter finds it again.
func TestStatesRoundTrip(t *testing.T) {
	t.Parallel()
	for n := range stintv1.TaskState_name {
		state := stintv1.TaskState(n)
		got := taskStatesOf([]stintv1.TaskState{state})
		if len(got) != 1 || (n != 0 && taskStateOf(got[0]) != state) || (n == 0) != (got[0] == "") {
			t.Errorf("%v became %q", state, got)
		}
	}
	for n := range stintv1.LeaseState_name {
		state := stintv1.LeaseState(n)
		got := leaseStatesOf([]stintv1.LeaseState{state})
		if len(got) != 1 || (n != 0 && leaseStateOf(got[0]) != state) || (n == 0) != (got[0] == "") {
			t.Errorf("%v became %q", state, got)
		}
	}
	for n := range int32(4) {
		outcome := stintv1.CloseReason(n)
		if want := max(outcome, stintv1.CloseReason_CLOSE_REASON_COMPLETED); closeReasonOf(outcomeOf(outcome)) != want {
			t.Errorf("%v became %v", outcome, closeReasonOf(outcomeOf(outcome)))
		}
	}
	for _, k := range []resource.Kind{resource.KindRole, resource.KindProfile, resource.KindPolicy} {
		if kindOf(k) == stintv1.ResourceKind_RESOURCE_KIND_UNSPECIFIED {
			t.Errorf("%s has no kind", k)
		}
	}
}

func TestUnsetStaysUnset(t *testing.T) {
	t.Parallel()
	l := leaseOf(lease.Lease{})
	if l.GetNotAfter() != nil || l.GetRevokedAt() != nil || l.GetNextAttempt() != nil || l.GetExposure().GetMax() != nil {
		t.Errorf("an empty lease is %v", l)
	}
	if e := exposureOf(plugins.Exposure{Bounded: true}); e.GetMax() == nil || e.GetMax().AsDuration() != 0 {
		t.Errorf("a bound of zero is %v", e)
	}
	if count(-1) != 0 || count(math.MaxInt) != math.MaxInt32 || count(7) != 7 {
		t.Error("count does not clamp")
	}
	ending := leaseOf(lease.Lease{State: lease.Revoking, NextAt: time.Unix(7, 0)})
	if ending.GetNextAttempt().GetSeconds() != 7 {
		t.Errorf("next attempt %v", ending.GetNextAttempt())
	}
}

// The secret leaves in the marshalled answer, and nowhere is it left behind.
func TestSecretIsOverwritten(t *testing.T) {
	t.Parallel()
	const password = "hunter2-hunter2"
	value := secret.FromString(password)
	answer := answerOf(broker.Issued{Credential: plugins.Credential{Fields: map[string]secret.Value{"password": value}}}, resource.Deliver{})
	pool := &remembering{BufferPool: mem.DefaultBufferPool()}
	data, err := codec{pool: clearing{pool}}.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	var got stintv1.IssueCredentialResponse
	if err := (codec{}).Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if string(got.GetSecret().GetFields()["password"]) != password {
		t.Errorf("the answer holds %q", got.GetSecret().GetFields())
	}
	if strings.Contains(string(value.Expose()), "hunter2") || strings.Trim(string(answer.GetSecret().GetFields()["password"]), "\x00") != "" {
		t.Error("the secret is still in the message")
	}
	data.Free()
	if len(pool.put) != 1 || strings.Trim(string(pool.put[0]), "\x00") != "" {
		t.Errorf("%d buffers came back, or not empty", len(pool.put))
	}
}

// remembering is a pool that copies what comes back.
type remembering struct {
	mem.BufferPool

	put [][]byte
}

func (r *remembering) Put(b *[]byte) {
	r.put = append(r.put, slices.Clone((*b)[:cap(*b)]))
	r.BufferPool.Put(b)
}

func TestCodecLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	task := &stintv1.Task{Name: "tasks/x", Purpose: "p"}
	data, err := codec{pool: mem.DefaultBufferPool()}.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	var got stintv1.Task
	if err := (codec{}).Unmarshal(data, &got); err != nil || !proto.Equal(&got, task) {
		t.Errorf("got %v, %v", &got, err)
	}
	if _, err := (codec{}).Marshal("no message"); err == nil {
		t.Error("text was marshalled")
	}
}

func TestCertificateNamesItsSPIFFEID(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := &url.URL{Scheme: "spiffe", Host: "tasks.example.org", Path: "/agent/example.org/a/task/x"}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{id}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		chain [][]byte
		want  string
	}{{[][]byte{der}, id.String()}, {[][]byte{[]byte("no certificate")}, ""}} {
		got := answerOf(broker.Issued{Credential: plugins.Credential{Chain: c.chain}}, resource.Deliver{}).GetCertificate()
		if got.GetSpiffeId() != c.want || len(got.GetChain()) != 1 {
			t.Errorf("got %v, want %s", got, c.want)
		}
	}
}

// A panic ends one call, as an internal error whose cause says where but not what.
func TestPanicIsInternal(t *testing.T) {
	t.Parallel()
	err := recovered(t.Context(), &call{}, func(context.Context) error {
		panic("hunter2") //nolint:forbidigo // what the step is for
	})
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Reason != fault.Internal || f.Cause == nil {
		t.Fatalf("got %v", err)
	}
	if text := f.Cause.Error(); strings.Contains(text, "hunter2") || !strings.Contains(text, "convert_internal_test.go") {
		t.Errorf("cause %q", text)
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add("")
	f.Add("AZ5nVvEmcAGAAAAAAAAAAA")
	f.Add("AAAA=")
	f.Add("000000000000000\n000000A")
	f.Fuzz(func(t *testing.T, token string) {
		id, err := pageToken(token)
		if err != nil {
			if fault.ReasonOf(err) != fault.InvalidArgument {
				t.Errorf("refused as %v", err)
			}
			return
		}
		_, again := cutPage([][16]byte{id, id}, 1, func(id [16]byte) [16]byte { return id })
		if token != "" && again != token {
			t.Errorf("%q names %x, whose token is %q", token, id, again)
		}
	})
}
