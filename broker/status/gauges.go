package status

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// snapshotTimeout bounds the reading of a snapshot.
const snapshotTimeout = 5 * time.Second

// Snapshot is what is gauged, read at each scrape. Reading it must cost the same whatever the history.
type Snapshot struct {
	Stats ledger.Stats
	// AuditSize is the number of records in the audit log.
	AuditSize int64
	// FreeDisk is the free space under the ledger in bytes; negative where it is not known.
	FreeDisk int64
	// LanesHeld is how many lanes of teardown do not answer now.
	LanesHeld int
	// ClockJumps is how often the machine's clock was found to have been set since the start.
	ClockJumps int64
	// Unconfirmed: the ledger is an older copy, and nobody has confirmed the restore.
	Unconfirmed bool
	// SVIDExpiry is the end of the broker's own SVID; zero where there is none.
	SVIDExpiry time.Time
}

// gauges collects what is read and not counted.
type gauges struct {
	snapshot   func(context.Context) (Snapshot, error)
	checks     *checks
	publishers func() []Publisher
	log        *zap.Logger

	readable, ready, backendUp, caExpiry   *prometheus.Desc
	tasks, leases, stuck, backlog, overdue *prometheus.Desc
	held, auditSize, freeDisk, svidExpiry  *prometheus.Desc
	clockJumps                             *prometheus.Desc
	unconfirmed                            *prometheus.Desc
}

func newGauges(snapshot func(context.Context) (Snapshot, error), c *checks, publishers func() []Publisher, log *zap.Logger) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &gauges{
		snapshot: snapshot, checks: c, publishers: publishers, log: log,
		readable:    desc("ledger_readable", "1 if the ledger could be read for this scrape; if 0, what is read from it is absent."),
		ready:       desc("ready", "1 if credentials can be issued, as /readyz says."),
		backendUp:   desc("backend_up", "1 if the backend would answer now.", "backend"),
		caExpiry:    desc("ca_expiry_seconds", "Seconds until the first CA certificate of the backend's bundle expires.", "backend"),
		tasks:       desc("tasks", "Tasks that are not closed, by state.", "state"),
		leases:      desc("leases", "Leases that are not final, by state.", "state"),
		stuck:       desc("leases_stuck", "Leases whose end is overdue. Alert above 0."),
		backlog:     desc("teardown_backlog", "Leases that teardown should have looked at by now."),
		overdue:     desc("teardown_oldest_seconds", "For how long the oldest of the backlog has been due."),
		held:        desc("teardown_lanes_held", "Mounts of backends that do not answer teardown: each is asked by one attempt at a time."),
		unconfirmed: desc("restore_unconfirmed", "1 while the ledger is an older copy and nobody has confirmed the restore: nothing is issued or ended. Alert above 0."),
		auditSize:   desc("audit_size", "Records in the audit log."),
		freeDisk:    desc("free_disk_bytes", "Free space where the ledger is."),
		svidExpiry:  desc("svid_expiry_seconds", "Seconds until the broker's own SVID expires."),
		clockJumps:  desc("clock_jumps_total", "How often the machine's clock was set while the broker ran. Alert when it grows."),
	}
}

// Describe implements [prometheus.Collector].
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		g.readable, g.ready, g.backendUp, g.caExpiry, g.tasks, g.leases, g.stuck, g.backlog, g.overdue,
		g.held, g.unconfirmed, g.auditSize, g.freeDisk, g.svidExpiry, g.clockJumps,
	} {
		ch <- d
	}
}

// sink sends gauges.
type sink chan<- prometheus.Metric

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// Collect implements [prometheus.Collector].
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTimeout)
	defer cancel()
	out := sink(ch)
	g.readiness(out, g.checks.report(ctx))
	for _, p := range g.publishers() {
		if end, ok := firstEnd(p.Bundle()); ok {
			out.gauge(g.caExpiry, time.Until(end).Seconds(), p.Name)
		}
	}
	snapshot, err := g.snapshot(ctx)
	out.gauge(g.readable, number(err == nil))
	if err != nil {
		g.log.Warn("no snapshot for metrics", zap.Error(err))
		return
	}
	g.state(out, snapshot, time.Now())
}

func (g *gauges) readiness(out sink, report Report) {
	out.gauge(g.ready, number(report.State != NotReady))
	for _, r := range report.Parts {
		if r.Backend != "" {
			out.gauge(g.backendUp, number(r.OK), r.Backend)
		}
	}
}

// state sends what the snapshot holds. States without a task or lease are 0, not absent.
func (g *gauges) state(out sink, s Snapshot, now time.Time) {
	for _, state := range []task.State{task.Active, task.Closing} {
		out.gauge(g.tasks, float64(s.Stats.TasksByState[state]), string(state))
	}
	for _, state := range []lease.State{lease.Intent, lease.Active, lease.Revoking, lease.Lapsing} {
		out.gauge(g.leases, float64(s.Stats.LeasesByState[state]), string(state))
	}
	out.gauge(g.stuck, float64(s.Stats.Stuck))
	out.gauge(g.backlog, float64(s.Stats.Overdue))
	oldest := 0.0
	if !s.Stats.OldestDue.IsZero() {
		oldest = max(0, now.Sub(s.Stats.OldestDue).Seconds())
	}
	out.gauge(g.overdue, oldest)
	out.gauge(g.held, float64(s.LanesHeld))
	out.gauge(g.unconfirmed, number(s.Unconfirmed))
	out.gauge(g.auditSize, float64(s.AuditSize))
	out <- prometheus.MustNewConstMetric(g.clockJumps, prometheus.CounterValue, float64(s.ClockJumps))
	if s.FreeDisk >= 0 {
		out.gauge(g.freeDisk, float64(s.FreeDisk))
	}
	if !s.SVIDExpiry.IsZero() {
		out.gauge(g.svidExpiry, s.SVIDExpiry.Sub(now).Seconds())
	}
}

// firstEnd returns when the first of the certificates expires.
func firstEnd(bundle [][]byte) (time.Time, bool) {
	var first time.Time
	for _, der := range bundle {
		cert, err := x509.ParseCertificate(der)
		if err == nil && (first.IsZero() || cert.NotAfter.Before(first)) {
			first = cert.NotAfter
		}
	}
	return first, !first.IsZero()
}

func number(b bool) float64 { return map[bool]float64{true: 1}[b] }
