package status

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stint-dev/stint/broker/reconcile"
)

// inventory gauges what comparing backends with the ledger came to.
type inventory struct {
	unknown, endedAlive, gone, dead, lastRun *prometheus.GaugeVec

	told *sync.Map // the backends that were compared
}

func newInventory() inventory {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Subsystem: "reconcile", Name: name, Help: help},
			[]string{"backend"})
	}
	return inventory{
		told:       new(sync.Map),
		unknown:    gauge("unknown", "Credentials alive at the backend that the ledger does not know. Alert above 0."),
		endedAlive: gauge("ended_alive", "Credentials alive at the backend that have ended by the ledger. Alert above 0."),
		gone:       gauge("gone", "Credentials that are active by the ledger and gone at the backend."),
		dead:       gauge("dead", "Database users that can log in no more, of no open lease, and still there."),
		lastRun:    gauge("last_run_timestamp_seconds", "When the backend was last compared with the ledger to the end."),
	}
}

// Reconciled takes what comparing a backend came to.
func (m *Metrics) Reconciled(backend string, open reconcile.Counts, at time.Time) {
	if m == nil {
		return
	}
	m.told.Store(backend, nil)
	m.unknown.WithLabelValues(backend).Set(float64(open.Unknown))
	m.endedAlive.WithLabelValues(backend).Set(float64(open.Ended))
	m.gone.WithLabelValues(backend).Set(float64(open.Gone))
	m.dead.WithLabelValues(backend).Set(float64(open.Dead))
	m.lastRun.WithLabelValues(backend).Set(float64(at.Unix()))
}

// Only forgets backends that are not compared any more: what was last found of them would stand there for ever.
func (m *Metrics) Only(backends []string) {
	if m == nil {
		return
	}
	m.told.Range(func(name, _ any) bool {
		backend, ok := name.(string)
		if ok && !slices.Contains(backends, backend) {
			for _, gauge := range []*prometheus.GaugeVec{m.unknown, m.endedAlive, m.gone, m.dead, m.lastRun} {
				gauge.DeleteLabelValues(backend)
			}
			m.told.Delete(name)
		}
		return true
	})
}
