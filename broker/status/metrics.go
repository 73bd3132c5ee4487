package status

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/stint-dev/stint/broker/fault"
)

const namespace = "stint"

// Metrics counts what happens. A nil *Metrics counts nothing, so that whoever counts need not know whether anybody
// listens. docs/operations.md says what each metric is for.
type Metrics struct {
	registry *prometheus.Registry
	issued   *prometheus.CounterVec
	denied   *prometheus.CounterVec
	commit   prometheus.Histogram
	rpc      *prometheus.HistogramVec
	inventory
}

// NewMetrics makes the metrics of a program of a version, in a registry of their own.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "credentials_issued_total", Help: "Credentials handed out.",
		}, []string{"backend", "role"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "denied_total", Help: "Refused calls, by the reason the caller was given.",
		}, []string{"reason"}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "commit_seconds",
			Help:    "From handing a change to the ledger until it was on disk.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 14), // to 2 s
		}),
		rpc: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "rpc_seconds", Help: "Length of calls; of a stream, from its start to its end.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // to 16 s
		}, []string{"method", "code"}),
	}
	m.inventory = newInventory()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the label says what runs.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.unknown, m.endedAlive, m.gone, m.dead, m.lastRun)
	m.registry.MustRegister(m.issued, m.denied, m.commit, m.rpc, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Issued counts a credential that was handed out.
func (m *Metrics) Issued(backend, role string) {
	if m != nil {
		m.issued.WithLabelValues(backend, role).Inc()
	}
}

// Denied counts a refusal.
func (m *Metrics) Denied(reason fault.Reason) {
	if m != nil {
		m.denied.WithLabelValues(string(reason)).Inc()
	}
}

// ObserveCommit takes how long a change waited until it was on disk.
func (m *Metrics) ObserveCommit(d time.Duration) {
	if m != nil {
		m.commit.Observe(d.Seconds())
	}
}

// ObserveRPC takes how long a call took. The method is one of the API's ("/stint.v1.TaskService/GetTask"), never a name
// that a caller made up; the code is that of gRPC, such as "OK".
func (m *Metrics) ObserveRPC(method, code string, d time.Duration) {
	if m != nil {
		m.rpc.WithLabelValues(method, code).Observe(d.Seconds())
	}
}
