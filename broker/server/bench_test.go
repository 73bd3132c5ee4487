package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // a benchmark chooses its backend
	"github.com/stint-dev/stint/plugins/stepca"     //nolint:depguard // as above
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// benchResources are one role of each backend, and a profile without tight limits.
const benchResources = `
apiVersion: stint.dev/v1
kind: Role
metadata: {name: %s}
spec: {backend: %s, ttl: {default: 10m, max: 30m}}
---
apiVersion: stint.dev/v1
kind: Profile
metadata: {name: agents}
spec:
  agents: ["spiffe://example.org/agent/*"]
  owner: platform@example.org
  sponsor: head@example.org
  purposes: [reconcile-invoices]
  roles: [{name: %s}]
  task: {default_ttl: 20m, max_ttl: 1h, max_live: 1000000, max_live_leases: 1000000}
  permit: ceiling
`

// BenchmarkIssue issues credentials over mTLS on loopback, each agent on a connection of its own, one call at a time. It
// reports credentials a second and the latency seen by agents; each is on disk with its audit record before it leaves.
func BenchmarkIssue(b *testing.B) {
	for _, kind := range []string{"memory", "preparing", "stepca"} {
		for _, agents := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/agents=%d", kind, agents), func(b *testing.B) { benchmarkIssue(b, kind, agents) })
		}
	}
}

func benchmarkIssue(b *testing.B, kind string, agents int) {
	b.Helper()
	name := kind + "/a"
	h := brokertest.Start(b, brokertest.Config{
		Resources: fmt.Sprintf(benchResources, kind, name, kind),
		Backends:  map[string]plugins.Backend{name: benchBackend(b, kind, name)},
		Listen:    true,
	})
	csr := benchCSR(b)
	calls := make([]func(context.Context) error, agents)
	for i := range agents {
		calls[i] = benchAgent(b, h, fmt.Sprintf("/agent/a%d", i), kind, csr)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	took := issueAll(b, calls)
	spent := cpuTime(b) - before
	b.StopTimer()
	b.ReportMetric(ms(spent)/float64(b.N), "cpu-ms/op")
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creds/s")
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
}

// cpuTime is what this process has used, agents, broker and CA together.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// issueAll shares b.N calls among the agents and returns how long each took.
func issueAll(b *testing.B, calls []func(context.Context) error) []time.Duration {
	b.Helper()
	var wg sync.WaitGroup
	took := make([][]time.Duration, len(calls))
	for i, call := range calls {
		share := b.N / len(calls)
		if i < b.N%len(calls) {
			share++
		}
		wg.Go(func() {
			for range share {
				began := time.Now()
				if err := call(b.Context()); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return slices.Concat(took...)
}

// benchAgent opens a task and returns what issues one credential for it.
func benchAgent(b *testing.B, h *brokertest.House, path, role string, csr []byte) func(context.Context) error {
	b.Helper()
	agent := h.As(b, path)
	declared, err := agent.Tasks.DeclareTask(b.Context(), &stintv1.DeclareTaskRequest{
		Purpose: "reconcile-invoices", RequestId: brokertest.RequestID(), Ttl: durationpb.New(time.Hour),
		Roles: []*stintv1.RoleRequest{{Role: role}},
	})
	if err != nil {
		b.Fatal(err)
	}
	if role != "stepca" {
		csr = nil
	}
	return func(ctx context.Context) error {
		_, err := agent.Credentials.IssueCredential(ctx, &stintv1.IssueCredentialRequest{
			Task: declared.GetTask().GetName(), Role: role, RequestId: brokertest.RequestID(), Csr: csr,
		})
		return err
	}
}

func benchBackend(b *testing.B, kind, name string) plugins.Backend {
	b.Helper()
	switch kind {
	case "preparing":
		return plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: 10 * time.Second})
	case "stepca":
		ca, err := stepca.New(stepca.Config{
			Instance: name, TaskTrustDomain: "tasks." + brokertest.TrustDomain, Embedded: stepca.EmbeddedConfig{DataDir: b.TempDir()},
		}, zap.NewNop())
		if err != nil {
			b.Fatal(err)
		}
		return ca
	}
	return plugintest.NewMemory(plugintest.MemoryConfig{})
}

// benchCSR makes one request for all: making keys is the agents' cost.
func benchCSR(b *testing.B) []byte {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		b.Fatal(err)
	}
	return der
}
